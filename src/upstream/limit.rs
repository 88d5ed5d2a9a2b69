//! How many requests the upstream gets at once, and who waits for a slot.

use std::{
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tower::{Layer, Service};

use super::{
    Claims, PageRequest, UpstreamError,
    line::{Line, TurnedAway},
};

/// Lets so many calls run at once and so many more wait, the urgent ones first and clients in turn.
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
                line: Line::new(queue),
            }),
        }
    }

    /// How many calls wait for a slot.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.slots.line.len()
    }
}

#[derive(Debug)]
struct Slots {
    free: Mutex<usize>,
    line: Line,
}

impl Slots {
    async fn acquire(self: Arc<Self>, claims: &Claims) -> Result<Slot, TurnedAway> {
        // Nobody is passed by.
        if self.line.is_empty()
            && let Some(slot) = self.take()
        {
            return Ok(slot);
        }
        self.line
            .stand(claims, || async {
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

/// The right to one call at a time, given back when dropped.
struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.line.wake();
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
/// Its own service rather than tower's `ConcurrencyLimit`, which waits in `poll_ready`, without a bound and without turns.
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
        let claims = request.claims.clone();
        // Lazy: nothing is sent before the slot is ours.
        let call = self.inner.call(request);
        Box::pin(async move {
            let slot = slots.acquire(&claims).await;
            let _slot = slot.map_err(|TurnedAway| UpstreamError::Overloaded)?;
            call.await
        })
    }
}

#[cfg(test)]
mod tests;
