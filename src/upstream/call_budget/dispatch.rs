//! Hands calls out: to who asks while nobody waits, else to whose turn it is.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep},
};

use super::{Call, CallBudget, LOOK_AGAIN, Queued, State};
use crate::shared::{Calls, Grant, SharedCall, Unavailable};

/// Lets who asks next begin another task where this one ends in a bug.
pub(super) struct Dispatching(pub(super) Arc<CallBudget>);

impl Drop for Dispatching {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.state.lock().is_dispatching = false;
        }
    }
}

impl CallBudget {
    /// Hands out calls until nobody waits for one.
    pub(super) async fn dispatch(self: Arc<Self>) {
        let _dispatching = Dispatching(self.clone());
        loop {
            let Some(wait) = self.next_wait() else {
                return;
            };
            if !wait.is_zero() {
                self.pause(wait).await;
                continue;
            }
            // Everything is looked at again once there is a slot: an answer may have told of a limit.
            let Ok(slot) = self.slots.clone().acquire_owned().await else {
                return;
            };
            match self.next_wait() {
                None => return,
                Some(wait) if !wait.is_zero() => continue,
                Some(_) => {}
            }
            let shared = match self.shared.get() {
                None => None,
                Some(calls) => match self.ask_replicas(calls).await {
                    Ok(shared) => shared,
                    Err(wait) => {
                        self.expect_no_call_for(wait);
                        drop(slot);
                        self.pause(wait).await;
                        continue;
                    }
                },
            };
            self.grant(slot, shared);
        }
    }

    /// Waits for `wait`, or until something changes: Redis may be back at any moment.
    async fn pause(&self, wait: Duration) {
        let calls = self.shared.get();
        let is_alone = calls.is_some_and(|calls| !calls.counts(Instant::now()));
        let wait = if is_alone { wait.min(LOOK_AGAIN) } else { wait };
        tokio::select! {
            () = sleep(wait) => {}
            () = self.changed.notified() => {}
        }
    }

    /// How long until a call may be made for somebody who waits; `None`: nobody does, and the task ends.
    fn next_wait(&self) -> Option<Duration> {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.queue.retain(Queued::is_wanted);
        if state.queue.is_empty() {
            state.is_dispatching = false;
            return None;
        }
        Some(self.wait_for(&mut state, 1, now))
    }

    /// Gives a call to whose turn it is.
    fn grant(self: &Arc<Self>, slot: OwnedSemaphorePermit, shared: Option<SharedCall>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let call = |state: &mut State, is_failing| {
            let limit = self.limit(state, now);
            state.window.begin(limit, is_failing, now);
            Call {
                budget: self.clone(),
                shared,
                was_sent: false,
                _slot: slot,
            }
        };
        let Some((queued, turn)) = state.take_next(now) else {
            // Nobody wants it any more; it is given back.
            let call = call(&mut state, false);
            drop(state);
            drop(call);
            return;
        };
        state.turns.served(&turn);
        let call = call(&mut state, queued.is_failing);
        drop(state);
        // Who left meanwhile gives it back by dropping it.
        let _ = queued.granted.send(call);
    }

    /// A call without waiting, by what this process counts.
    pub(super) fn take_now(
        self: &Arc<Self>,
        state: &mut State,
        is_failing: bool,
        now: Instant,
    ) -> Result<Call, Duration> {
        let wait = self.wait_for(state, 1, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        let slot = match self.slots.clone().try_acquire_owned() {
            Ok(slot) if state.queue.is_empty() => slot,
            _ => return Err(self.wait_for(state, 2, now)),
        };
        let limit = self.limit(state, now);
        state.window.begin(limit, is_failing, now);
        Ok(Call {
            budget: self.clone(),
            shared: None,
            was_sent: false,
            _slot: slot,
        })
    }

    /// Takes one of the calls of all replicas; `None` where nothing is counted.
    pub(super) async fn ask_replicas(
        &self,
        calls: &Arc<Calls>,
    ) -> Result<Option<SharedCall>, Duration> {
        let Some(limit) = self.per_minute() else {
            return Ok(None);
        };
        match calls.ask(limit).await {
            Ok(Grant::Granted(call)) => Ok(Some(call)),
            Ok(Grant::Refused(wait)) => {
                self.state.lock().shared_until = Some(Instant::now() + wait);
                Err(wait)
            }
            // What others spend is not known any more: as much as without Redis.
            Err(Unavailable) => {
                let wait = self.wait_for(&mut self.state.lock(), 1, Instant::now());
                wait.is_zero().then(|| Some(calls.alone())).ok_or(wait)
            }
        }
    }

    /// Tells those who wait that there is no call for so long.
    fn expect_no_call_for(&self, wait: Duration) {
        self.state.lock().note_delay(Instant::now() + wait);
    }

    /// How long all replicas together have no call left, as far as this one knows without asking.
    pub(super) fn blocked_by_replicas(&self, state: &State, now: Instant) -> Duration {
        let Some(calls) = self.shared.get() else {
            return Duration::ZERO;
        };
        if calls.counts(now) {
            let until = state.shared_until.unwrap_or(now);
            let refused = until.saturating_duration_since(now);
            return refused.max(calls.settles_for(now));
        }
        let silent = calls.silent_for(now);
        let quota = state.window.limit(state.rules.per_minute, now);
        silent.max(calls.turn_after(quota.unwrap_or(u32::MAX), now))
    }
}
