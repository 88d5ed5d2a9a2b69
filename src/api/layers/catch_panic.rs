//! A bug costs one request, and is counted.
//!
//! Of our own, since tower-http's layer boxes the body of every answer, twice with what makes it one type again.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::future::{CatchUnwind, FutureExt};
use tower::{Layer, Service};

use crate::{
    api::{ApiError, exchange::Answer},
    telemetry::metrics::Metrics,
};

/// Answers `internal` where what it wraps panics.
#[derive(Clone, Debug)]
pub struct CatchPanicLayer {
    metrics: Arc<Metrics>,
}

impl CatchPanicLayer {
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> CatchPanic<S> {
        CatchPanic {
            inner,
            metrics: self.metrics.clone(),
        }
    }
}

/// Stands around all work that is done for a request.
#[derive(Clone, Debug)]
pub struct CatchPanic<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, R> Service<R> for CatchPanic<S>
where
    S: Service<R, Response = Answer>,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = CatchPanicFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The request is gone with the panic, and what it shares with others is behind locks that expect one.
        let called = catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        CatchPanicFuture {
            inner: called
                .ok()
                .map(|future| AssertUnwindSafe(future).catch_unwind()),
            metrics: self.metrics.clone(),
        }
    }
}

pin_project_lite::pin_project! {
    /// Ends as the inner call does, however that is.
    #[derive(Debug)]
    pub struct CatchPanicFuture<F> {
        // `None`: it panicked before there was a future.
        #[pin]
        inner: Option<CatchUnwind<AssertUnwindSafe<F>>>,
        metrics: Arc<Metrics>,
    }
}

impl<F, E> Future for CatchPanicFuture<F>
where
    F: Future<Output = Result<Answer, E>>,
{
    type Output = Result<Answer, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(inner) = this.inner.as_pin_mut()
            && let Ok(answer) = ready!(inner.poll(cx))
        {
            return Poll::Ready(answer);
        }
        this.metrics.http.panicked();
        Poll::Ready(Ok(ApiError::Internal.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::StatusCode;
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_and_counted_wherever_it_comes() {
        let metrics = Metrics::new();
        let layer = CatchPanicLayer::new(metrics.clone());
        let at_once = ServiceBuilder::new()
            .layer(layer.clone())
            .service_fn(|()| -> std::future::Ready<Result<Answer, Infallible>> { panic!("call") });
        let later = ServiceBuilder::new()
            .layer(layer)
            .service(service_fn(|()| async {
                tokio::task::yield_now().await;
                if true {
                    panic!("poll");
                }
                Ok::<Answer, Infallible>(http::Response::new(()).into())
            }));

        let answers = [
            at_once.oneshot(()).await.unwrap(),
            later.oneshot(()).await.unwrap(),
        ];

        for answer in answers {
            assert_eq!(answer.response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        }
        assert!(metrics.encode().contains("gateway_panics_total 2"));
    }
}
