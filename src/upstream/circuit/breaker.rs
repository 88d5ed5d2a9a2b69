//! When to open, probe and close: a state machine without a clock, a lock or a log.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::CircuitState;
use crate::{
    config::CircuitConfig,
    domain::{PageKey, SpaceToken},
    upstream::error::Evidence,
};

/// The steps in which the window slides: a call may leave it up to a tenth of its length too early, never too late.
const BUCKETS: u64 = 10;
/// Failures in a row that open it however long they took: a small quota allows fewer than `min_calls` in any window.
const FAILURES_IN_A_ROW: u32 = 3;
/// The most failed pages remembered in the window; `min_calls` is no larger, so that failing pages alone can open the circuit.
const MOST_PAGES: usize = CircuitConfig::MOST_MIN_CALLS as usize;
/// The `Retry-After` while a probe is under way, whose end nobody can tell.
const PROBE_UNDER_WAY: Duration = Duration::from_secs(1);

/// Counts how calls end, and decides whether another may be made.
#[derive(Debug)]
pub(super) struct Breaker {
    failure_ratio: f64,
    min_calls: u32,
    open_for: Duration,
    window: Window,
    run: Run,
    state: State,
    /// Which calls it refuses while it is not closed.
    scope: Scope,
    /// Since when it has been closed, or has not.
    closed_or_not_since: Instant,
    /// Changes with each state and each probe: calls admitted under an earlier one are not counted.
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { since: Instant },
    HalfOpen { probing: bool },
}

/// Which calls an open circuit refuses: if all failures were of one space, only those of that space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Scope {
    All,
    Space(SpaceToken),
}

/// Permission for one call, to be handed back with how it ended.
#[derive(Debug)]
pub(in crate::upstream) struct Ticket {
    epoch: u64,
}

/// What the end of a call changed.
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
            run: Run::default(),
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

    /// How long to wait, if a call for `space`, or for any space, would be refused now.
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

    /// Whether an open circuit would refuse calls of `space`, or of any space.
    pub(super) fn concerns(&self, space: Option<&SpaceToken>) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Space(failing) => space == Some(failing),
        }
    }

    /// Admits a call for `space`, or returns how long to wait.
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

    /// Counts the end of a call for `page`.
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
        self.run.note(evidence, space, now);
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

    /// Counts a call that no open circuit concerned; enough failures open it.
    fn count(&mut self, works: bool, space: &SpaceToken, now: Instant) -> Option<Change> {
        self.window.count(works, space, now);
        // A success never opens it, whatever the ratio.
        if works {
            return None;
        }
        let failing = if self.exceeds_failure_ratio(now) {
            self.window.failing(now)
        } else if self.run.is_longer_than(self.window.length, now) {
            self.run.failing.clone()
        } else {
            return None;
        };
        let scope = match (self.state, failing) {
            (State::Closed, Failing::One(space)) => Scope::Space(space),
            // It was open for one space already.
            (State::Open { .. } | State::HalfOpen { .. }, _)
            | (State::Closed, Failing::Nobody | Failing::Several) => Scope::All,
        };
        self.window.forget();
        self.run = Run::default();
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

    /// Whether the evidence is a success or a failure; `None`: neither.
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
        // Divided, not multiplied: 7 / 100 is 0.07, but 0.07 * 100 is more than 7.
        calls >= self.min_calls && f64::from(failures) / f64::from(calls) >= self.failure_ratio
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }

    /// The rest of `open_for`.
    fn rest(&self, since: Instant, now: Instant) -> Option<Duration> {
        self.open_for
            .checked_sub(now.saturating_duration_since(since))
            .filter(|rest| !rest.is_zero())
    }
}

/// The calls without an answer since the last that had one: whatever the window holds, the upstream is down.
#[derive(Debug, Default)]
struct Run {
    since: Option<Instant>,
    failures: u32,
    failing: Failing,
}

impl Run {
    fn note(&mut self, evidence: Evidence, space: &SpaceToken, now: Instant) {
        match evidence {
            Evidence::Works => *self = Self::default(),
            Evidence::Fails => {
                self.since.get_or_insert(now);
                self.failures = self.failures.saturating_add(1);
                let failing = std::mem::take(&mut self.failing);
                self.failing = failing.and(Failing::One(space.clone()));
            }
            Evidence::PageFails | Evidence::Nothing => {}
        }
    }

    fn is_longer_than(&self, window: Duration, now: Instant) -> bool {
        let lasts = self.since.is_some_and(|since| now - since >= window);
        lasts && self.failures >= FAILURES_IN_A_ROW
    }
}

/// How recent calls ended: a ring of counters of fixed size.
#[derive(Debug)]
struct Window {
    length: Duration,
    began: Instant,
    buckets: [Bucket; BUCKETS as usize],
}

/// The calls that ended within one step.
#[derive(Debug, Default)]
struct Bucket {
    step: u64,
    calls: u32,
    failures: u32,
    failing: Failing,
    /// Pages that failed on their own, each counted as one failure.
    pages: HashSet<PageKey>,
}

/// The spaces whose calls failed.
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

    /// The spaces whose calls failed within the window.
    fn failing(&self, now: Instant) -> Failing {
        self.live(now)
            .map(|bucket| bucket.failing.clone())
            .fold(Failing::Nobody, Failing::and)
    }

    /// Notes that `page` failed on its own; `false` if it already has within the window.
    ///
    /// `false` too beyond [`MOST_PAGES`]: a page that cannot be noted would be counted each time.
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

    /// The number of calls, and of those that failed.
    fn totals(&self, now: Instant) -> (u32, u32) {
        self.live(now).fold((0, 0), |(calls, failures), bucket| {
            (
                calls.saturating_add(bucket.calls),
                failures.saturating_add(bucket.failures),
            )
        })
    }

    /// Clears everything: a page that failed may fail a probe once more.
    fn forget(&mut self) {
        self.buckets = Default::default();
    }

    /// Clears the counts but keeps the pages: one bad page must not fail every probe.
    fn forget_calls(&mut self) {
        for bucket in &mut self.buckets {
            (bucket.calls, bucket.failures) = (0, 0);
            bucket.failing = Failing::Nobody;
        }
    }

    /// The bucket of `now`, emptied if it was last used a window ago.
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
