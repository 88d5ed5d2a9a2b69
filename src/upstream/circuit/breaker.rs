//! When to stop asking, and when to try again: a state machine without a clock, a lock or a log of its own.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{CircuitState, Evidence};
use crate::{config::CircuitConfig, domain::PageKey};

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

/// Leave to make one call; to be handed back with how it ended.
#[derive(Debug)]
pub(super) struct Ticket {
    epoch: u64,
}

/// What an ended call changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Opened,
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

    /// How long to wait where a call would be refused now.
    pub(super) fn refuses(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Closed | State::HalfOpen { probing: false } => None,
            State::Open { since } => self.rest(since, now),
            State::HalfOpen { probing: true } => Some(PROBE_UNDER_WAY),
        }
    }

    /// Lets a call through, or says how long to wait.
    pub(super) fn admit(&mut self, now: Instant) -> Result<Ticket, Duration> {
        if let Some(wait) = self.refuses(now) {
            return Err(wait);
        }
        match self.state {
            State::Closed => {}
            State::Open { .. } | State::HalfOpen { .. } => {
                self.enter(State::HalfOpen { probing: true });
            }
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
        match (self.state, works) {
            (State::Closed, Some(works)) => {
                self.window.count(works, now);
                // A call that worked never opens it, whatever the share.
                (!works && self.is_past_bearing(now)).then(|| self.open(now, Change::Opened))
            }
            (State::HalfOpen { .. }, Some(true)) => {
                self.enter(State::Closed);
                self.closed_or_not_since = now;
                Some(Change::Closed)
            }
            (State::HalfOpen { .. }, Some(false)) => Some(self.open(now, Change::StaysOpen)),
            (State::HalfOpen { .. }, None) => {
                self.enter(State::HalfOpen { probing: false });
                None
            }
            (State::Closed, None) | (State::Open { .. }, _) => None,
        }
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

    fn is_past_bearing(&self, now: Instant) -> bool {
        let (calls, failures) = self.window.totals(now);
        // Divided, not multiplied: 7 of 100 is 0.07, but 0.07 * 100 is more than 7.
        calls >= self.min_calls && f64::from(failures) / f64::from(calls) >= self.failure_ratio
    }

    fn open(&mut self, now: Instant, change: Change) -> Change {
        self.window.forget_calls();
        if change == Change::Opened {
            self.closed_or_not_since = now;
        }
        self.enter(State::Open { since: now });
        change
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
    /// Those that failed by themselves; forgotten together with the one failure that was counted for each.
    pages: HashSet<PageKey>,
}

impl Window {
    fn new(length: Duration, now: Instant) -> Self {
        Self {
            length,
            began: now,
            buckets: Default::default(),
        }
    }

    fn count(&mut self, works: bool, now: Instant) {
        let bucket = self.bucket(now);
        bucket.calls = bucket.calls.saturating_add(1);
        bucket.failures = bucket.failures.saturating_add(u32::from(!works));
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

    /// Starts the counts anew. The pages stay: one bad page must not fail one probe after another.
    fn forget_calls(&mut self) {
        for bucket in &mut self.buckets {
            (bucket.calls, bucket.failures) = (0, 0);
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
