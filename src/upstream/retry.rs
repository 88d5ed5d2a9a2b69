//! Further tries of a call that failed for a while: few, apart from each other, and never more than a share of all calls.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tower::retry::{
    Policy, RetryLayer,
    backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff},
    budget::{Budget, TpsBudget},
};
use tower::util::rng::HasherRng;

use super::{PageRequest, UpstreamError};
use crate::config::UpstreamConfig;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Over how long the budget is counted.
const BUDGET_TTL: Duration = Duration::from_secs(10);
/// Retries a second that are free of the budget, so that a quiet gateway may retry at all.
const FREE_PER_SECOND: u32 = 1;

/// The retry layer as `[upstream] retries` and `retry_budget` say.
#[must_use]
pub(super) fn layer(config: &UpstreamConfig) -> RetryLayer<TransientRetry> {
    RetryLayer::new(TransientRetry {
        left: config.retries,
        budget: Arc::new(TpsBudget::new(
            BUDGET_TTL,
            FREE_PER_SECOND,
            // tower refuses NaN and negatives alone; the configuration admits neither.
            config.retry_budget as f32,
        )),
        backoff: ExponentialBackoffMaker::new(FIRST_PAUSE, LONGEST_PAUSE, 1.0, HasherRng::new())
            .expect("the pauses are in order and the jitter is a share")
            .make_backoff(),
    })
}

/// Tries again what [`UpstreamError::is_transient`] calls transient.
#[derive(Clone, Debug)]
pub(super) struct TransientRetry {
    left: u32,
    budget: Arc<TpsBudget>,
    backoff: ExponentialBackoff,
}

impl<R> Policy<PageRequest, R, UpstreamError> for TransientRetry {
    type Future = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn retry(
        &mut self,
        request: &mut PageRequest,
        result: &mut Result<R, UpstreamError>,
    ) -> Option<Self::Future> {
        let Err(error) = result else {
            self.budget.deposit();
            return None;
        };
        if !error.is_transient() || self.left == 0 || !self.budget.withdraw() {
            return None;
        }
        self.left -= 1;
        request.urgency = request.urgency.of_a_retry();
        Some(Box::pin(self.backoff.next_backoff()))
    }

    fn clone_request(&mut self, request: &PageRequest) -> Option<PageRequest> {
        Some(request.clone())
    }
}
