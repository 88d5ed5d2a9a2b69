//! How many requests the upstream gets at once, and how many may wait for a slot.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tower::{Layer, Service};

use super::UpstreamError;

/// Lets `slots` calls run at once and `queue` more wait, in order of arrival.
#[derive(Clone, Debug)]
pub struct LimitLayer {
    slots: Arc<Semaphore>,
    /// Slots and waiting places together: who gets none is turned away at once.
    places: Arc<Semaphore>,
}

impl LimitLayer {
    #[must_use]
    pub fn new(slots: usize, queue: usize) -> Self {
        let places = slots.saturating_add(queue).min(Semaphore::MAX_PERMITS);
        Self {
            slots: Arc::new(Semaphore::new(slots)),
            places: Arc::new(Semaphore::new(places)),
        }
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit {
            inner,
            limit: self.clone(),
        }
    }
}

/// Holds a slot while the inner call runs; a dropped call gives its place back.
///
/// Its own service rather than tower's `ConcurrencyLimit`, which waits in `poll_ready` without a bound.
#[derive(Clone, Debug)]
pub struct Limit<S> {
    inner: S,
    limit: LimitLayer,
}

impl<S, R> Service<R> for Limit<S>
where
    S: Service<R, Error = UpstreamError>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = UpstreamError;
    type Future = BoxFuture<'static, Result<S::Response, UpstreamError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let Ok(place) = self.limit.places.clone().try_acquire_owned() else {
            return Box::pin(std::future::ready(Err(UpstreamError::Overloaded)));
        };
        let slots = self.limit.slots.clone();
        // Lazy: nothing is sent before the slot is ours.
        let call = self.inner.call(request);
        Box::pin(async move {
            let _place = place;
            let _slot = slots
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            call.await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;

    fn stuck() -> impl Service<(), Response = (), Error = UpstreamError, Future: Send> + Clone {
        ServiceBuilder::new()
            .layer(LimitLayer::new(1, 1))
            .service(service_fn(|()| async {
                pending::<Infallible>().await;
                Ok(())
            }))
    }

    #[tokio::test]
    async fn beyond_slots_and_queue_a_call_is_refused_at_once() {
        let service = stuck();
        let running = tokio::spawn(service.clone().oneshot(()));
        let waiting = tokio::spawn(service.clone().oneshot(()));
        tokio::task::yield_now().await;

        let refused = service.clone().oneshot(()).await;

        assert!(matches!(refused, Err(UpstreamError::Overloaded)));
        assert!(!running.is_finished() && !waiting.is_finished());
    }

    #[tokio::test]
    async fn a_dropped_call_gives_its_place_back() {
        let mut service = stuck();
        drop(service.call(()));
        drop(service.call(()));
        drop(service.call(()));
        assert_eq!(service_places(&LimitLayer::new(1, 1)), 2);
    }

    fn service_places(layer: &LimitLayer) -> usize {
        layer.places.available_permits()
    }
}
