//! The calls that one credential may make, and the fills that wait for one. `docs/quota.md` is the policy.
//!
//! [`CallWindow`] says when a call may be made, [`Turns`] who gets it; both are pure. Here is the rest: the queue, the slots of the
//! upstream, what replicas share, and the task that hands calls out while anybody waits.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    time::Instant,
};

pub use self::call::{AcquiredCall, Call};
use super::{
    call_window::{BudgetSnapshot, CallWindow, MINUTE},
    pause::CallLimits,
    turns::{Candidate, Turn, Turns},
    waiters::{Progress, Waiter, Waiters},
};
use crate::{config::UpstreamConfig, shared::Calls};

mod call;
mod dispatch;
mod expect;

/// A fill whose call is further away than this does not wait for it.
const LONGEST_QUEUE: Duration = Duration::from_secs(60);
/// How soon a waiter looks again while Redis is away: it may be back at any moment.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Why there is no call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetExhausted {
    /// There may be one after this time.
    RetryAfter(Duration),
    /// Too many wait for one.
    QueueFull,
}

/// The calls one credential may make.
#[derive(Debug)]
pub struct CallBudget {
    /// Requests that the upstream gets at once, of all credentials.
    slots: Arc<Semaphore>,
    /// What replicas share, where they do: then each call is asked for there too.
    shared: OnceLock<Arc<Calls>>,
    state: Mutex<State>,
    /// Notified when a call may have become possible.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    rules: BudgetRules,
    window: CallWindow,
    turns: Turns,
    /// The fills that wait, oldest first.
    queue: Vec<Queued>,
    /// Whether a task hands out calls: while anybody waits.
    is_dispatching: bool,
    /// Until then all replicas together have spent the quota.
    shared_until: Option<Instant>,
    is_closed: bool,
}

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetRules {
    /// Calls a minute; 0: as many as the upstream's own headers allow.
    per_minute: u32,
    max_queue: usize,
    /// How long a request waits for a call at most.
    patience: Duration,
}

impl BudgetRules {
    #[must_use]
    pub fn new(config: &UpstreamConfig) -> Self {
        Self {
            per_minute: config.quota_per_minute,
            max_queue: config.max_queue,
            // Not to the very end: a call that is paid for should have time to be answered.
            patience: config.timeout * 3 / 4,
        }
    }
}

/// A fill that waits for a call.
#[derive(Debug)]
struct Queued {
    waiters: Waiters,
    is_failing: bool,
    granted: oneshot::Sender<Call>,
}

impl Queued {
    fn is_wanted(&self) -> bool {
        !self.granted.is_closed() && self.waiters.want_it()
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            waiters: self.waiters.all(),
            is_attended: self.waiters.are_present(),
            is_failing: self.is_failing,
        }
    }
}

/// What a fill that asks for a call gets.
enum Asked {
    Granted(Call),
    Waits(oneshot::Receiver<Call>),
}

impl CallBudget {
    /// For how long what was spent counts.
    pub const MEMORY: Duration = MINUTE;

    /// The budget of one credential, within the `slots` of all.
    #[must_use]
    pub fn new(rules: BudgetRules, slots: Arc<Semaphore>) -> Self {
        Self {
            slots,
            shared: OnceLock::new(),
            state: Mutex::new(State {
                rules,
                window: CallWindow::new(Instant::now()),
                turns: Turns::default(),
                queue: Vec::new(),
                is_dispatching: false,
                shared_until: None,
                is_closed: false,
            }),
            changed: Notify::new(),
        }
    }

    /// Asks for each call among all replicas from now on, as they count `calls`.
    pub fn share(&self, calls: Calls) {
        if let Err(calls) = self.shared.set(Arc::new(calls))
            && let (Some(shared), Some(calls)) = (self.shared.get(), Arc::into_inner(calls))
        {
            shared.go_on_as(calls);
        }
    }

    /// What replicas share.
    #[must_use]
    pub fn shared(&self) -> Option<&Arc<Calls>> {
        self.shared.get()
    }

    /// Changes what is configured; what was spent stays spent.
    pub fn configure(&self, rules: BudgetRules) {
        let mut state = self.state.lock();
        state.rules = rules;
        // What replicas had left was left of another quota.
        state.shared_until = None;
        drop(state);
        self.changed.notify_one();
    }

    /// What the next process must know if this one ends without a word.
    pub fn snapshot(&self, now: Instant) -> BudgetSnapshot {
        self.state.lock().window.snapshot(now)
    }

    /// What the next process must know. No call is made from now on.
    pub fn close(&self, now: Instant) -> BudgetSnapshot {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.queue.clear();
        state.window.snapshot(now)
    }

    /// How many calls were begun so far, and are under way: unchanged, and none under way, a snapshot stays as it is.
    #[must_use]
    pub fn activity(&self) -> (u64, u32) {
        self.state.lock().window.activity()
    }

    /// Goes on from `spent`, which may lack the calls of as long as is `missing`; `None`: it is all.
    pub fn resume(&self, spent: &BudgetSnapshot, missing: Option<Duration>, now: Instant) {
        let mut state = self.state.lock();
        let configured = state.rules.per_minute;
        state.window.resume(spent, missing, configured, now);
    }

    /// Calls allowed a minute, as configured or as the upstream says; `None`: unlimited.
    #[must_use]
    pub fn per_minute(&self) -> Option<u32> {
        self.limit(&self.state.lock(), Instant::now())
    }

    /// Calls left in this minute; `None`: no limit is known.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Option<u32> {
        let mut state = self.state.lock();
        let limit = self.limit(&state, now)?;
        Some(state.window.remaining(limit, now))
    }

    /// How many fills wait for the quota.
    #[must_use]
    pub fn waiting_for_quota(&self) -> usize {
        self.waiting(|wait| !wait.is_zero())
    }

    /// How many fills wait for nothing but a slot.
    #[must_use]
    pub fn waiting_for_slots(&self) -> usize {
        self.waiting(Duration::is_zero)
    }

    fn waiting(&self, counts: impl FnOnce(&Duration) -> bool) -> usize {
        let mut state = self.state.lock();
        match counts(&self.wait_for(&mut state, 1, Instant::now())) {
            true => state.queue.len(),
            false => 0,
        }
    }

    /// How long a request waits for a call at most.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.state.lock().rules.patience
    }

    /// Waits for a call until nobody wants it any more, and tells `waiters` how far it is.
    ///
    /// # Errors
    ///
    /// Returns why there is none.
    pub async fn acquire(
        self: &Arc<Self>,
        waiters: &Waiters,
        is_failing: bool,
    ) -> Result<Call, BudgetExhausted> {
        let call = match self.ask(waiters, is_failing)? {
            Asked::Granted(call) => call,
            // It was displaced, or the process ends, or nobody wants it.
            Asked::Waits(granted) => granted.await.map_err(|_| BudgetExhausted::QueueFull)?,
        };
        waiters.note_progress(Progress::Sent(Instant::now()));
        Ok(call)
    }

    /// A call, if one may be made at once and nobody waits for it.
    ///
    /// # Errors
    ///
    /// Returns after what time one may be possible.
    pub async fn acquire_now(self: &Arc<Self>) -> Result<Call, Duration> {
        let mut call = self.take_now(&mut self.state.lock(), false, Instant::now())?;
        if let Some(calls) = self.shared.get() {
            call.shared = self.ask_replicas(calls).await?;
        }
        Ok(call)
    }

    fn ask(
        self: &Arc<Self>,
        waiters: &Waiters,
        is_failing: bool,
    ) -> Result<Asked, BudgetExhausted> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(BudgetExhausted::RetryAfter(MINUTE));
        }
        // Replicas are asked by the task.
        if self.shared.get().is_none()
            && let Ok(call) = self.take_now(&mut state, is_failing, now)
        {
            let turn = state.turns.turn(&waiters.all(), now);
            state.turns.served(&turn);
            return Ok(Asked::Granted(call));
        }
        state.queue.retain(Queued::is_wanted);
        let all = waiters.all();
        let expected = all
            .iter()
            .map(|waiter| self.expected(&mut state, waiter, is_failing, now));
        let expected = expected.min().unwrap_or_default();
        // Redis may be back at any moment.
        let silent = self
            .shared
            .get()
            .map_or(Duration::ZERO, |calls| calls.silent_for(now));
        if expected > LONGEST_QUEUE + silent && !waiters.have_stale_pages() {
            return Err(BudgetExhausted::RetryAfter(expected));
        }
        state.make_room(&all, now)?;
        let (granted, waits) = oneshot::channel();
        state.queue.push(Queued {
            waiters: waiters.clone(),
            is_failing,
            granted,
        });
        if !expected.is_zero() {
            waiters.note_progress(Progress::Queued(now + expected));
        }
        if state.is_dispatching {
            self.changed.notify_one();
        } else {
            state.is_dispatching = true;
            tokio::spawn(self.clone().dispatch());
        }
        Ok(Asked::Waits(waits))
    }

    fn limit(&self, state: &State, now: Instant) -> Option<u32> {
        let limit = state.window.limit(state.rules.per_minute, now)?;
        Some(match self.shared.get() {
            Some(calls) => calls.limit(limit, now),
            None => limit,
        })
    }

    /// How long until the `nth` call from now may be made.
    fn wait_for(&self, state: &mut State, nth: u32, now: Instant) -> Duration {
        if state.is_closed {
            return MINUTE;
        }
        if self.shared.get().is_some_and(|calls| calls.counts(now)) {
            state.window.end_caution();
        }
        let limit = self.limit(state, now);
        let of_replicas = match limit {
            Some(_) => self.blocked_by_replicas(state, now),
            None => Duration::ZERO,
        };
        state.window.wait_for(nth, limit, now).max(of_replicas)
    }

    /// Takes in what the header of an answer says that was asked for at `sent` and received at `now`.
    pub fn learn(&self, limits: &CallLimits, sent: Instant, now: Instant) {
        let mut state = self.state.lock();
        state.window.learn(limits, sent, now);
        self.spread_block(&state, now);
    }

    /// Makes no call for as long as the upstream asked when it refused one at `now`; returns how long that is.
    pub fn throttled(&self, limits: &CallLimits, sent: Instant, now: Instant) -> Duration {
        let mut state = self.state.lock();
        let configured = state.rules.per_minute;
        state.window.throttled(limits, configured, sent, now);
        self.spread_block(&state, now);
        // The next caller gets the same answer.
        self.wait_for(&mut state, 1, now)
    }

    fn spread_block(&self, state: &State, now: Instant) {
        let blocked = state.window.blocked_for(now);
        if blocked.is_zero() {
            return;
        }
        state.note_delay(now + blocked);
        if let Some(calls) = self.shared.get() {
            calls.hold_all(blocked);
        }
    }
}

impl State {
    /// Takes the fill out of the queue whose turn it is.
    fn take_next(&mut self, now: Instant) -> Option<(Queued, Turn)> {
        self.queue.retain(Queued::is_wanted);
        let candidates: Vec<_> = self.queue.iter().map(Queued::candidate).collect();
        let may_fail = self.window.wait_to_fail(now).is_zero();
        let (index, turn) = self.turns.choose(candidates.iter(), may_fail, now)?;
        Some((self.queue.remove(index), turn))
    }

    /// Makes room for one more: the refresh that is due last yields to a client, then the newest of the client with the most.
    fn make_room(&mut self, newcomers: &[Waiter], now: Instant) -> Result<(), BudgetExhausted> {
        if self.queue.len() < self.rules.max_queue {
            return Ok(());
        }
        let candidates: Vec<_> = self.queue.iter().map(Queued::candidate).collect();
        let last = self.turns.displaceable(candidates.iter(), newcomers, now);
        let last = last.ok_or(BudgetExhausted::QueueFull)?;
        self.queue.remove(last);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
