//! The deadline of a fill: waiting for a slot, every try and its body, together.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use super::{PageRequest, UpstreamError};

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

/// Answers [`UpstreamError::Timeout`] where the inner service takes too long, and drops its future. Where that only waits for a
/// further try, the error of the one before is the better answer.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    after: Duration,
}

impl<S> Service<PageRequest> for Deadline<S>
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
        let after = self.after;
        let (calls, last_error) = (request.calls.clone(), request.last_error.clone());
        // From the fill's beginning: a fill may ask twice.
        let deadline = request.began + after;
        let call = tokio::time::timeout_at(deadline, self.inner.call(request));
        Box::pin(async move {
            call.await.unwrap_or_else(|_| {
                let earlier = last_error.of_no_try_since(&calls);
                Err(earlier.unwrap_or(UpstreamError::Timeout(after)))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;
    use crate::upstream::{FailureSource, fixtures};

    #[tokio::test(start_paused = true)]
    async fn a_further_try_that_only_waits_leaves_the_error_of_the_one_before() {
        for (is_sent, expected) in [(false, "upstream_failed"), (true, "upstream_timeout")] {
            let outcome: Result<(), _> = ServiceBuilder::new()
                .layer(DeadlineLayer::new(Duration::from_secs(10)))
                .service(service_fn(move |request: PageRequest| async move {
                    request.calls.add();
                    let error = UpstreamError::Failed(FailureSource::Inner { message: None });
                    request.last_error.note(&error, &request.calls);
                    if is_sent {
                        request.calls.add();
                    }
                    pending().await
                }))
                .oneshot(fixtures::request(""))
                .await;
            assert_eq!(outcome.unwrap_err().as_str(), expected);
        }
    }
}
