//! One API user: the tokens the upstream is asked with, and how it stands with them.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};
use url::Url;

use super::{call_budget::CallBudget, circuit::Circuit};
use crate::domain::CredentialId;

/// After both tokens were refused: asking at once would be refused again, and cost calls.
const BLOCK_FOR: Duration = Duration::from_secs(5);

/// One of a credential's two tokens: the other is there for as long as one takes the place of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSlot {
    Current,
    Next,
}

/// One API user with its organization, as header values ready to send.
pub struct Credential {
    pub id: CredentialId,
    pub name: String,
    pub org_handle: Option<HeaderValue>,
    /// The upstream it is good for.
    pub(super) origin: Url,
    pub(super) current: HeaderValue,
    pub(super) next: Option<HeaderValue>,
    pub(super) prefers_next: AtomicBool,
    /// Which of the pairs of tokens that it has had this is.
    pub(super) token_pair: u64,
    pub(super) standing: Arc<Standing>,
    pub(super) budget: Arc<CallBudget>,
    pub(super) circuit: Arc<Circuit>,
    pub(super) fill_size: u32,
}

/// How a credential stands with the upstream: outlives a reload.
///
/// What a call with a replaced token learns late says nothing of the token in its place: only the pair in force is heard.
#[derive(Debug)]
pub(super) struct Standing {
    in_force: AtomicU64,
    refused: AtomicBool,
    token_switches: AtomicU64,
    times: Mutex<Times>,
    blocks: Arc<Notify>,
}

#[derive(Debug)]
struct Times {
    /// Since when it is refused, or is not.
    refused_or_not_since: Instant,
    blocked_until: Option<Instant>,
}

impl Credential {
    /// What decides what it sees: the upstream, the token in use and its organization, then the same with the other token.
    pub fn secrets(&self) -> impl Iterator<Item = [&[u8]; 3]> {
        let in_use = self.preferred();
        [Some(in_use), self.other(in_use)]
            .into_iter()
            .flatten()
            .map(|slot| self.secrets_of(slot))
    }

    /// The same of the current token, whichever is in use.
    #[must_use]
    pub fn current_secrets(&self) -> [&[u8]; 3] {
        self.secrets_of(TokenSlot::Current)
    }

    fn secrets_of(&self, slot: TokenSlot) -> [&[u8]; 3] {
        let origin = self.origin.as_str().as_bytes();
        let organization = self.org_handle.as_ref();
        let organization = organization.map_or(&[] as &[u8], HeaderValue::as_bytes);
        [origin, self.authorization(slot).as_bytes(), organization]
    }

    /// The value of `Authorization` that proves the token in `slot`; the current one where there is no next.
    #[must_use]
    pub fn authorization(&self, slot: TokenSlot) -> &HeaderValue {
        match (slot, &self.next) {
            (TokenSlot::Next, Some(next)) => next,
            (TokenSlot::Next, None) | (TokenSlot::Current, _) => &self.current,
        }
    }

    /// The token that the upstream took last.
    #[must_use]
    pub fn preferred(&self) -> TokenSlot {
        if self.prefers_next.load(Ordering::Relaxed) {
            TokenSlot::Next
        } else {
            TokenSlot::Current
        }
    }

    /// The token beside the one in `slot`, where there is one.
    #[must_use]
    pub fn other(&self, slot: TokenSlot) -> Option<TokenSlot> {
        self.next.as_ref()?;
        Some(match slot {
            TokenSlot::Current => TokenSlot::Next,
            TokenSlot::Next => TokenSlot::Current,
        })
    }

    /// Goes on with the token in `slot`; `true` where that is news.
    pub fn prefer(&self, slot: TokenSlot) -> bool {
        let next = slot == TokenSlot::Next;
        let is_switch = self.prefers_next.swap(next, Ordering::Relaxed) != next;
        if is_switch {
            let switches = &self.standing.token_switches;
            switches.fetch_add(1, Ordering::Relaxed);
        }
        is_switch
    }

    /// How often it went on with its other token.
    #[must_use]
    pub fn token_switches(&self) -> u64 {
        self.standing.token_switches.load(Ordering::Relaxed)
    }

    /// The calls it may make.
    #[must_use]
    pub fn budget(&self) -> &Arc<CallBudget> {
        &self.budget
    }

    /// Whether the upstream is asked with it.
    #[must_use]
    pub fn circuit(&self) -> &Arc<Circuit> {
        &self.circuit
    }

    /// How many rows one call of it fetches where several pages of a list are wanted; 0: each page as it is wanted.
    #[must_use]
    pub fn fill_size(&self) -> u32 {
        self.fill_size
    }

    /// Whether the upstream refused it, and has taken it for no page since.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.standing.refused.load(Ordering::Relaxed)
    }

    /// Since when that is so.
    #[must_use]
    pub fn refused_or_not_since(&self) -> Instant {
        self.standing.times.lock().refused_or_not_since
    }

    /// As `gateway_credential_state` shows it.
    #[must_use]
    pub fn state_as_number(&self) -> i64 {
        match (self.is_refused(), self.preferred()) {
            (true, _) => 2,
            (false, TokenSlot::Next) => 1,
            (false, TokenSlot::Current) => 0,
        }
    }

    /// Whether its tokens are those in force: not once a reload has put others in their place.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        self.standing.in_force.load(Ordering::Acquire) == self.token_pair
    }

    /// Which of the pairs of tokens that it has had this is: pages read with one are not given to who asks under another.
    #[must_use]
    pub fn token_pair(&self) -> u64 {
        self.token_pair
    }

    /// Notes whether the upstream takes it; `true` where that is news.
    pub fn set_refused(&self, refused: bool) -> bool {
        self.while_in_force(|times| {
            let news = self.standing.refused.swap(refused, Ordering::Relaxed) != refused;
            if news {
                times.refused_or_not_since = Instant::now();
            }
            news
        })
        .unwrap_or(false)
    }

    /// Lets no call be made with it for a while, since the upstream has just refused all its tokens.
    pub fn block(&self, now: Instant) {
        let blocked = self.while_in_force(|times| times.blocked_until = Some(now + BLOCK_FOR));
        if blocked.is_some() {
            self.standing.blocks.notify_waiters();
        }
    }

    /// Completes when it is blocked the next time, from this call on.
    pub(super) fn next_block(&self) -> OwnedNotified {
        self.standing.blocks.clone().notified_owned()
    }

    /// What `act` gives, unless other tokens are in force; none are put in force meanwhile.
    fn while_in_force<T>(&self, act: impl FnOnce(&mut Times) -> T) -> Option<T> {
        let mut times = self.standing.times.lock();
        self.is_in_force().then(|| act(&mut times))
    }

    #[must_use]
    pub fn is_blocked(&self, now: Instant) -> bool {
        let blocked_until = self.standing.times.lock().blocked_until;
        blocked_until.is_some_and(|until| until > now)
    }

    /// Its tokens, as `Authorization` values.
    pub(super) fn tokens(&self) -> impl Iterator<Item = &HeaderValue> {
        std::iter::once(&self.current).chain(&self.next)
    }

    pub(super) fn has(&self, token: &HeaderValue) -> bool {
        self.tokens().any(|own| own == token)
    }
}

impl Standing {
    pub(super) fn new() -> Self {
        Self {
            in_force: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            token_switches: AtomicU64::new(0),
            times: Mutex::new(Times {
                refused_or_not_since: Instant::now(),
                blocked_until: None,
            }),
            blocks: Arc::default(),
        }
    }

    /// Hears only the pair `token_pair` from now on. A new pair is asked with at once: the operator may just have mended it.
    pub(super) fn put_in_force(&self, token_pair: u64) {
        let mut times = self.times.lock();
        if self.in_force.swap(token_pair, Ordering::AcqRel) != token_pair {
            times.blocked_until = None;
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
