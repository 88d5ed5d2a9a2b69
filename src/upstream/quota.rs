//! Acquires each call from the budget of its credential before it is made.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use super::{
    call_budget::{BudgetExhausted, Call},
    error::UpstreamError,
    request::{PageRequest, Sent},
};

/// Acquires each call from its credential's budget.
#[derive(Clone, Copy, Debug)]
pub struct QuotaLayer {
    patience: Duration,
}

impl QuotaLayer {
    /// `patience` is how long a call may queue at most, counted from the beginning of its fill.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self { patience }
    }
}

impl<S> Layer<S> for QuotaLayer {
    type Service = Quota<S>;

    fn layer(&self, inner: S) -> Quota<S> {
        Quota {
            inner,
            patience: self.patience,
        }
    }
}

/// Answers [`UpstreamError::QuotaExhausted`] where no call is available in time.
#[derive(Clone, Debug)]
pub struct Quota<S> {
    inner: S,
    patience: Duration,
}

impl<S> Service<PageRequest> for Quota<S>
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
        let budget = request.credential.budget().clone();
        let waiters = request.waiters.clone();
        let sent = request.sent.clone();
        let given_up = request.began + self.patience;
        // Lazy: it takes no slot while it queues for the quota.
        let call = self.inner.call(request);
        Box::pin(async move {
            let acquired = budget.acquire(&waiters, given_up).await?;
            let _call = Acquired {
                call: Some(acquired),
                sent,
            };
            call.await
        })
    }
}

/// An acquired call; given back if it ends, in whatever way, before it was sent.
struct Acquired {
    call: Option<Call>,
    sent: Sent,
}

impl Drop for Acquired {
    fn drop(&mut self) {
        if let Some(call) = self.call.take()
            && !self.sent.is_set()
        {
            call.give_back();
        }
    }
}

impl From<BudgetExhausted> for UpstreamError {
    fn from(none: BudgetExhausted) -> Self {
        match none {
            BudgetExhausted::RetryAfter(wait) => Self::QuotaExhausted {
                retry_after: Some(wait),
            },
            BudgetExhausted::QueueFull => Self::Overloaded,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use tokio::time::Instant;
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;
    use crate::upstream::{CallBudget, LimitLayer, fixtures};

    #[tokio::test(start_paused = true)]
    async fn only_what_was_sent_is_spent() {
        let request = fixtures::request("quota_per_minute = 60");
        tokio::time::advance(CallBudget::MEMORY).await;
        let service = ServiceBuilder::new()
            .layer(QuotaLayer::new(Duration::from_secs(7)))
            .layer(LimitLayer::new(1, 1))
            .service(service_fn(|request: PageRequest| async move {
                request.sent.set();
                pending::<Result<Infallible, UpstreamError>>().await
            }));
        let ask = || {
            let request = PageRequest {
                sent: Sent::default(),
                began: Instant::now(),
                ..request.clone()
            };
            tokio::spawn(service.clone().oneshot(request))
        };
        let sent = ask();
        tokio::task::yield_now().await;
        let in_line = ask();
        tokio::task::yield_now().await;
        for _ in 0..40 {
            assert!(ask().await.unwrap().is_err(), "no room in the line");
        }
        let left = || request.credential.budget().remaining(Instant::now());
        assert_eq!(left(), Some(58), "one is sent, one may be");

        in_line.abort();
        assert!(in_line.await.is_err());
        assert_eq!(left(), Some(59));
        sent.abort();
        assert!(sent.await.is_err());
        assert_eq!(left(), Some(59));
    }
}
