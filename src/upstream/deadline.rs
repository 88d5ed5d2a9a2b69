//! The deadline of a fill: waiting for a slot, every try and its body, together.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use super::UpstreamError;

/// Bounds a whole call in time.
#[derive(Clone, Debug)]
pub struct DeadlineLayer {
    after: Duration,
}

impl DeadlineLayer {
    #[must_use]
    pub fn new(after: Duration) -> Self {
        Self { after }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline {
            inner,
            after: self.after,
        }
    }
}

/// Answers [`UpstreamError::Timeout`] where the inner service takes too long, and drops its future.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    after: Duration,
}

impl<S, R> Service<R> for Deadline<S>
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
        let after = self.after;
        let call = tokio::time::timeout(after, self.inner.call(request));
        Box::pin(async move { call.await.unwrap_or(Err(UpstreamError::Timeout(after))) })
    }
}
