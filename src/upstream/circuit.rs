//! The circuit of each credential: it opens when the upstream keeps failing, and half-opens later for one probe at a time.
//!
//! [`Breaker`] decides; [`Circuit`] shares it among the calls of a credential and adds the pauses that `Retry-After` asks for.

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

/// Whether calls are let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    Closed,
    /// One probe at a time.
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

/// The longest pause that a failure's `Retry-After` may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The circuit of one credential, which all its calls pass.
#[derive(Debug)]
pub struct Circuit {
    /// `None`: turned off, failures do not open it.
    breaker: Option<Mutex<Breaker>>,
    /// The pause that a failure with `Retry-After` asked for.
    paused: Mutex<Option<Paused>>,
    opened: Arc<Notify>,
}

#[derive(Clone, Copy, Debug)]
struct Paused {
    since: Instant,
    until: Instant,
}

impl Circuit {
    #[must_use]
    pub fn new(config: &CircuitConfig) -> Self {
        let breaker = || Mutex::new(Breaker::new(config, Instant::now()));
        Self {
            breaker: config.enabled.then(breaker),
            paused: Mutex::default(),
            opened: Arc::default(),
        }
    }

    #[must_use]
    pub fn state(&self) -> CircuitState {
        let now = Instant::now();
        match (self.paused(now), self.breaker()) {
            (Some(_), _) => CircuitState::Open,
            (None, Some(breaker)) => breaker.state(now),
            (None, None) => CircuitState::Closed,
        }
    }

    /// The state for calls of `space`: closed if it is open only for another space.
    #[must_use]
    pub fn state_for(&self, space: &SpaceToken) -> CircuitState {
        let is_paused = self.paused(Instant::now()).is_some();
        let concerns = |breaker: MutexGuard<'_, Breaker>| breaker.concerns(Some(space));
        if is_paused || self.breaker().is_some_and(concerns) {
            self.state()
        } else {
            CircuitState::Closed
        }
    }

    /// Since when it has been closed, or has not; `None`: always closed.
    #[must_use]
    pub fn closed_or_not_since(&self) -> Option<Instant> {
        let paused = self.paused(Instant::now()).map(|paused| paused.since);
        paused.or_else(|| Some(self.breaker()?.closed_or_not_since()))
    }

    /// How long to wait, if a call for `space`, or for any space, would be refused now.
    #[must_use]
    pub fn refuses(&self, space: Option<&SpaceToken>) -> Option<Duration> {
        let now = Instant::now();
        let paused = self.paused(now).map(|paused| paused.until - now);
        paused.or_else(|| self.breaker()?.refuses(space, now))
    }

    pub(super) fn admit(&self, space: &SpaceToken) -> Result<Option<Ticket>, Duration> {
        let now = Instant::now();
        if let Some(paused) = self.paused(now) {
            return Err(paused.until - now);
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

    /// Completes when it opens the next time, from this call on.
    pub(super) fn next_opening(&self) -> OwnedNotified {
        self.opened.clone().notified_owned()
    }

    /// Refuses calls for `pause`, as the upstream asked; `true` if calls were not paused before.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let since = Instant::now();
        let until = since + pause.min(LONGEST_PAUSE);
        let mut paused = self.paused.lock();
        let before = paused.filter(|paused| paused.until > since);
        *paused = Some(Paused {
            since: before.map_or(since, |before| before.since),
            until: before.map_or(until, |before| before.until.max(until)),
        });
        drop(paused);
        self.opened.notify_waiters();
        before.is_none()
    }

    fn paused(&self, now: Instant) -> Option<Paused> {
        self.paused.lock().filter(|paused| paused.until > now)
    }

    fn breaker(&self) -> Option<MutexGuard<'_, Breaker>> {
        let breaker = self.breaker.as_ref()?;
        Some(breaker.lock())
    }
}
