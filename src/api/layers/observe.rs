//! The edge: gives each request its id, each error its body, and writes the one line of the access log.

use std::{
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Once},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{BoxError, body::Body};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use opentelemetry::trace::{SpanContext, TraceId};
use tokio::time::Instant;
use tower::{Layer, Service};
use tracing::warn;

use self::{
    logged::LoggedAtEnd,
    span::{begin_span, end_span},
};
use super::request_id::{REQUEST_ID, request_id, text};
use crate::{
    api::{
        ApiError, LivePolicy,
        body::Guarded,
        context::{LogAt, RequestContext, RequestRecord, SharedRecord},
    },
    domain::SpaceFingerprint,
    peer::{ConnectionInfo, Peer, TrustedProxies},
    telemetry::{
        access::{self, AccessLog},
        metrics::{CANCELLED, CacheOutcome, GaugeGuard, Metrics, NO_CLIENT, Route},
        traces::{Span, Tracer, traceparent},
    },
};

mod logged;
mod span;

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");
/// A client's answer is nobody else's, whatever stands between (contract section 2).
pub const VARY: HeaderValue = HeaderValue::from_static("Accept-Encoding, Authorization");

/// Where what is seen of requests goes.
#[derive(Clone, Debug)]
pub struct Observing {
    pub metrics: Arc<Metrics>,
    pub access_log: AccessLog,
    /// `None`: tracing is off.
    pub tracer: Option<Tracer>,
}

/// Observes the requests of one route.
#[derive(Clone, Debug)]
pub struct ObserveLayer {
    shared: Arc<Shared>,
    route: Route,
}

#[derive(Debug)]
struct Shared {
    observing: Observing,
    policy: LivePolicy,
    proxies: TrustedProxies,
    /// Said once: the proxies report clients where nobody looks.
    warned_of_overlooked: Once,
}

impl ObserveLayer {
    #[must_use]
    pub fn new(observing: Observing, policy: LivePolicy, proxies: TrustedProxies) -> Self {
        Self {
            shared: Arc::new(Shared {
                observing,
                policy,
                proxies,
                warned_of_overlooked: Once::new(),
            }),
            route: Route::Other,
        }
    }

    /// The same for the requests of `route`.
    #[must_use]
    pub fn of(&self, route: Route) -> Self {
        let shared = self.shared.clone();
        Self { shared, route }
    }
}

impl Shared {
    fn client_address(&self, peer: Peer, headers: &HeaderMap) -> Option<IpAddr> {
        if self.proxies.overlook(peer, headers) {
            self.observing.metrics.http.forwarded_ignored();
            self.warned_of_overlooked.call_once(|| {
                warn!(
                    peer.address = peer.address().map(tracing::field::display),
                    "a trusted proxy reports clients in another field than server.forwarded_header names; it is ignored"
                );
            });
        }
        self.proxies.client_address(peer, headers)
    }

    fn begin_span(&self, method: &Method, route: Route, caller: Option<SpanContext>) -> Span {
        match &self.observing.tracer {
            // Probes ask for it all day.
            Some(tracer) if route != Route::Health => begin_span(tracer, method, route, caller),
            Some(_) | None => Span::default(),
        }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe {
            inner,
            layer: self.clone(),
        }
    }
}

/// The outermost service of a route.
#[derive(Clone, Debug)]
pub struct Observe<S> {
    inner: S,
    layer: ObserveLayer,
}

impl<S, B, R> Service<Request<B>> for Observe<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let (incoming, context) = IncomingRequest::new(&self.layer, &request);
        request.extensions_mut().insert(context);
        ObserveFuture {
            inner: self.inner.call(request),
            incoming: Some(incoming),
        }
    }
}

/// What is known of a request while it runs.
#[derive(Debug)]
struct IncomingRequest {
    started: Instant,
    layer: ObserveLayer,
    method: Method,
    id: HeaderValue,
    trace_id: Option<TraceId>,
    span: Span,
    peer: Peer,
    /// The peer's, or the one that a trusted proxy reports.
    client_address: Option<IpAddr>,
    record: SharedRecord,
    in_flight: GaugeGuard,
}

impl IncomingRequest {
    fn new<B>(layer: &ObserveLayer, request: &Request<B>) -> (Self, RequestContext) {
        let ObserveLayer { shared, route } = layer;
        let (headers, method) = (request.headers(), request.method());
        let connection = request.extensions().get::<ConnectionInfo>();
        let peer = connection.expect("the server tells of the connection").peer;
        let caller = traceparent::read(headers);
        let caller_trace = caller.as_ref().map(SpanContext::trace_id);
        let span = shared.begin_span(method, *route, caller);
        let context = RequestContext {
            id: request_id(headers),
            trace: span.context().clone(),
            policy: shared.policy.load_full(),
            client_address: shared.client_address(peer, headers),
            client: None,
            record: SharedRecord::default(),
        };
        let incoming = Self {
            started: Instant::now(),
            layer: layer.clone(),
            method: method.clone(),
            id: context.id.clone(),
            trace_id: span.context().trace_id().or(caller_trace),
            span,
            peer,
            client_address: context.client_address,
            record: context.record.clone(),
            in_flight: shared.observing.metrics.http.request_in_flight(),
        };
        (incoming, context)
    }

    /// Counts and logs a request whose client went away before there was an answer: hyper drops it then.
    fn cancelled(mut self) {
        self.span.fail(CANCELLED);
        let took = self.started.elapsed();
        self.metrics().http.cancelled(self.layer.route, took);
        self.log(&Outcome {
            took,
            code: Some(CANCELLED),
            record: self.record.take(),
            ..Outcome::default()
        });
    }

    fn finish<R>(mut self, response: Response<R>) -> Response<Body>
    where
        R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let (mut head, body) = response.into_parts();
        let mut record = self.record.take();
        let error: Option<ApiError> = head.extensions.remove();
        let problem = error
            .as_ref()
            .map(|error| self.problem(error, &mut head.headers));
        let instead = if self.method == Method::HEAD {
            tell_length(&mut head.headers, &body);
            Some(Bytes::new())
        } else {
            problem
        };
        let length = match &instead {
            Some(bytes) => u64::try_from(bytes.len()).ok(),
            None => body.size_hint().exact(),
        };
        if instead.is_some() {
            // Nothing of it is yet to come.
            record.log_at = LogAt::Answer;
        }
        let outcome = Outcome {
            took: self.started.elapsed(),
            status: Some(head.status),
            code: error.as_ref().map(ApiError::code),
            bytes: length,
            record,
        };
        self.report(head.status, &outcome);
        head.headers.insert(REQUEST_ID, self.id.clone());
        // A refusal that is no error of ours looks like one of the parser's.
        if error.is_some() || !head.status.is_client_error() {
            head.headers
                .insert(header::X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
        }
        // Whatever is sent in its place, the body keeps what it holds until that has left.
        let body = match (instead, outcome.record.log_at) {
            (Some(bytes), _) => Body::new(Guarded::new(Full::new(bytes), (body, self.in_flight))),
            (None, LogAt::Answer) => Body::new(Guarded::new(body, self.in_flight)),
            (None, LogAt::End) => Body::new(LoggedAtEnd::new(body, self, outcome)),
        };
        Response::from_parts(head, body)
    }

    /// The body of an error, whose fields are written to `headers`.
    fn problem(&self, error: &ApiError, headers: &mut HeaderMap) -> Bytes {
        let body = error.body(text(&self.id));
        headers.insert(header::CONTENT_TYPE, PROBLEM);
        headers.insert(header::CACHE_CONTROL, NO_STORE);
        // CORS may have said more.
        headers.entry(header::VARY).or_insert(VARY);
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        body
    }

    fn report(&mut self, status: StatusCode, outcome: &Outcome) {
        let account = outcome.record.account.as_ref();
        self.metrics()
            .http
            .answered(self.layer.route, status, account, outcome.took);
        if let Some(code) = outcome.code {
            self.metrics().http.error(code);
        }
        end_span(
            &mut self.span,
            &self.id,
            self.client_address,
            status,
            outcome,
        );
        if outcome.record.log_at == LogAt::Answer {
            self.log(outcome);
        }
    }

    /// The one line of a request.
    fn log(&self, outcome: &Outcome) {
        if self.layer.route == Route::Health {
            return;
        }
        let record = &outcome.record;
        let account = record.account.as_ref();
        self.layer
            .shared
            .observing
            .access_log
            .write(&access::Request {
                id: text(&self.id),
                method: &self.method,
                route: self.layer.route.as_str(),
                trace_id: self.trace_id,
                peer: self.peer.address(),
                client_address: self.client_address,
                client: account.map_or(NO_CLIENT, |account| account.client()),
                space: record.space.as_ref().map(SpaceFingerprint::as_str),
                page: record.query.map(|query| query.page),
                page_size: record.query.map(|query| query.page_size),
                status: outcome.status.map(|status| status.as_u16()),
                code: outcome.code,
                bytes: outcome.bytes,
                duration_us: u64::try_from(outcome.took.as_micros()).unwrap_or(u64::MAX),
                cache: record.cache.map(CacheOutcome::as_str),
                age_s: record.age_s,
                // Unknown of a request that was cancelled.
                upstream_calls: outcome.status.and(account).map(|_| record.upstream_calls),
            });
    }

    fn metrics(&self) -> &Metrics {
        &self.layer.shared.observing.metrics
    }
}

/// Tells a `HEAD` how long the body is that it does not get: hyper does that for HTTP/1 alone (RFC 9110 section 9.3.2).
fn tell_length(headers: &mut HeaderMap, body: &impl http_body::Body) {
    if let Some(length @ 1..) = body.size_hint().exact() {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
}

/// How a request ended, as far as it came.
#[derive(Default)]
struct Outcome {
    took: Duration,
    status: Option<StatusCode>,
    code: Option<&'static str>,
    bytes: Option<u64>,
    record: RequestRecord,
}

pin_project_lite::pin_project! {
    /// Finishes an answer when it is there.
    #[derive(Debug)]
    pub struct ObserveFuture<F> {
        #[pin]
        inner: F,
        incoming: Option<IncomingRequest>,
    }

    impl<F> PinnedDrop for ObserveFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(incoming) = this.project().incoming.take() {
                incoming.cancelled();
            }
        }
    }
}

impl<F, R, E> Future for ObserveFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        let incoming = this
            .incoming
            .take()
            .expect("a future is not polled after it is ready");
        Poll::Ready(Ok(incoming.finish(response)))
    }
}
