//! The API tokens the upstream is asked with, and which of them serves which space.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::HeaderValue;
use parking_lot::Mutex;
use secrecy::ExposeSecret;
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};
use url::{Origin, Url};

use super::{Circuit, Purse};
use crate::{
    config::{CircuitConfig, Problems, UpstreamConfig, upstream::CredentialConfig},
    domain::{CredentialId, SpaceToken},
};

/// After both tokens were refused: asking at once would be refused again, and cost calls.
const HOLD: Duration = Duration::from_secs(5);

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
    origin: Url,
    current: HeaderValue,
    next: Option<HeaderValue>,
    prefers_next: AtomicBool,
    /// Which of the pairs of tokens that it has had this is.
    token_pair: u64,
    standing: Arc<Standing>,
    purse: Arc<Purse>,
    circuit: Arc<Circuit>,
}

/// How a credential stands with the upstream: outlives a reload.
///
/// What a call with a replaced token learns late says nothing of the token in its place: only the pair in force is heard.
#[derive(Debug)]
struct Standing {
    in_force: AtomicU64,
    refused: AtomicBool,
    token_switches: AtomicU64,
    times: Mutex<Times>,
    holds: Arc<Notify>,
    refusals: Arc<Notify>,
}

#[derive(Debug)]
struct Times {
    /// Since when it is refused, or is not.
    refused_or_not_since: Instant,
    held_until: Option<Instant>,
}

/// The pair in force of a credential that is no more.
const NONE_IN_FORCE: u64 = u64::MAX;

impl Credential {
    /// What decides what it sees: the upstream, the token in use and its organization, then the same with the other token.
    pub fn secrets(&self) -> impl Iterator<Item = [&[u8]; 3]> {
        let in_use = self.preferred();
        let origin = self.origin.as_str().as_bytes();
        let organization = self.org_handle.as_ref();
        let organization = organization.map_or(&[] as &[u8], HeaderValue::as_bytes);
        [Some(in_use), self.other(in_use)]
            .into_iter()
            .flatten()
            .map(move |slot| [origin, self.authorization(slot).as_bytes(), organization])
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
    pub fn purse(&self) -> &Arc<Purse> {
        &self.purse
    }

    /// Whether the upstream is asked with it.
    #[must_use]
    pub fn circuit(&self) -> &Arc<Circuit> {
        &self.circuit
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
    pub fn hold(&self, now: Instant) {
        let held = self.while_in_force(|times| times.held_until = Some(now + HOLD));
        if held.is_some() {
            self.standing.holds.notify_waiters();
            self.standing.refusals.notify_waiters();
        }
    }

    /// Comes when it is held the next time, from this call on.
    pub(super) fn next_hold(&self) -> OwnedNotified {
        self.standing.holds.clone().notified_owned()
    }

    /// Tells who is about to ask with the preferred token that the upstream has just refused it.
    pub(super) fn tell_refusal(&self) {
        self.while_in_force(|_| self.standing.refusals.notify_waiters());
    }

    /// Comes when its preferred token is refused the next time, from this call on.
    pub(super) fn next_refusal(&self) -> OwnedNotified {
        self.standing.refusals.clone().notified_owned()
    }

    /// What `act` gives, unless other tokens are in force; none are put in force meanwhile.
    fn while_in_force<T>(&self, act: impl FnOnce(&mut Times) -> T) -> Option<T> {
        let mut times = self.standing.times.lock();
        self.is_in_force().then(|| act(&mut times))
    }

    #[must_use]
    pub fn is_held(&self, now: Instant) -> bool {
        let held_until = self.standing.times.lock().held_until;
        held_until.is_some_and(|until| until > now)
    }

    /// Its tokens, as `Authorization` values.
    fn tokens(&self) -> impl Iterator<Item = &HeaderValue> {
        std::iter::once(&self.current).chain(&self.next)
    }

    fn has(&self, token: &HeaderValue) -> bool {
        self.tokens().any(|own| own == token)
    }
}

impl Standing {
    fn new() -> Self {
        Self {
            in_force: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            token_switches: AtomicU64::new(0),
            times: Mutex::new(Times {
                refused_or_not_since: Instant::now(),
                held_until: None,
            }),
            holds: Arc::default(),
            refusals: Arc::default(),
        }
    }

    /// Hears only the pair `token_pair` from now on. A new pair is asked with at once: the operator may just have mended it.
    fn put_in_force(&self, token_pair: u64) {
        let mut times = self.times.lock();
        if self.in_force.swap(token_pair, Ordering::AcqRel) != token_pair {
            times.held_until = None;
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

/// All credentials, by name and by the spaces they serve.
#[derive(Debug)]
pub struct Credentials {
    origin: Url,
    by_name: BTreeMap<String, Arc<Credential>>,
    by_space: HashMap<SpaceToken, Arc<Credential>>,
    default: Option<Arc<Credential>>,
    next_id: u32,
    circuit: CircuitConfig,
    quota_per_minute: u32,
    purses: Purses,
}

/// The purse of each token that is configured, or was within the last minute: what was spent with it counts whatever the credential
/// is called, and wherever it was in between.
#[derive(Clone, Debug, Default)]
struct Purses(HashMap<(Origin, HeaderValue), (Arc<Purse>, Instant)>);

impl Purses {
    fn forget(&mut self, now: Instant) {
        self.0
            .retain(|_, (_, seen)| now.saturating_duration_since(*seen) < Purse::MEMORY);
    }

    fn note(&mut self, origin: &Origin, credential: &Credential, now: Instant) {
        for token in credential.tokens() {
            let purse = credential.purse().clone();
            self.0.insert((origin.clone(), token.clone()), (purse, now));
        }
    }

    fn of(&self, origin: &Origin, secrets: &Secrets) -> Option<&Arc<Purse>> {
        let mut tokens = std::iter::once(&secrets.current).chain(&secrets.next);
        let (purse, _) = tokens.find_map(|token| self.0.get(&(origin.clone(), token.clone())))?;
        Some(purse)
    }
}

/// What a reload means for the pages that were read with the credentials before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Succession {
    /// Another organization or another upstream: none of their pages may be shown.
    pub dropped: Vec<CredentialId>,
    /// A token that was unknown before: what it may see is not known until it has been asked with.
    pub distrusted: Vec<CredentialId>,
}

impl Credentials {
    /// Reads every token, from its file where one is named.
    ///
    /// # Errors
    ///
    /// Returns a problem for each token that cannot be read or sent.
    pub fn load(config: &UpstreamConfig) -> Result<Self, Problems> {
        Self::read(config, None).map(|(credentials, _)| credentials)
    }

    /// Reads every token anew. A credential that is the same user as before keeps its pages, quota and standing. Changes nothing of
    /// what is in force: see [`Credentials::succeed`].
    ///
    /// # Errors
    ///
    /// As [`Credentials::load`].
    pub fn reload(&self, config: &UpstreamConfig) -> Result<(Self, Succession), Problems> {
        Self::read(config, Some(self))
    }

    /// Puts these in force in the place of `before`, whose calls under way are heard no more where their tokens are others.
    pub fn succeed(&self, before: &Self) {
        for old in before.all() {
            let goes_on = |new: &Arc<Credential>| Arc::ptr_eq(&new.standing, &old.standing);
            if !self.by_name.get(&old.name).is_some_and(goes_on) {
                old.standing.put_in_force(NONE_IN_FORCE);
            }
        }
        for new in self.all() {
            // A call may have found since they were read that the other token is the good one.
            let old = before.by_name.get(&new.name);
            let prefers_next = goes_on_with(old, new.next.as_ref());
            new.prefers_next.store(prefers_next, Ordering::Relaxed);
            new.standing.put_in_force(new.token_pair);
            new.purse().set_quota(self.quota_per_minute);
        }
    }

    fn read(
        config: &UpstreamConfig,
        before: Option<&Self>,
    ) -> Result<(Self, Succession), Problems> {
        let mut problems = Problems::default();
        let mut all = Self {
            origin: config.base_url().clone(),
            by_name: BTreeMap::new(),
            by_space: HashMap::new(),
            default: None,
            next_id: before.map_or(0, |before| before.next_id),
            circuit: config.circuit.clone(),
            quota_per_minute: config.quota_per_minute,
            purses: before.map(Self::known_purses).unwrap_or_default(),
        };
        let (origin, now) = (all.origin.origin(), Instant::now());
        for (name, section) in &config.credentials {
            let Some(secrets) = Secrets::read(name, section, &mut problems) else {
                continue;
            };
            let known = before.and_then(|before| before.by_name.get(name));
            let credential = all.credential(name, secrets, known, before, config);
            // Two credentials of one token spend from one purse.
            all.purses.note(&origin, &credential, now);
            let spaces = section.spaces.iter();
            all.by_space.extend(
                spaces.filter_map(|space| Some((SpaceToken::new(space).ok()?, credential.clone()))),
            );
            all.by_name.insert(name.clone(), credential);
        }
        all.default = all.by_name.get("default").cloned();
        if !problems.is_empty() {
            return Err(problems);
        }
        let succession = before.map(|before| before.succession(&all));
        Ok((all, succession.unwrap_or_default()))
    }

    fn known_purses(&self) -> Purses {
        let now = Instant::now();
        let mut purses = self.purses.clone();
        purses.forget(now);
        for credential in self.all() {
            purses.note(&self.origin.origin(), credential, now);
        }
        purses
    }

    fn credential(
        &mut self,
        name: &str,
        secrets: Secrets,
        known: Option<&Arc<Credential>>,
        before: Option<&Self>,
        config: &UpstreamConfig,
    ) -> Arc<Credential> {
        let same_origin = before.is_some_and(|before| before.origin == self.origin);
        let same_user = known.filter(|known| same_origin && known.org_handle == secrets.org_handle);
        let id = same_user.map(|known| known.id).unwrap_or_else(|| {
            self.next_id += 1;
            CredentialId(self.next_id)
        });
        let standing = match same_user {
            Some(known) => known.standing.clone(),
            None => Arc::new(Standing::new()),
        };
        let purse = self.purse(&secrets, known, before, config);
        let same_circuit = before.is_some_and(|before| before.circuit == self.circuit);
        let circuit = match same_user.filter(|_| same_circuit) {
            Some(known) => known.circuit.clone(),
            None => Arc::new(Circuit::new(&self.circuit)),
        };
        let token_pair = same_user.map_or(0, |known| {
            let unchanged = known.current == secrets.current && known.next == secrets.next;
            known.token_pair + u64::from(!unchanged)
        });
        let prefers_next = goes_on_with(known, secrets.next.as_ref());
        Arc::new(Credential {
            id,
            name: name.to_owned(),
            org_handle: secrets.org_handle,
            origin: self.origin.clone(),
            current: secrets.current,
            next: secrets.next,
            prefers_next: AtomicBool::new(prefers_next),
            token_pair,
            standing,
            purse,
            circuit,
        })
    }

    /// The quota is the token's, whatever the organization; and the account's, whatever the token.
    fn purse(
        &self,
        secrets: &Secrets,
        known: Option<&Arc<Credential>>,
        before: Option<&Self>,
        config: &UpstreamConfig,
    ) -> Arc<Purse> {
        let origin = self.origin.origin();
        let same_place = before.is_some_and(|before| before.origin.origin() == origin);
        let of_account = || known.filter(|_| same_place).map(|known| known.purse());
        let purse = self
            .purses
            .of(&origin, secrets)
            .or_else(of_account)
            .cloned();
        purse.unwrap_or_else(|| Arc::new(Purse::new(config.quota_per_minute, config.max_queue)))
    }

    /// What became of these credentials in `after`.
    fn succession(&self, after: &Self) -> Succession {
        let mut succession = Succession::default();
        for old in self.all() {
            match after.by_name.get(&old.name).filter(|new| new.id == old.id) {
                None => succession.dropped.push(old.id),
                Some(new) if !old.has(new.authorization(new.preferred())) => {
                    succession.distrusted.push(old.id);
                }
                Some(_) => {}
            }
        }
        succession
    }

    /// The upstream they are good for.
    #[must_use]
    pub fn origin(&self) -> &Url {
        &self.origin
    }

    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Credential>> {
        self.by_name.get(name)
    }

    /// The credential that serves `space`: the one that names it, else the default.
    #[must_use]
    pub fn serving(&self, space: &SpaceToken) -> Option<&Arc<Credential>> {
        self.by_space.get(space).or(self.default.as_ref())
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Credential>> {
        self.by_name.values()
    }
}

/// Whether the token that `old` has in use is `next`: what is in use stays so, wherever it stands in the configuration.
fn goes_on_with(old: Option<&Arc<Credential>>, next: Option<&HeaderValue>) -> bool {
    old.is_some_and(|old| Some(old.authorization(old.preferred())) == next)
}

/// What one section of the configuration says, ready to send.
struct Secrets {
    current: HeaderValue,
    next: Option<HeaderValue>,
    org_handle: Option<HeaderValue>,
}

impl Secrets {
    fn read(name: &str, section: &CredentialConfig, problems: &mut Problems) -> Option<Self> {
        let key = format!("upstream.credentials.{name}");
        let mut token = |read: Result<Option<_>, (&str, String)>| match read {
            Ok(token) => token.map(|token: secrecy::SecretString| {
                let text = format!("Token {}", token.expose_secret());
                let mut value = HeaderValue::try_from(text).expect("a token is visible ASCII");
                value.set_sensitive(true);
                value
            }),
            Err((part, text)) => {
                problems.add(format!("{key}.{part}"), text);
                None
            }
        };
        let current = token(section.read_token().map(Some));
        let next = token(section.read_next_token());
        let org_handle = section.org_handle.as_deref().map(|handle| {
            HeaderValue::from_str(handle).expect("a loaded configuration's handle is visible ASCII")
        });
        Some(Self {
            // While both are the same there is nothing to fall back to.
            next: next.filter(|next| Some(next) != current.as_ref()),
            current: current?,
            org_handle,
        })
    }
}

#[cfg(test)]
mod tests;
