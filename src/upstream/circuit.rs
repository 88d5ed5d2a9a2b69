//! The circuit of each credential: an upstream that keeps failing is left alone for a while, then tried with one call at a time.
//!
//! [`Breaker`] decides; [`Circuit`] shares it among the calls of a credential; [`CircuitLayer`] asks it before each try and
//! tells it how the try ended.

use std::{
    future::ready,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};
use tower::{Layer, Service};
use tracing::{debug, info, warn};

use super::{Credential, PageRequest, UpstreamError, line::abandon_if_unsent};
use crate::{
    config::CircuitConfig,
    domain::{ListKey, PageKey, SpaceKey, SpaceToken},
};

mod breaker;

use self::breaker::{Breaker, Change, Scope, Ticket};

/// Whether the upstream is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    Closed,
    /// By one call at a time.
    HalfOpen,
    Open,
}

impl CircuitState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    /// As `gateway_circuit_state` shows it.
    #[must_use]
    pub fn as_number(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// What the end of a call tells about the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It answered, be it with a refusal.
    Works,
    Fails,
    /// It answered and failed, perhaps for this page alone: counted once a window.
    PageFails,
    /// It was not asked, or said nothing of itself.
    Nothing,
}

/// When a try left for the upstream; set by [`super::Client`].
///
/// The circuit stands above the quota and the slots, so that an open one costs neither, and cannot see from there where a
/// try is. It matters where the deadline drops a try: the upstream failed if it had the request long enough, and had no part
/// in it if the try was still waiting its turn.
#[derive(Clone, Debug, Default)]
pub struct Sent(Arc<OnceLock<Instant>>);

impl Sent {
    pub fn set(&self) {
        self.0.get_or_init(Instant::now);
    }

    #[must_use]
    pub fn is_set(&self) -> bool {
        self.at().is_some()
    }

    fn at(&self) -> Option<Instant> {
        self.0.get().copied()
    }
}

/// The longest that an upstream which fails is left alone because it asks for it.
const LONGEST_LEFT_ALONE: Duration = Duration::from_secs(300);

/// The circuit that all calls with one credential pass.
#[derive(Debug)]
pub struct Circuit {
    /// `None`: failures do not open it.
    breaker: Option<Mutex<Breaker>>,
    /// Until when the upstream asked to be left alone, and since when: a failure with `Retry-After`.
    left_alone: Mutex<Option<LeftAlone>>,
    opened: Arc<Notify>,
}

#[derive(Clone, Copy, Debug)]
struct LeftAlone {
    since: Instant,
    until: Instant,
}

impl Circuit {
    #[must_use]
    pub fn new(config: &CircuitConfig) -> Self {
        let breaker = || Mutex::new(Breaker::new(config, Instant::now()));
        Self {
            breaker: config.enabled.then(breaker),
            left_alone: Mutex::default(),
            opened: Arc::default(),
        }
    }

    #[must_use]
    pub fn state(&self) -> CircuitState {
        let now = Instant::now();
        match (self.left_alone(now), self.breaker()) {
            (Some(_), _) => CircuitState::Open,
            (None, Some(breaker)) => breaker.state(now),
            (None, None) => CircuitState::Closed,
        }
    }

    /// As a call for `space` meets it: closed where it is open for another space alone.
    #[must_use]
    pub fn state_for(&self, space: &SpaceToken) -> CircuitState {
        let is_left_alone = self.left_alone(Instant::now()).is_some();
        let concerns = |breaker: MutexGuard<'_, Breaker>| breaker.concerns(Some(space));
        if is_left_alone || self.breaker().is_some_and(concerns) {
            self.state()
        } else {
            CircuitState::Closed
        }
    }

    /// Since when it is closed, or is not; `None`: it has not been otherwise.
    #[must_use]
    pub fn closed_or_not_since(&self) -> Option<Instant> {
        let left_alone = self.left_alone(Instant::now()).map(|alone| alone.since);
        left_alone.or_else(|| Some(self.breaker()?.closed_or_not_since()))
    }

    /// How long to wait where a call for `space`, or for any, would be refused now.
    #[must_use]
    pub fn refuses(&self, space: Option<&SpaceToken>) -> Option<Duration> {
        let now = Instant::now();
        let left_alone = self.left_alone(now).map(|alone| alone.until - now);
        left_alone.or_else(|| self.breaker()?.refuses(space, now))
    }

    fn admit(&self, space: &SpaceToken) -> Result<Option<Ticket>, Duration> {
        let now = Instant::now();
        if let Some(alone) = self.left_alone(now) {
            return Err(alone.until - now);
        }
        self.breaker()
            .map(|mut breaker| breaker.admit(space, now))
            .transpose()
    }

    fn record(&self, ticket: Ticket, evidence: Evidence, page: &PageKey) -> Option<Change> {
        let change = self
            .breaker()?
            .record(ticket, evidence, page, Instant::now());
        if matches!(change, Some(Change::Opened(_))) {
            self.opened.notify_waiters();
        }
        change
    }

    /// Makes no call for `pause`, as the upstream asks; `true` where that is news.
    fn leave_alone(&self, pause: Duration) -> bool {
        let since = Instant::now();
        let until = since + pause.min(LONGEST_LEFT_ALONE);
        let mut left_alone = self.left_alone.lock();
        let before = left_alone.filter(|alone| alone.until > since);
        *left_alone = Some(LeftAlone {
            since: before.map_or(since, |before| before.since),
            until: before.map_or(until, |before| before.until.max(until)),
        });
        drop(left_alone);
        self.opened.notify_waiters();
        before.is_none()
    }

    fn left_alone(&self, now: Instant) -> Option<LeftAlone> {
        self.left_alone.lock().filter(|alone| alone.until > now)
    }

    fn breaker(&self) -> Option<MutexGuard<'_, Breaker>> {
        let breaker = self.breaker.as_ref()?;
        Some(breaker.lock())
    }
}

/// Stops calls with a credential whose circuit is open.
#[derive(Clone, Copy, Debug)]
pub struct CircuitLayer {
    patience: Duration,
}

impl CircuitLayer {
    /// `patience` is how long the upstream must have had a dropped call for its silence to count as a failure: the next in
    /// line for a slot may be sent at the very moment of its deadline.
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

/// Answers [`UpstreamError::Unavailable`] where the circuit is open, or opens before a try is sent.
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
        let (attempt, opened) = match Attempt::begin(&request, self.patience) {
            Ok(begun) => begun,
            Err(retry_after) => {
                return Box::pin(ready(Err(UpstreamError::Unavailable { retry_after })));
            }
        };
        request.sent = attempt.sent.clone();
        // Not before it was admitted: it takes its place in the queue at once.
        let call = self.inner.call(request);
        Box::pin(async move {
            let outcome = abandon_if_unsent(call, opened, || attempt.sent.is_set()).await;
            let outcome = outcome.unwrap_or_else(|| Err(attempt.refused()));
            attempt.end(&outcome);
            outcome
        })
    }
}

/// A try under way. The breaker is told of its end however it ends; a probe that is dropped gives its place back.
struct Attempt {
    credential: Arc<Credential>,
    page: PageKey,
    sent: Sent,
    patience: Duration,
    /// `None` once it is handed back, and where there is no breaker.
    ticket: Option<Ticket>,
}

impl Attempt {
    /// Asks for leave; with it comes word of the circuit's next opening.
    fn begin(request: &PageRequest, patience: Duration) -> Result<(Self, OwnedNotified), Duration> {
        let circuit = request.credential.circuit();
        // Listens before it asks: no opening falls between.
        let opened = circuit.opened.clone().notified_owned();
        let attempt = Self {
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
        };
        Ok((attempt, opened))
    }

    fn refused(&self) -> UpstreamError {
        let circuit = self.credential.circuit();
        let retry_after = circuit
            .refuses(Some(&self.page.list.space.space))
            .unwrap_or_default();
        UpstreamError::Unavailable { retry_after }
    }

    fn end<T>(mut self, outcome: &Result<T, UpstreamError>) {
        let asked = outcome.as_ref().err().and_then(UpstreamError::asks_to_wait);
        if let Some(pause) = asked
            && self.credential.circuit().leave_alone(pause)
        {
            warn!(
                credential.name = self.credential.name,
                upstream.retry_after_s = pause.as_secs(),
                "upstream fails and asks to be left alone: it is not asked for as long, or five minutes"
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
                "upstream keeps failing: the circuit is open, and it is not asked for a while"
            ),
            Some(Change::Opened(Scope::Space(space))) => warn!(
                credential.name = credential,
                %space,
                "upstream keeps failing for one space: the circuit is open for it, and it is not asked for it for a while"
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
