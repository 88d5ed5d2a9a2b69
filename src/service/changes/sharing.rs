//! Which part a replica has in a feed that several share, and what follows from what Redis says. No I/O: the time comes along.

use std::time::Duration;

use tokio::time::Instant;

use super::{feed_state::FeedState, log::Gone, space::Known};
use crate::{
    service::shared_cache::{FillLock, Lease, LookedFeed},
    shared::Nonce,
};

/// For so long readers are told that nothing can be told; then each replica goes on alone.
const LONGEST_OUTAGE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(3600);
/// What tells readers that Redis is the reason.
const CODE: &str = "internal";

/// What part a replica has in a feed.
#[derive(Debug)]
enum Role {
    /// It shares with nobody.
    Alone,
    /// It shows what another stored.
    Follower,
    /// It judges what is read, and stores it before anybody is told.
    Watcher {
        lock: FillLock,
        /// Boxed: few replicas have one.
        working: Box<FeedState>,
        is_stored: bool,
    },
}

/// How a feed is shared.
#[derive(Debug)]
pub(super) struct Sharing {
    /// Whether there is a Redis to share it by.
    is_shared: bool,
    role: Role,
    /// Whether what Redis holds was looked at since the last listener came.
    is_loaded: bool,
    /// What of Redis is here.
    pub(super) version: Option<Nonce>,
    failing_since: Option<Instant>,
    /// Ranges of the credential that all replicas watch.
    pub(super) all_ranges: usize,
}

/// Whether a client can be told anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    Open,
    /// The first range is to be read here.
    Unread,
    ReadElsewhere,
    /// Redis is asked, or told.
    Unknown,
}

/// What is to be done now.
pub(super) enum Duty {
    Look,
    /// By the token of the lock.
    Store(Nonce, Box<FeedState>),
    /// Nothing, as long as Redis is there.
    Hold,
    Wait(Duration),
}

impl Sharing {
    pub(super) fn new(is_shared: bool) -> Self {
        Self {
            is_shared,
            role: match is_shared {
                true => Role::Follower,
                false => Role::Alone,
            },
            is_loaded: !is_shared,
            version: None,
            failing_since: None,
            all_ranges: 0,
        }
    }

    pub(super) fn is_alone(&self) -> bool {
        matches!(self.role, Role::Alone)
    }

    /// Whether pages are judged here.
    pub(super) fn judges(&self) -> bool {
        !matches!(self.role, Role::Follower)
    }

    /// What is not stored yet, or was stored last.
    pub(super) fn working(&self) -> Option<&FeedState> {
        match &self.role {
            Role::Watcher { working, .. } => Some(working),
            Role::Alone | Role::Follower => None,
        }
    }

    /// The same, to be altered, and so to be stored again.
    pub(super) fn working_mut(&mut self) -> Option<&mut FeedState> {
        match &mut self.role {
            Role::Watcher {
                working, is_stored, ..
            } => {
                *is_stored = false;
                Some(working)
            }
            Role::Alone | Role::Follower => None,
        }
    }

    /// Another replica may have told its clients more than is known here.
    pub(super) fn note_listener(&mut self) {
        self.is_loaded &= !self.is_shared || self.working().is_some();
    }

    pub(super) fn follow(&mut self) {
        self.role = Role::Follower;
    }

    /// That of the lock, where it is held.
    pub(super) fn token(&self) -> Option<Nonce> {
        match &self.role {
            Role::Watcher { lock, .. } => Some(lock.token()),
            Role::Alone | Role::Follower => None,
        }
    }
}

impl Known {
    pub(super) fn opening(&self) -> Opening {
        let has_begun = |state: &FeedState| state.feed.watched.has_begun();
        if !self.sharing.is_loaded {
            return Opening::Unknown;
        }
        match (has_begun(&self.seen), self.sharing.judges()) {
            (true, _) => Opening::Open,
            (false, true) if has_begun(self.current()) => Opening::Unknown,
            (false, true) => Opening::Unread,
            (false, false) => Opening::ReadElsewhere,
        }
    }

    pub(super) fn duty(&mut self, linger: Duration, now: Instant) -> Duty {
        let has_begun = self.current().feed.watched.has_begun();
        let is_idle = self.listeners == 0 && (!has_begun || self.idle_since + linger <= now);
        let is_unused = is_idle || self.is_gone();
        match &mut self.sharing.role {
            Role::Watcher { lock, .. } if is_unused || !lock.is_held() => self.sharing.follow(),
            Role::Watcher {
                lock,
                working,
                is_stored,
            } => {
                return match std::mem::replace(is_stored, true) || !has_begun {
                    true => Duty::Hold,
                    false => Duty::Store(lock.token(), working.clone()),
                };
            }
            Role::Alone | Role::Follower => {}
        }
        match self.listeners == 0 || self.is_gone() {
            true => Duty::Wait(LONG),
            false => Duty::Look,
        }
    }

    /// Goes by what Redis holds, and watches where it may. What Redis holds wins, but for one that lost what was stored last. Returns
    /// whether anything is different now.
    pub(super) fn note_looked(
        &mut self,
        looked: LookedFeed,
        found: Option<FeedState>,
        unix_us: i64,
    ) -> bool {
        self.sharing.failing_since = None;
        let was_loaded = std::mem::replace(&mut self.sharing.is_loaded, true);
        let mut is_other = !was_loaded || self.sharing.judges();
        let epoch = looked.epoch.max(self.seen.feed.log.epoch());
        let is_ahead = |found: &FeedState| !found.feed.log.is_behind(&self.seen.feed.log);
        if let Some(found) = found.filter(is_ahead) {
            self.seen.replace_by(found);
            self.sharing.version = looked.version;
            is_other = true;
        }
        if epoch > self.seen.feed.log.epoch() {
            self.restart(epoch, Gone::Purged);
            is_other = true;
        }
        self.sharing.role = match looked.lease {
            Lease::Acquired(lock) => {
                let mut working = Box::new(self.seen.clone());
                // Whatever Redis lost of what the last watcher stored, no number is given twice.
                let log = &mut working.feed.log;
                log.skip_to(u64::try_from(unix_us).unwrap_or_default());
                Role::Watcher {
                    lock,
                    working,
                    is_stored: false,
                }
            }
            Lease::HeldElsewhere(_) | Lease::NotWanted => Role::Follower,
        };
        is_other || self.sharing.judges()
    }

    /// Notes that Redis holds `stored` now; where the space was dropped meanwhile that is over already.
    pub(super) fn note_stored(&mut self, stored: FeedState, version: Nonce) {
        self.sharing.failing_since = None;
        self.sharing.version = Some(version);
        if stored.feed.log.epoch() >= self.seen.feed.log.epoch() {
            self.seen.replace_by(stored);
        }
    }

    /// Redis does not answer. Returns whether that alters what readers are told.
    pub(super) fn note_outage(&mut self, now: Instant) -> bool {
        let since = *self.sharing.failing_since.get_or_insert(now);
        // What was not stored may have been; it is stored again.
        let _ = self.sharing.working_mut();
        let was_loaded = std::mem::replace(&mut self.sharing.is_loaded, true);
        // How it stands is to be loaded, too.
        self.sharing.version = None;
        if self.sharing.is_alone() {
            return !was_loaded;
        }
        let has_begun = self.seen.feed.watched.has_begun();
        if has_begun && now.saturating_duration_since(since) < LONGEST_OUTAGE {
            return self.seen.note_delayed(CODE) || !was_loaded;
        }
        self.sharing.role = Role::Alone;
        if has_begun {
            self.restart(self.seen.feed.log.epoch(), Gone::Restart);
        }
        true
    }
}
