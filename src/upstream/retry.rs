//! Further tries of a call that failed for a while: few, apart from each other, and never more than a share of all calls.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};
use tower::{
    Layer, Service,
    retry::{
        self, Policy,
        budget::{Budget, TpsBudget},
    },
    util::rng::{HasherRng, Rng},
};

use super::{PageRequest, UpstreamError};
use crate::{config::UpstreamConfig, telemetry::metrics::Metrics};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Over how long the budget is counted.
const BUDGET_TTL: Duration = Duration::from_secs(10);
/// Retries a second that are free of the budget, so that a quiet gateway may retry at all.
const FREE_PER_SECOND: u32 = 1;

/// Tries again as `[upstream] retries` and `retry_budget` say, within the deadline.
#[derive(Clone, Debug)]
pub(super) struct RetryLayer {
    retries: u32,
    budget: Arc<TpsBudget>,
    deadline: Duration,
    metrics: Arc<Metrics>,
}

impl RetryLayer {
    pub(super) fn new(config: &UpstreamConfig, metrics: Arc<Metrics>) -> Self {
        // tower refuses NaN and negatives alone; the configuration admits neither.
        let budget = TpsBudget::new(BUDGET_TTL, FREE_PER_SECOND, config.retry_budget as f32);
        Self {
            retries: config.retries,
            budget: Arc::new(budget),
            deadline: config.timeout,
            metrics,
        }
    }

    fn begin(&self) -> TransientRetry {
        TransientRetry {
            left: self.retries,
            budget: self.budget.clone(),
            began: Instant::now(),
            deadline: self.deadline,
            pauses: FullJitter::new(),
            metrics: self.metrics.clone(),
        }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry {
            inner,
            layer: self.clone(),
        }
    }
}

/// Gives each call a policy of its own, which knows when the call began; tower's `Retry` carries it out.
#[derive(Clone, Debug)]
pub(super) struct Retry<S> {
    inner: S,
    layer: RetryLayer,
}

impl<S, R> Service<PageRequest> for Retry<S>
where
    S: Service<PageRequest, Response = R, Error = UpstreamError> + Clone,
{
    type Response = R;
    type Error = UpstreamError;
    type Future = retry::future::ResponseFuture<TransientRetry, S, PageRequest>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: PageRequest) -> Self::Future {
        let fresh = self.inner.clone();
        let ready = mem::replace(&mut self.inner, fresh);
        retry::Retry::new(self.layer.begin(), ready).call(request)
    }
}

/// Tries again what [`UpstreamError::is_transient`] calls transient.
#[derive(Clone, Debug)]
pub(super) struct TransientRetry {
    left: u32,
    budget: Arc<TpsBudget>,
    began: Instant,
    deadline: Duration,
    pauses: FullJitter,
    metrics: Arc<Metrics>,
}

impl TransientRetry {
    /// How long to wait before the next try; `None` where none would end in time.
    fn pause(&mut self) -> Option<Duration> {
        let pause = self.pauses.draw();
        (self.began.elapsed().saturating_add(pause) < self.deadline).then_some(pause)
    }
}

impl<R> Policy<PageRequest, R, UpstreamError> for TransientRetry {
    type Future = Sleep;

    fn retry(
        &mut self,
        request: &mut PageRequest,
        result: &mut Result<R, UpstreamError>,
    ) -> Option<Sleep> {
        let Err(error) = result else {
            self.budget.deposit();
            return None;
        };
        if let Some(earlier) = request.last_error.of_no_try_since(&request.calls) {
            *error = earlier;
            return None;
        }
        if !error.is_transient() || self.left == 0 {
            return None;
        }
        // The circuit would refuse it, or the upstream asks to be left alone: this error is the better answer, and it is here now.
        if request
            .credential
            .circuit()
            .refuses(Some(&request.space))
            .is_some()
        {
            return None;
        }
        let pause = self.pause()?;
        if !self.budget.withdraw() {
            return None;
        }
        self.left -= 1;
        request.last_error.note(error, &request.calls);
        self.metrics.upstream.retried();
        request.is_retry = true;
        Some(sleep(pause))
    }

    fn clone_request(&mut self, request: &PageRequest) -> Option<PageRequest> {
        Some(request.clone())
    }
}

/// Pauses drawn from zero to a bound that doubles: calls that failed together do not come back together.
///
/// Not tower's `ExponentialBackoff`, which draws from the bound to its double, and the same for every clone of a policy.
#[derive(Clone, Debug)]
struct FullJitter {
    bound: Duration,
    random: HasherRng,
}

impl FullJitter {
    fn new() -> Self {
        Self {
            bound: FIRST_PAUSE,
            random: HasherRng::new(),
        }
    }

    fn draw(&mut self) -> Duration {
        let pause = self.bound.mul_f64(self.random.next_f64());
        self.bound = (self.bound * 2).min(LONGEST_PAUSE);
        pause
    }
}

#[cfg(test)]
mod tests;
