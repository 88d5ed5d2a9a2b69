//! When to stop asking, and when to try again: a state machine without a clock, a lock or a log of its own.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::CircuitState;
use crate::{
    config::CircuitConfig,
    domain::{PageKey, SpaceToken},
    upstream::error::Evidence,
};

/// In how many steps the window slides: it may forget what happened up to a tenth of its length too early, never too late.
const BUCKETS: u64 = 10;
/// Most pages remembered to have failed within the window; `min_calls` is no larger, so that pages alone can open the circuit.
const MOST_PAGES: usize = CircuitConfig::MOST_MIN_CALLS as usize;
/// What is told to wait while a probe is under way: its end may open or close the circuit, and nobody knows when.
const PROBE_UNDER_WAY: Duration = Duration::from_secs(1);

/// Counts how calls end and says whether another may be made.
#[derive(Debug)]
pub(super) struct Breaker {
    failure_ratio: f64,
    min_calls: u32,
    open_for: Duration,
    window: Window,
    state: State,
    /// Whom it is open for, while it is not closed.
    scope: Scope,
    /// Since when it is closed, or is not.
    closed_or_not_since: Instant,
    /// Another one after each change of state and for each probe: what was let through before tells nothing about now.
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { since: Instant },
    HalfOpen { probing: bool },
}

/// For whom it is open: where all that failed was one space's, the others have nothing to fear, and none of their calls is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Scope {
    All,
    Space(SpaceToken),
}

/// Leave to make one call; to be handed back with how it ended.
#[derive(Debug)]
pub(in crate::upstream) struct Ticket {
    epoch: u64,
}

/// What an ended call changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Change {
    Opened(Scope),
    /// The probe failed.
    StaysOpen,
    Closed,
}

impl Breaker {
    pub(super) fn new(config: &CircuitConfig, now: Instant) -> Self {
        Self {
            failure_ratio: config.failure_ratio,
            min_calls: config.min_calls,
            open_for: config.open_for,
            window: Window::new(config.window, now),
            state: State::Closed,
            scope: Scope::All,
            closed_or_not_since: now,
            epoch: 0,
        }
    }

    pub(super) fn state(&self, now: Instant) -> CircuitState {
        match self.state {
            State::Closed => CircuitState::Closed,
            State::Open { since } if self.rest(since, now).is_some() => CircuitState::Open,
            State::Open { .. } | State::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    pub(super) fn closed_or_not_since(&self) -> Instant {
        self.closed_or_not_since
    }

    /// How long to wait where a call for `space`, or for any, would be refused now.
    pub(super) fn refuses(&self, space: Option<&SpaceToken>, now: Instant) -> Option<Duration> {
        if !self.concerns(space) {
            return None;
        }
        match self.state {
            State::Closed | State::HalfOpen { probing: false } => None,
            State::Open { since } => self.rest(since, now),
            State::HalfOpen { probing: true } => Some(PROBE_UNDER_WAY),
        }
    }

    /// Whether it is open, if it is, for `space` too, or for all.
    pub(super) fn concerns(&self, space: Option<&SpaceToken>) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Space(failing) => space == Some(failing),
        }
    }

    /// Lets a call for `space` through, or says how long to wait.
    pub(super) fn admit(&mut self, space: &SpaceToken, now: Instant) -> Result<Ticket, Duration> {
        if let Some(wait) = self.refuses(Some(space), now) {
            return Err(wait);
        }
        match self.state {
            State::Open { .. } | State::HalfOpen { .. } if self.concerns(Some(space)) => {
                self.enter(State::HalfOpen { probing: true });
            }
            State::Closed | State::Open { .. } | State::HalfOpen { .. } => {}
        }
        Ok(Ticket { epoch: self.epoch })
    }

    /// Takes in what the end of a call for `page` tells.
    pub(super) fn record(
        &mut self,
        Ticket { epoch }: Ticket,
        evidence: Evidence,
        page: &PageKey,
        now: Instant,
    ) -> Option<Change> {
        if epoch != self.epoch {
            return None;
        }
        let works = self.verdict(evidence, page, now);
        let space = &page.list.space.space;
        match (self.state, works) {
            (_, Some(works)) if !self.concerns(Some(space)) => self.count(works, space, now),
            (State::Closed, Some(works)) => self.count(works, space, now),
            (State::HalfOpen { .. }, Some(true)) => {
                self.close(now);
                Some(Change::Closed)
            }
            (State::HalfOpen { .. }, Some(false)) => {
                self.window.forget_calls();
                self.enter(State::Open { since: now });
                Some(Change::StaysOpen)
            }
            (State::HalfOpen { .. }, None) if self.concerns(Some(space)) => {
                self.enter(State::HalfOpen { probing: false });
                None
            }
            (State::Closed | State::HalfOpen { .. }, None) | (State::Open { .. }, _) => None,
        }
    }

    /// Counts a call that the circuit, open or not, has nothing to do with.
    fn count(&mut self, works: bool, space: &SpaceToken, now: Instant) -> Option<Change> {
        self.window.count(works, space, now);
        // A call that worked never opens it, whatever the share.
        if works || !self.exceeds_failure_ratio(now) {
            return None;
        }
        let scope = match (self.state, self.window.failing(now)) {
            (State::Closed, Failing::One(space)) => Scope::Space(space),
            // Open for one space already.
            (State::Open { .. } | State::HalfOpen { .. }, _)
            | (State::Closed, Failing::Nobody | Failing::Several) => Scope::All,
        };
        self.window.forget();
        self.closed_or_not_since = now;
        self.scope = scope.clone();
        self.enter(State::Open { since: now });
        Some(Change::Opened(scope))
    }

    fn close(&mut self, now: Instant) {
        self.scope = Scope::All;
        self.closed_or_not_since = now;
        self.enter(State::Closed);
    }

    /// Whether the upstream works by this evidence; `None`: it does not tell.
    fn verdict(&mut self, evidence: Evidence, page: &PageKey, now: Instant) -> Option<bool> {
        match evidence {
            Evidence::Works => Some(true),
            Evidence::Fails => Some(false),
            Evidence::PageFails => self.window.is_first_failure(page, now).then_some(false),
            Evidence::Nothing => None,
        }
    }

    fn exceeds_failure_ratio(&self, now: Instant) -> bool {
        let (calls, failures) = self.window.totals(now);
        // Divided, not multiplied: 7 of 100 is 0.07, but 0.07 * 100 is more than 7.
        calls >= self.min_calls && f64::from(failures) / f64::from(calls) >= self.failure_ratio
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }

    /// How much of `open_for` is left.
    fn rest(&self, since: Instant, now: Instant) -> Option<Duration> {
        self.open_for
            .checked_sub(now.saturating_duration_since(since))
            .filter(|rest| !rest.is_zero())
    }
}

/// How calls ended lately: a ring of counts, so that its size does not follow from how many there were.
#[derive(Debug)]
struct Window {
    length: Duration,
    began: Instant,
    buckets: [Bucket; BUCKETS as usize],
}

/// The calls that ended in one step of the window.
#[derive(Debug, Default)]
struct Bucket {
    step: u64,
    calls: u32,
    failures: u32,
    failing: Failing,
    /// Those that failed by themselves; forgotten together with the one failure that was counted for each.
    pages: HashSet<PageKey>,
}

/// Whose calls failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Failing {
    #[default]
    Nobody,
    One(SpaceToken),
    Several,
}

impl Failing {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nobody, other) => other,
            (own, Self::Nobody) => own,
            (Self::One(own), Self::One(other)) if own == other => Self::One(own),
            (Self::One(_) | Self::Several, Self::One(_) | Self::Several) => Self::Several,
        }
    }
}

impl Window {
    fn new(length: Duration, now: Instant) -> Self {
        Self {
            length,
            began: now,
            buckets: Default::default(),
        }
    }

    fn count(&mut self, works: bool, space: &SpaceToken, now: Instant) {
        let bucket = self.bucket(now);
        bucket.calls = bucket.calls.saturating_add(1);
        if !works {
            bucket.failures = bucket.failures.saturating_add(1);
            let failing = std::mem::take(&mut bucket.failing);
            bucket.failing = failing.and(Failing::One(space.clone()));
        }
    }

    /// Whose calls failed within the window.
    fn failing(&self, now: Instant) -> Failing {
        self.live(now)
            .map(|bucket| bucket.failing.clone())
            .fold(Failing::Nobody, Failing::and)
    }

    /// Notes that `page` failed by itself; `false` where it did so already within the window.
    ///
    /// Beyond [`MOST_PAGES`] none is taken for the first: a page that was not noted could be counted without end.
    fn is_first_failure(&mut self, page: &PageKey, now: Instant) -> bool {
        let mut noted = 0;
        for bucket in self.live(now) {
            if bucket.pages.contains(page) {
                return false;
            }
            noted += bucket.pages.len();
        }
        noted < MOST_PAGES && self.bucket(now).pages.insert(page.clone())
    }

    /// Calls and how many of them failed.
    fn totals(&self, now: Instant) -> (u32, u32) {
        self.live(now).fold((0, 0), |(calls, failures), bucket| {
            (
                calls.saturating_add(bucket.calls),
                failures.saturating_add(bucket.failures),
            )
        })
    }

    /// Starts anew: a page that failed may fail one probe too.
    fn forget(&mut self) {
        self.buckets = Default::default();
    }

    /// Starts the counts anew. The pages stay: one bad page must not fail one probe after another.
    fn forget_calls(&mut self) {
        for bucket in &mut self.buckets {
            (bucket.calls, bucket.failures) = (0, 0);
            bucket.failing = Failing::Nobody;
        }
    }

    /// The bucket of `now`, emptied of what lies a whole window back.
    fn bucket(&mut self, now: Instant) -> &mut Bucket {
        let step = self.step(now);
        let place = usize::try_from(step % BUCKETS).expect("a remainder of ten fits");
        let bucket = &mut self.buckets[place];
        if bucket.step != step {
            *bucket = Bucket {
                step,
                ..Bucket::default()
            };
        }
        bucket
    }

    fn live(&self, now: Instant) -> impl Iterator<Item = &Bucket> {
        let oldest = (self.step(now) + 1).saturating_sub(BUCKETS);
        self.buckets
            .iter()
            .filter(move |bucket| bucket.step >= oldest)
    }

    fn step(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.began).as_nanos();
        let step = passed * u128::from(BUCKETS) / self.length.as_nanos().max(1);
        u64::try_from(step).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests;
