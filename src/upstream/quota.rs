//! Makes each try with a call of its credential's budget.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tower::{Layer, Service};

use super::{
    call_budget::{BudgetExhausted, Call},
    call_window::{MINUTE, burst},
    credential::Credential,
    error::UpstreamError,
    request::{PageRequest, Sent},
    waiters::{Need, Waiter, Waiters},
};
use crate::{config::UpstreamConfig, domain::SpaceToken};

/// Waits for the call of a fill of `space`: until it has one, or nobody wants it, or the upstream is not asked at all.
///
/// # Errors
///
/// Returns why there is none.
pub async fn acquire(
    credential: &Credential,
    space: &SpaceToken,
    waiters: &Waiters,
    is_failing: bool,
) -> Result<Call, UpstreamError> {
    let call = credential.budget().acquire(waiters, is_failing);
    tokio::pin!(call);
    loop {
        // Listen before looking, so that nothing is missed in between.
        let (blocked, opened) = (credential.next_block(), credential.circuit().next_opening());
        if credential.is_blocked(Instant::now()) {
            return Err(UpstreamError::AuthFailed);
        }
        if let Some(retry_after) = credential.circuit().refuses(Some(space)) {
            return Err(UpstreamError::Unavailable { retry_after });
        }
        tokio::select! {
            biased;
            call = &mut call => {
                let call = call?;
                // A token that was replaced while its fill waited is asked with for those who still wait, and for nobody else.
                if credential.is_in_force() || waiters.are_present() {
                    return Ok(call);
                }
                return Err(UpstreamError::QuotaExhausted { retry_after: None });
            }
            () = blocked => {}
            () = opened => {}
        }
    }
}

/// The time between two calls where `upstream.timeout` ends a request before its call comes, and no burst of calls helps; `None`: requests
/// have the time.
#[must_use]
pub fn interval_beyond_timeout(config: &UpstreamConfig) -> Option<Duration> {
    let quota = config.quota_per_minute;
    let interval = MINUTE.checked_div(quota)?;
    (config.timeout < interval && burst(quota) < 3).then_some(interval)
}

/// Takes a call for each try.
#[derive(Clone, Copy, Debug)]
pub struct QuotaLayer;

impl<S> Layer<S> for QuotaLayer {
    type Service = Quota<S>;

    fn layer(&self, inner: S) -> Quota<S> {
        Quota { inner }
    }
}

/// Answers [`UpstreamError::QuotaExhausted`] where there is no call for a further try.
#[derive(Clone, Debug)]
pub struct Quota<S> {
    inner: S,
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
        let acquired = request.call.clone();
        let (sent, further) = (request.sent.clone(), FurtherTry::of(&request));
        // Lazy: nothing is sent before it is polled.
        let call = self.inner.call(request);
        Box::pin(async move {
            let acquired = match acquired.take() {
                Some(acquired) => acquired,
                None => further.acquire().await?,
            };
            let _call = Trying {
                call: acquired,
                sent,
            };
            call.await
        })
    }
}

/// A try after the first: of the other token, without a condition, or a retry.
struct FurtherTry {
    credential: Arc<Credential>,
    space: SpaceToken,
    client: Arc<str>,
    is_retry: bool,
}

impl FurtherTry {
    fn of(request: &PageRequest) -> Self {
        Self {
            credential: request.credential.clone(),
            space: request.space.clone(),
            client: request.cause.clone(),
            is_retry: request.is_retry,
        }
    }

    async fn acquire(self) -> Result<Call, UpstreamError> {
        let budget = self.credential.budget();
        // While the quota is short nothing is tried again.
        if self.is_retry && budget.per_minute().is_some() {
            let call = budget.acquire_now().await;
            return Ok(call.map_err(BudgetExhausted::RetryAfter)?);
        }
        let waiters = Waiters::new(Waiter {
            client: self.client,
            need: match self.is_retry {
                true => Need::Nothing,
                false => Need::Begun,
            },
        });
        acquire(&self.credential, &self.space, &waiters, false).await
    }
}

/// A call while it is made. However that ends, it is spent if it was sent.
struct Trying {
    call: Call,
    sent: Sent,
}

impl Drop for Trying {
    fn drop(&mut self) {
        self.call.note_sent(self.sent.is_set());
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
mod tests;
