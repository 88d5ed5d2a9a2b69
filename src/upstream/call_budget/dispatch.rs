//! Hands calls out: to who asks while nobody waits, else to whose turn it is.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep},
};

use super::{Call, CallBudget, LOOK_AGAIN, Queued, State};
use crate::{
    shared::{Calls, Grant, SharedCall, Unavailable},
    upstream::waiters::Progress,
};

impl CallBudget {
    /// Hands out calls until nobody waits for one.
    pub(super) async fn dispatch(self: Arc<Self>) {
        loop {
            let Some(wait) = self.next_wait() else {
                return;
            };
            if !wait.is_zero() {
                tokio::select! {
                    () = sleep(wait) => {}
                    () = self.changed.notified() => {}
                }
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
                        self.expect_calls_after(wait);
                        drop(slot);
                        tokio::select! {
                            () = sleep(wait) => {}
                            () = self.changed.notified() => {}
                        }
                        continue;
                    }
                },
            };
            self.grant(slot, shared);
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
            // Redis may have gone just now: then what other replicas spent is not known.
            Err(Unavailable) => {
                match self.blocked_by_replicas(&self.state.lock(), Instant::now()) {
                    wait if wait.is_zero() => Ok(Some(calls.alone())),
                    wait => Err(wait),
                }
            }
        }
    }

    /// Tells those who wait when there may be a call.
    fn expect_calls_after(&self, wait: Duration) {
        let state = self.state.lock();
        let at = Instant::now() + wait;
        for queued in &state.queue {
            queued.waiters.note_progress(Progress::Queued(at));
        }
    }

    /// How long all replicas together have no call left, as far as this one knows without asking.
    pub(super) fn blocked_by_replicas(&self, state: &State, now: Instant) -> Duration {
        let Some(calls) = self.shared.get() else {
            return Duration::ZERO;
        };
        if let Some(wait) = calls.blocked_for(now) {
            return wait.min(LOOK_AGAIN);
        }
        match state.shared_until {
            Some(until) if calls.is_counted() => until.saturating_duration_since(now),
            Some(_) | None => Duration::ZERO,
        }
    }
}
