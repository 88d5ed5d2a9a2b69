//! The circuit of each credential: an upstream that keeps failing is left alone for a while, then tried with one call at a time.
//!
//! [`Breaker`] decides; [`Circuit`] shares it among the calls of a credential.

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};

use super::error::Evidence;
use crate::{
    config::CircuitConfig,
    domain::{PageKey, SpaceToken},
};

mod breaker;

use self::breaker::Breaker;
pub(super) use self::breaker::{Change, Scope, Ticket};

/// Whether the upstream is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    Closed,
    /// By one call at a time.
    HalfOpen,
    Open,
}

impl CircuitState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    /// As `gateway_circuit_state` shows it.
    #[must_use]
    pub fn as_number(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// The longest that an upstream which fails is left alone because it asks for it.
const LONGEST_LEFT_ALONE: Duration = Duration::from_secs(300);

/// The circuit that all calls with one credential pass.
#[derive(Debug)]
pub struct Circuit {
    /// `None`: failures do not open it.
    breaker: Option<Mutex<Breaker>>,
    /// Until when the upstream asked to be left alone, and since when: a failure with `Retry-After`.
    left_alone: Mutex<Option<LeftAlone>>,
    opened: Arc<Notify>,
}

#[derive(Clone, Copy, Debug)]
struct LeftAlone {
    since: Instant,
    until: Instant,
}

impl Circuit {
    #[must_use]
    pub fn new(config: &CircuitConfig) -> Self {
        let breaker = || Mutex::new(Breaker::new(config, Instant::now()));
        Self {
            breaker: config.enabled.then(breaker),
            left_alone: Mutex::default(),
            opened: Arc::default(),
        }
    }

    #[must_use]
    pub fn state(&self) -> CircuitState {
        let now = Instant::now();
        match (self.left_alone(now), self.breaker()) {
            (Some(_), _) => CircuitState::Open,
            (None, Some(breaker)) => breaker.state(now),
            (None, None) => CircuitState::Closed,
        }
    }

    /// As a call for `space` meets it: closed where it is open for another space alone.
    #[must_use]
    pub fn state_for(&self, space: &SpaceToken) -> CircuitState {
        let is_left_alone = self.left_alone(Instant::now()).is_some();
        let concerns = |breaker: MutexGuard<'_, Breaker>| breaker.concerns(Some(space));
        if is_left_alone || self.breaker().is_some_and(concerns) {
            self.state()
        } else {
            CircuitState::Closed
        }
    }

    /// Since when it is closed, or is not; `None`: it has not been otherwise.
    #[must_use]
    pub fn closed_or_not_since(&self) -> Option<Instant> {
        let left_alone = self.left_alone(Instant::now()).map(|alone| alone.since);
        left_alone.or_else(|| Some(self.breaker()?.closed_or_not_since()))
    }

    /// How long to wait where a call for `space`, or for any, would be refused now.
    #[must_use]
    pub fn refuses(&self, space: Option<&SpaceToken>) -> Option<Duration> {
        let now = Instant::now();
        let left_alone = self.left_alone(now).map(|alone| alone.until - now);
        left_alone.or_else(|| self.breaker()?.refuses(space, now))
    }

    pub(super) fn admit(&self, space: &SpaceToken) -> Result<Option<Ticket>, Duration> {
        let now = Instant::now();
        if let Some(alone) = self.left_alone(now) {
            return Err(alone.until - now);
        }
        self.breaker()
            .map(|mut breaker| breaker.admit(space, now))
            .transpose()
    }

    pub(super) fn record(
        &self,
        ticket: Ticket,
        evidence: Evidence,
        page: &PageKey,
    ) -> Option<Change> {
        let change = self
            .breaker()?
            .record(ticket, evidence, page, Instant::now());
        if matches!(change, Some(Change::Opened(_))) {
            self.opened.notify_waiters();
        }
        change
    }

    /// Comes when it opens the next time, from this call on.
    pub(super) fn next_opening(&self) -> OwnedNotified {
        self.opened.clone().notified_owned()
    }

    /// Makes no call for `pause`, as the upstream asks; `true` where that is news.
    pub(super) fn leave_alone(&self, pause: Duration) -> bool {
        let since = Instant::now();
        let until = since + pause.min(LONGEST_LEFT_ALONE);
        let mut left_alone = self.left_alone.lock();
        let before = left_alone.filter(|alone| alone.until > since);
        *left_alone = Some(LeftAlone {
            since: before.map_or(since, |before| before.since),
            until: before.map_or(until, |before| before.until.max(until)),
        });
        drop(left_alone);
        self.opened.notify_waiters();
        before.is_none()
    }

    fn left_alone(&self, now: Instant) -> Option<LeftAlone> {
        self.left_alone.lock().filter(|alone| alone.until > now)
    }

    fn breaker(&self) -> Option<MutexGuard<'_, Breaker>> {
        let breaker = self.breaker.as_ref()?;
        Some(breaker.lock())
    }
}
