//! Limits how many requests the upstream gets at once; further ones queue.

use std::{
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tower::{Layer, Service};

use super::{
    PageRequest, UpstreamError, Waiters,
    fair_queue::{FairQueue, QueueFull},
};

/// A fixed number of slots and a bounded fair queue for them.
#[derive(Clone, Debug)]
pub struct LimitLayer {
    slots: Arc<Slots>,
}

impl LimitLayer {
    #[must_use]
    pub fn new(slots: usize, queue: usize) -> Self {
        Self {
            slots: Arc::new(Slots {
                free: Mutex::new(slots),
                queue: FairQueue::new(queue),
            }),
        }
    }

    /// How many calls wait for a slot.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.slots.queue.len()
    }
}

#[derive(Debug)]
struct Slots {
    free: Mutex<usize>,
    queue: FairQueue,
}

impl Slots {
    async fn acquire(self: Arc<Self>, waiters: &Waiters) -> Result<Slot, QueueFull> {
        // Nobody jumps the queue.
        if self.queue.is_empty()
            && let Some(slot) = self.take()
        {
            return Ok(slot);
        }
        self.queue
            .wait(waiters, || async {
                match self.take() {
                    Some(slot) => ControlFlow::Break(slot),
                    None => ControlFlow::Continue(None),
                }
            })
            .await
    }

    fn take(self: &Arc<Self>) -> Option<Slot> {
        let mut free = self.free.lock();
        *free = free.checked_sub(1)?;
        Some(Slot(self.clone()))
    }
}

/// A slot, given back when dropped.
struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.queue.wake();
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit {
            inner,
            slots: self.slots.clone(),
        }
    }
}

/// Holds a slot while the inner call runs; answers [`UpstreamError::Overloaded`] where too many wait for one.
///
/// Not tower's `ConcurrencyLimit`, which waits in `poll_ready`, without a bound and without fairness.
#[derive(Clone, Debug)]
pub struct Limit<S> {
    inner: S,
    slots: Arc<Slots>,
}

impl<S> Service<PageRequest> for Limit<S>
where
    S: Service<PageRequest, Error = UpstreamError>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = UpstreamError;
    type Future = BoxFuture<'static, Result<S::Response, UpstreamError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: PageRequest) -> Self::Future {
        let slots = self.slots.clone();
        let waiters = request.waiters.clone();
        // Lazy: nothing is sent before it is polled.
        let call = self.inner.call(request);
        Box::pin(async move {
            let slot = slots.acquire(&waiters).await;
            let _slot = slot.map_err(|QueueFull| UpstreamError::Overloaded)?;
            call.await
        })
    }
}

#[cfg(test)]
mod tests;
