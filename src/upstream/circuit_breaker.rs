//! Asks the circuit of a call's credential before each try, and tells it how the try ended.

use std::{
    future::ready,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tower::{Layer, Service};
use tracing::{debug, info, warn};

use super::{
    circuit::{Change, Scope, Ticket},
    credential::Credential,
    error::{Evidence, UpstreamError},
    request::{PageRequest, Sent},
};
use crate::domain::{ListKey, PageKey, SpaceKey};

/// Refuses calls with a credential whose circuit is open.
#[derive(Clone, Copy, Debug)]
pub struct CircuitLayer {
    patience: Duration,
}

impl CircuitLayer {
    /// `patience` is how long the upstream must have had a call that the deadline dropped, for it to count as a failure: a call that
    /// queued may be sent just before its deadline.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self { patience }
    }
}

impl<S> Layer<S> for CircuitLayer {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> CircuitBreaker<S> {
        CircuitBreaker {
            inner,
            patience: self.patience,
        }
    }
}

/// Answers [`UpstreamError::Unavailable`] where the circuit is open.
#[derive(Clone, Debug)]
pub struct CircuitBreaker<S> {
    inner: S,
    patience: Duration,
}

impl<S> Service<PageRequest> for CircuitBreaker<S>
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

    fn call(&mut self, mut request: PageRequest) -> Self::Future {
        let attempt = match Attempt::begin(&request, self.patience) {
            Ok(begun) => begun,
            Err(retry_after) => {
                return Box::pin(ready(Err(UpstreamError::Unavailable { retry_after })));
            }
        };
        request.sent = attempt.sent.clone();
        let call = self.inner.call(request);
        Box::pin(async move {
            let outcome = call.await;
            attempt.end(&outcome);
            outcome
        })
    }
}

/// A try under way. However it ends, the breaker is told; a dropped probe lets the next one through.
struct Attempt {
    credential: Arc<Credential>,
    page: PageKey,
    sent: Sent,
    patience: Duration,
    /// `None` once it was handed back, and where the breaker is off.
    ticket: Option<Ticket>,
}

impl Attempt {
    /// Admits a try.
    fn begin(request: &PageRequest, patience: Duration) -> Result<Self, Duration> {
        let circuit = request.credential.circuit();
        Ok(Self {
            ticket: circuit.admit(&request.space)?,
            credential: request.credential.clone(),
            page: PageKey {
                list: ListKey {
                    space: SpaceKey {
                        credential: request.credential.id,
                        space: request.space.clone(),
                    },
                    id: request.list.clone(),
                },
                query: request.query,
            },
            sent: Sent::default(),
            patience,
        })
    }

    fn end<T>(mut self, outcome: &Result<T, UpstreamError>) {
        let asked = outcome.as_ref().err().and_then(UpstreamError::asks_to_wait);
        if let Some(pause) = asked
            && self.credential.circuit().pause(pause)
        {
            warn!(
                credential.name = self.credential.name,
                upstream.retry_after_s = pause.as_secs(),
                "upstream failed with retry-after: calls are paused for as long, at most five minutes"
            );
        }
        self.record(match outcome {
            Ok(_) => Evidence::Works,
            Err(error) => error.evidence(),
        });
    }

    fn record(&mut self, evidence: Evidence) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let circuit = self.credential.circuit();
        let credential = &self.credential.name;
        match circuit.record(ticket, evidence, &self.page) {
            Some(Change::Opened(Scope::All)) => warn!(
                credential.name = credential,
                "upstream keeps failing: the circuit is open"
            ),
            Some(Change::Opened(Scope::Space(space))) => warn!(
                credential.name = credential,
                %space,
                "upstream keeps failing for one space: the circuit is open for it"
            ),
            Some(Change::StaysOpen) => debug!(
                credential.name = credential,
                "upstream still fails: the circuit stays open"
            ),
            Some(Change::Closed) => info!(
                credential.name = credential,
                "upstream works again: the circuit is closed"
            ),
            None => {}
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Only the deadline drops a try: fills run in tasks of their own.
        let had_its_time = |sent: Instant| sent.elapsed() >= self.patience;
        self.record(if self.sent.at().is_some_and(had_its_time) {
            Evidence::Fails
        } else {
            Evidence::Nothing
        });
    }
}

#[cfg(test)]
mod tests;
