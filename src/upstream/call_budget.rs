//! The calls that one credential may make, counted so that no minute sees more than its plan allows.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    fair_queue::{FairQueue, QueueFull},
    pause::CallLimits,
    priority::Priority,
    waiters::Waiters,
};
use crate::shared::{Calls, Grant, SharedCall, Unavailable};

const MINUTE: Duration = Duration::from_secs(60);
/// The longest that an upstream's `Retry-After` is believed.
const LONGEST_BLOCK: Duration = Duration::from_secs(3600);
/// The shortest pause after a throttle that names none; it doubles while throttles follow each other, up to a minute.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Calls of the last minute that are remembered: no quota is larger.
const MOST_REMEMBERED: usize = 65_536;
/// One call in this many is kept back from background fills.
const RESERVE: u32 = 5;

/// How soon a waiter looks again while Redis is away: it may be back at any moment.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Why no call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetExhausted {
    /// None is left; one may be after this time.
    RetryAfter(Duration),
    /// Too many wait for one.
    QueueFull,
}

impl From<Duration> for BudgetExhausted {
    fn from(wait: Duration) -> Self {
        Self::RetryAfter(wait)
    }
}

impl From<QueueFull> for BudgetExhausted {
    fn from(_: QueueFull) -> Self {
        Self::QueueFull
    }
}

/// The calls one credential may make.
#[derive(Debug)]
pub struct CallBudget {
    /// Calls a minute; 0: as many as the upstream's own headers allow.
    configured: AtomicU32,
    /// Who waits for a call; woken when one ends, since its position in the minute is known only then.
    queue: FairQueue,
    /// What replicas share, where they do: then each call is asked for there too.
    shared: OnceLock<Arc<Calls>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_flight: u32,
    /// When each call of the last minute ended, oldest first.
    ended: VecDeque<Instant>,
    /// Calls made with this credential by other programs, and until when they count.
    external_calls: Option<(u32, Instant)>,
    blocked_until: Option<Instant>,
    /// Throttles in a row that named no pause.
    unexplained_throttles: u32,
    learned: Option<u32>,
    /// Until then all replicas together have spent the quota.
    shared_until: Option<Instant>,
    /// Until then the previous process may have made calls that nobody knows of.
    cautious_until: Option<Instant>,
    is_closed: bool,
}

/// The state of a budget, with times relative to the moment it was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BudgetSnapshot {
    /// How long ago each call ended.
    pub ago: Vec<Duration>,
    /// Calls made by other programs, and how long they count.
    pub external_calls: Option<(u32, Duration)>,
    /// How much longer no call may be made.
    pub blocked_for: Option<Duration>,
    /// Calls a minute as the upstream told.
    pub learned: Option<u32>,
}

impl CallBudget {
    /// For how long what was spent counts.
    pub const MEMORY: Duration = MINUTE;

    /// A budget of `quota_per_minute` calls, for which `max_queue` may wait.
    #[must_use]
    pub fn new(quota_per_minute: u32, max_queue: usize) -> Self {
        Self {
            configured: AtomicU32::new(quota_per_minute),
            queue: FairQueue::new(max_queue),
            shared: OnceLock::new(),
            state: Mutex::new(State {
                cautious_until: Some(Instant::now() + MINUTE),
                ..State::default()
            }),
        }
    }

    /// Asks for each call among all replicas from now on; what is shared already stays so.
    pub fn share(&self, calls: Arc<Calls>) {
        let _ = self.shared.set(calls);
    }

    /// What replicas share.
    #[must_use]
    pub fn shared(&self) -> Option<&Arc<Calls>> {
        self.shared.get()
    }

    /// What the next process must know. No call is made from now on.
    pub fn close(&self, now: Instant) -> BudgetSnapshot {
        let mut state = self.state.lock();
        state.forget(now);
        let left = |until: Option<Instant>| until.map(|until| until.saturating_duration_since(now));
        // A call in flight ends by now, or is never heard of again.
        let in_flight = (0..state.in_flight).map(|_| Duration::ZERO);
        let spent = BudgetSnapshot {
            ago: state
                .ended
                .iter()
                .map(|ended| now.saturating_duration_since(*ended))
                .chain(in_flight)
                .collect(),
            external_calls: state
                .external_calls
                .map(|(count, until)| (count, until - now)),
            blocked_for: left(state.blocked_until).filter(|left| !left.is_zero()),
            learned: state.learned,
        };
        state.is_closed = true;
        spent
    }

    /// Continues from `spent`, so that the first minute need not be a cautious one.
    pub fn resume(&self, spent: &BudgetSnapshot, now: Instant) {
        let mut state = self.state.lock();
        // What was longer ago than this machine runs counts no more.
        let at = |ago: Duration| now.checked_sub(ago);
        state.ended = spent.ago.iter().filter_map(|ago| at(*ago)).collect();
        state.ended.make_contiguous().sort_unstable();
        state.external_calls = spent
            .external_calls
            .map(|(count, left)| (count, now + left.min(MINUTE)));
        state.blocked_until = spent.blocked_for.map(|left| now + left.min(LONGEST_BLOCK));
        state.learned = spent.learned;
        state.cautious_until = None;
    }

    /// Changes what is configured; what was spent stays spent.
    pub fn set_quota(&self, per_minute: u32) {
        self.configured.store(per_minute, Ordering::Relaxed);
        self.queue.wake();
    }

    fn configured(&self) -> u32 {
        self.configured.load(Ordering::Relaxed)
    }

    /// Calls allowed a minute, as configured or as the upstream says; `None`: unlimited.
    #[must_use]
    pub fn per_minute(&self) -> Option<u32> {
        self.limit(&self.state.lock())
    }

    fn limit(&self, state: &State) -> Option<u32> {
        let limit = match (self.configured(), state.learned) {
            (0, learned) => learned?,
            (configured, learned) => learned.map_or(configured, |l| l.min(configured)),
        };
        Some(
            self.shared
                .get()
                .map_or(limit, |calls| calls.share_of(limit)),
        )
    }

    /// Calls left in this minute; `None`: no limit is known.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Option<u32> {
        let mut state = self.state.lock();
        let limit = self.limit(&state)?;
        state.forget(now);
        if !state.blocked_for(now).is_zero() {
            return Some(0);
        }
        Some(
            self.allowed(&state, limit, now)
                .saturating_sub(state.used()),
        )
    }

    /// How many calls wait for the quota.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Waits until a call may be made: as long as the highest priority of `waiters` warrants, and until `given_up` at most.
    ///
    /// Clients take turns, so that one with many requests does not delay the others.
    ///
    /// # Errors
    ///
    /// Returns why there is none.
    pub async fn acquire(
        self: &Arc<Self>,
        waiters: &Waiters,
        given_up: Instant,
    ) -> Result<Call, BudgetExhausted> {
        loop {
            let priority = waiters.priority();
            match self.acquire_as(priority, waiters, given_up).await {
                // A waiter of a higher priority has joined.
                Err(_) if waiters.priority() < priority => {}
                spent => return spent,
            }
        }
    }

    async fn acquire_as(
        self: &Arc<Self>,
        priority: Priority,
        waiters: &Waiters,
        given_up: Instant,
    ) -> Result<Call, BudgetExhausted> {
        let now = Instant::now();
        match priority {
            // Without a limit there is no queue.
            Priority::Waiting | Priority::Retry if self.is_bounded(now) => {
                self.wait_in_queue(waiters, given_up).await
            }
            Priority::Waiting | Priority::Retry => Ok(self.take(priority, now).await?),
            Priority::HasFallback | Priority::Background => {
                self.yield_to_queue(now)?;
                Ok(self.take(priority, now).await?)
            }
        }
    }

    /// Whether a call could be had now.
    ///
    /// # Errors
    ///
    /// Returns after what time one may be possible.
    pub fn would_take(&self, priority: Priority, now: Instant) -> Result<(), Duration> {
        self.yield_to_queue(now)?;
        self.check(&mut self.state.lock(), priority, now)
    }

    /// A call with a stale fallback, or that nobody waits for, goes after all that wait with nothing to serve.
    fn yield_to_queue(&self, now: Instant) -> Result<(), Duration> {
        if !self.queue.is_empty() && self.is_bounded(now) {
            return Err(self.wait_of_one().max(self.state.lock().blocked_for(now)));
        }
        Ok(())
    }

    fn is_bounded(&self, now: Instant) -> bool {
        let state = self.state.lock();
        self.limit(&state).is_some() || !state.blocked_for(now).is_zero()
    }

    async fn wait_in_queue(
        self: &Arc<Self>,
        waiters: &Waiters,
        given_up: Instant,
    ) -> Result<Call, BudgetExhausted> {
        let now = Instant::now();
        // With nobody ahead there is no need to queue, nor to have room for a queue.
        if self.queue.is_empty()
            && let Ok(call) = self.take(waiters.priority(), now).await
        {
            return Ok(call);
        }
        // Each waiter ahead needs a call too, beyond those that are left.
        let ahead = u32::try_from(self.queue.ahead_of(waiters)).unwrap_or(u32::MAX);
        let ahead = ahead.saturating_sub(self.remaining(now).unwrap_or(u32::MAX));
        let in_line = self.wait_of_one().saturating_mul(ahead);
        let at_best = in_line.max(self.state.lock().blocked_for(now));
        if ahead > 0 && now + at_best > given_up {
            return Err(at_best.into());
        }
        let taken = self.queue.wait(waiters, || async {
            let now = Instant::now();
            match self.take(waiters.priority(), now).await {
                Ok(call) => ControlFlow::Break(Ok(call)),
                Err(wait) if now + wait > given_up => ControlFlow::Break(Err(wait)),
                Err(wait) => ControlFlow::Continue(Some(wait)),
            }
        });
        // A waiter that is not first is never asked whether it gives up.
        match tokio::time::timeout_at(given_up, taken).await {
            Ok(taken) => Ok(taken??),
            Err(_) => {
                let held = self.state.lock().blocked_for(Instant::now());
                Err(self.wait_of_one().max(held).into())
            }
        }
    }

    /// How long a call takes to come free on average.
    fn wait_of_one(&self) -> Duration {
        self.per_minute()
            .map_or(Duration::ZERO, |limit| MINUTE / limit.max(1))
    }

    /// Takes a call if one may be made now, by what this process counts and by what all replicas do.
    async fn take(self: &Arc<Self>, priority: Priority, now: Instant) -> Result<Call, Duration> {
        let mut call = self.take_own(priority, now)?;
        if let Some(calls) = self.shared.get() {
            call.shared = self.take_shared(calls, priority).await?;
        }
        call.is_made = true;
        Ok(call)
    }

    fn take_own(self: &Arc<Self>, priority: Priority, now: Instant) -> Result<Call, Duration> {
        let mut state = self.state.lock();
        self.check(&mut state, priority, now)?;
        state.in_flight += 1;
        Ok(Call {
            budget: self.clone(),
            shared: None,
            is_made: false,
        })
    }

    /// Takes one of the calls of all replicas; `None` where nothing is counted.
    async fn take_shared(
        &self,
        calls: &Arc<Calls>,
        priority: Priority,
    ) -> Result<Option<SharedCall>, Duration> {
        let Some(limit) = self.per_minute() else {
            return Ok(None);
        };
        match calls.ask(limit - reserve(limit, priority)).await {
            Ok(Grant::Granted(call)) => Ok(Some(call)),
            Ok(Grant::Refused(wait)) => {
                // The reserve kept back from background fills is still there for the rest.
                if priority != Priority::Background {
                    self.state.lock().shared_until = Some(Instant::now() + wait);
                }
                Err(wait)
            }
            // Redis may have gone just now: then what other replicas spent is not known.
            Err(Unavailable) => {
                self.check_shared(&self.state.lock(), Instant::now())?;
                Ok(Some(calls.alone()))
            }
        }
    }

    /// Whether one more call is allowed now; if not, how long until it may be.
    fn check(&self, state: &mut State, priority: Priority, now: Instant) -> Result<(), Duration> {
        if state.is_closed {
            return Err(MINUTE);
        }
        let held = state.blocked_for(now);
        match self.check_count(state, priority, now) {
            Err(wait) => Err(wait.max(held)),
            Ok(()) if held.is_zero() => Ok(()),
            Ok(()) => Err(held),
        }
    }

    /// Whether what was spent leaves one more call; if not, how long until it may.
    fn check_count(
        &self,
        state: &mut State,
        priority: Priority,
        now: Instant,
    ) -> Result<(), Duration> {
        if let Some(limit) = self.limit(state) {
            self.check_shared(state, now)?;
            state.forget(now);
            let allowed = self.allowed(state, limit, now) - reserve(limit, priority);
            // Half a minute's calls at once, the rest evenly: a window that starts anywhere sees no double edge.
            let burst = limit.div_ceil(2);
            let burst_window = MINUTE * burst / limit.max(1);
            // External calls count for the whole minute: nobody knows when in it they were made.
            let (external, until) = state.external_calls.unwrap_or((0, now));
            let own = allowed.saturating_sub(external);
            state
                .room(own, MINUTE, now)
                .map_err(|wait| match external {
                    0 => wait,
                    _ => wait.min(until - now),
                })?;
            state.room(burst.min(allowed), burst_window, now)?;
        }
        Ok(())
    }

    /// Whether all replicas together have a call left, as far as this one knows without asking.
    fn check_shared(&self, state: &State, now: Instant) -> Result<(), Duration> {
        let Some(calls) = self.shared.get() else {
            return Ok(());
        };
        if let Some(wait) = calls.blocked_for(now) {
            return Err(wait.min(LOOK_AGAIN));
        }
        match state.shared_until.filter(|until| *until > now) {
            Some(until) if calls.is_counted() => Err(until - now),
            Some(_) | None => Ok(()),
        }
    }

    /// What may be spent in the minute that ends now. In the process's first minute it is half: nobody knows what the process
    /// before it spent.
    fn allowed(&self, state: &State, limit: u32, now: Instant) -> u32 {
        let is_cautious = state.cautious_until.is_some_and(|until| until > now);
        if self.configured() > 0 && is_cautious {
            limit.div_ceil(2)
        } else {
            limit
        }
    }

    /// Corrects the count by what an answer's header says that was received at `now`.
    pub fn learn(&self, limits: &CallLimits, now: Instant) {
        let mut state = self.state.lock();
        if state.blocked_for(now).is_zero() {
            state.unexplained_throttles = 0;
        }
        let reset = limits.reset_in.unwrap_or(MINUTE).min(MINUTE);
        state.note_limits(limits, now + reset, now);
        if limits.is_spent() {
            self.block(&mut state, reset, now);
        }
    }

    /// Makes no call for as long as the upstream asked when it refused one at `now`; returns how long that is.
    ///
    /// Where it names no time, or one that has passed, there is a pause all the same, and a longer one each time.
    pub fn throttled(&self, limits: &CallLimits, now: Instant) -> Duration {
        let mut state = self.state.lock();
        let asked = limits.pause();
        let until = now + asked.unwrap_or(MINUTE).min(MINUTE);
        state.note_limits(limits, until, now);
        let pause = match asked {
            Some(pause) => pause,
            // Calls that were under way together are refused together: that is one throttle.
            None if !state.blocked_for(now).is_zero() => Duration::ZERO,
            None => {
                let limit = self.limit(&state);
                state.unexplained_pause(limit)
            }
        };
        self.block(&mut state, pause, now);
        // The next caller gets the same answer.
        let next = self.check(&mut state, Priority::Waiting, now);
        next.err().unwrap_or_default()
    }

    fn block(&self, state: &mut State, pause: Duration, now: Instant) {
        let pause = pause.min(LONGEST_BLOCK);
        let until = Some(now + pause);
        if until <= state.blocked_until {
            return;
        }
        state.blocked_until = until;
        if let Some(calls) = self.shared.get() {
            calls.block_all(pause);
        }
    }
}

/// How many of `limit` calls are kept back from calls of this priority.
fn reserve(limit: u32, priority: Priority) -> u32 {
    match priority {
        Priority::Background => limit / RESERVE,
        Priority::Waiting | Priority::Retry | Priority::HasFallback => 0,
    }
}

impl State {
    /// How long no call may be made because the upstream asked for it.
    fn blocked_for(&self, now: Instant) -> Duration {
        let until = self.blocked_until.unwrap_or(now);
        until.saturating_duration_since(now)
    }

    /// Takes in what the upstream says of its count; external calls count until `until`.
    fn note_limits(&mut self, limits: &CallLimits, until: Instant, now: Instant) {
        if let Some(limit) = limits.limit.filter(|limit| *limit > 0) {
            self.learned = Some(limit);
        }
        let (Some(limit), Some(remaining)) = (limits.limit, limits.remaining) else {
            return;
        };
        self.forget(now);
        let spent = limit.saturating_sub(remaining);
        // This very call is still in flight, and in the upstream's count.
        let ours = self.in_flight + u32::try_from(self.ended.len()).unwrap_or(u32::MAX);
        let external = spent.saturating_sub(ours);
        self.external_calls = (external > 0).then_some((external, until));
    }

    /// How long to pause after a throttle that does not say: a call's share of the minute, twice as long each time.
    fn unexplained_pause(&mut self, limit: Option<u32>) -> Duration {
        let share = limit.map_or(Duration::ZERO, |limit| MINUTE / limit.max(1));
        let doubled = 1 << self.unexplained_throttles.min(6);
        self.unexplained_throttles += 1;
        (share.max(SHORTEST_PAUSE) * doubled).min(MINUTE)
    }

    fn note_ended(&mut self, now: Instant) {
        self.forget(now);
        if self.ended.len() == MOST_REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(now);
    }

    /// Drops what no longer counts.
    fn forget(&mut self, now: Instant) {
        while self
            .ended
            .front()
            .is_some_and(|ended| now - *ended >= MINUTE)
        {
            self.ended.pop_front();
        }
        if self.external_calls.is_some_and(|(_, until)| until <= now) {
            self.external_calls = None;
        }
    }

    /// Calls that count now: only after [`State::forget`].
    fn used(&self) -> u32 {
        let ended = u32::try_from(self.ended.len()).unwrap_or(u32::MAX);
        let external = self.external_calls.map_or(0, |(count, _)| count);
        ended
            .saturating_add(self.in_flight)
            .saturating_add(external)
    }

    /// Whether one more call keeps to `most` within `window`; if not, how long until it may.
    fn room(&self, most: u32, window: Duration, now: Instant) -> Result<(), Duration> {
        let Some(left) = most.checked_sub(self.in_flight).filter(|left| *left > 0) else {
            // Nobody knows when a call in flight ends; `call_ended` tells.
            return Err(window);
        };
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        // The call that must be out of the window before another fits.
        let Some(blocking) = self.ended.len().checked_sub(left) else {
            return Ok(());
        };
        let free_at = self.ended[blocking] + window;
        if free_at > now {
            Err(free_at - now)
        } else {
            Ok(())
        }
    }
}

/// A call that was paid for. It counts from its end, which is no earlier than the upstream counts it.
#[derive(Debug)]
pub struct Call {
    budget: Arc<CallBudget>,
    /// The same as all replicas count it.
    shared: Option<SharedCall>,
    is_made: bool,
}

impl Call {
    /// Gives it back: it was never made.
    pub fn give_back(mut self) {
        self.is_made = false;
        if let Some(shared) = self.shared.take() {
            shared.give_back();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.in_flight -= 1;
        if self.is_made {
            // Without a limit, too: one may be set within the minute.
            state.note_ended(Instant::now());
        }
        drop(state);
        self.budget.queue.wake();
    }
}

#[cfg(test)]
mod tests;
