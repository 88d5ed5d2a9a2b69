//! When a fill may expect its call.

use std::time::Duration;

use tokio::time::Instant;

use super::{CallBudget, Queued, State};
use crate::upstream::waiters::{Need, Waiter, Waiters};

impl CallBudget {
    /// How long a client that has nothing to show would wait for a call; `None`: it would get one now.
    #[must_use]
    pub fn wait_expected(&self, now: Instant) -> Option<Duration> {
        let waiter = Waiter {
            client: "".into(),
            need: Need::Nothing,
        };
        let wait = self.expected(&mut self.state.lock(), &waiter, false, now);
        Some(wait).filter(|wait| !wait.is_zero())
    }

    /// Tells `waiters` of a fill that waits for its call if that comes sooner since `waiter` has joined.
    pub fn note_joined(&self, waiters: &Waiters, waiter: &Waiter, now: Instant) {
        let mut state = self.state.lock();
        let joined = state.queue.iter().find(|queued| queued.waiters.is(waiters));
        let is_failing = joined.is_some_and(|queued| queued.is_failing);
        let expected = self.expected(&mut state, waiter, is_failing, now);
        waiters.note_sooner(now + expected);
    }

    /// How long one more fill that `waiter` wants would wait for its call.
    pub(super) fn expected(
        &self,
        state: &mut State,
        waiter: &Waiter,
        is_failing: bool,
        now: Instant,
    ) -> Duration {
        let candidates: Vec<_> = state.queue.iter().map(Queued::candidate).collect();
        let ahead = state.turns.ahead_of(waiter, candidates.iter(), now);
        let nth = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
        let wait = self.wait_for(state, nth, now);
        let others_wait = state.queue.iter().any(|queued| !queued.is_failing);
        match is_failing && others_wait {
            true => wait.max(state.window.wait_to_fail(now)),
            false => wait,
        }
    }
}

impl State {
    /// Tells those who wait that there is no call before `at`.
    pub(super) fn note_delay(&self, at: Instant) {
        for queued in &self.queue {
            queued.waiters.note_delay(at);
        }
    }
}
