//! One call, from its grant to its end.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::CallBudget;
use crate::shared::SharedCall;

/// A call that may be made. Dropped before it was sent it is given back; after that it counts for a minute from when it is dropped,
/// which is no earlier than the upstream counts it.
#[derive(Debug)]
pub struct Call {
    pub(super) budget: Arc<CallBudget>,
    /// The same as all replicas count it.
    pub(super) shared: Option<SharedCall>,
    pub(super) was_sent: bool,
    pub(super) _slot: OwnedSemaphorePermit,
}

impl Call {
    /// Notes whether it was sent.
    pub(crate) fn note_sent(&mut self, was_sent: bool) {
        self.was_sent |= was_sent;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.budget.state.lock();
        if self.was_sent {
            // Without a limit, too: one may be set within the minute.
            state.window.end(now);
        } else {
            let limit = self.budget.limit(&state, now);
            state.window.give_back(limit, now);
            // It is there for another.
            state.shared_until = None;
        }
        drop(state);
        if let Some(shared) = self.shared.take().filter(|_| !self.was_sent) {
            shared.give_back();
        }
        self.budget.changed.notify_one();
    }
}

/// The call that a fill waited for before it began; its first try takes it.
#[derive(Clone, Debug, Default)]
pub struct AcquiredCall(Arc<Mutex<Option<Call>>>);

impl AcquiredCall {
    /// Takes it, if no try has.
    #[must_use]
    pub fn take(&self) -> Option<Call> {
        self.0.lock().take()
    }
}

impl From<Call> for AcquiredCall {
    fn from(call: Call) -> Self {
        Self(Arc::new(Mutex::new(Some(call))))
    }
}
