//! The edge: gives each request its id, each error its body, and writes the one line of the access log.

use std::{
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Once},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use opentelemetry::trace::{SpanContext, TraceId};
use tokio::time::Instant;
use tower::{Layer, Service};
use tracing::warn;

use crate::{
    api::{
        ApiError, LivePolicy,
        exchange::{Answer, Asked, Body, Facts},
    },
    domain::hex::write_hex,
    peer::{ConnectionInfo, Peer, TrustedProxies},
    telemetry::{
        access::{self, AccessLog},
        metrics::{CANCELLED, GaugeGuard, Metrics, NO_CLIENT, Route},
        traces::{Span, Tracer, traceparent},
    },
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
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

/// Observes what passes.
#[derive(Clone, Debug)]
pub struct ObserveLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    observing: Observing,
    policy: LivePolicy,
    proxies: TrustedProxies,
    /// That the proxies report clients where nobody looks is told once.
    told_of_overlooked: Once,
}

impl Shared {
    fn client_address<B>(&self, peer: Peer, request: &Request<B>) -> Option<IpAddr> {
        let headers = request.headers();
        if self.proxies.overlook(peer, headers) {
            self.observing.metrics.http.forwarded_ignored();
            self.told_of_overlooked.call_once(|| {
                warn!(
                    peer.address = peer.address().map(tracing::field::display),
                    "a trusted proxy reports clients in another field than server.forwarded_header names; it is ignored"
                );
            });
        }
        self.proxies.client_address(peer, headers)
    }

    fn begin_span<B>(
        &self,
        request: &Request<B>,
        route: Route,
        caller: Option<SpanContext>,
    ) -> Span {
        match &self.observing.tracer {
            // Probes ask for it all day.
            Some(tracer) if route != Route::Health => begin_span(tracer, request, route, caller),
            Some(_) | None => Span::default(),
        }
    }
}

/// Below the caller's span, where one was told.
fn begin_span<B>(
    tracer: &Tracer,
    request: &Request<B>,
    route: Route,
    caller: Option<SpanContext>,
) -> Span {
    let method = known_method(request.method());
    let template = template(route);
    let name = match (method, template) {
        (Some(method), Some(template)) => format!("{method} {template}").into(),
        (Some(method), None) => method.into(),
        (None, _) => "HTTP".into(),
    };
    let mut span = tracer.begin(name, caller);
    span.set("http.request.method", method.unwrap_or("_OTHER"));
    if let Some(template) = template {
        span.set("http.route", template);
    }
    span
}

/// A client may make up methods; they name no span.
fn known_method(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE",
    ];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}

/// The route as OpenTelemetry's conventions name it.
fn template(route: Route) -> Option<&'static str> {
    match route {
        Route::Tasks => Some("/spaces/{space_token}/tasks"),
        Route::BrowserTokens => Some("/browser-tokens"),
        Route::OpenApi => Some("/openapi.json"),
        Route::Health => Some("/healthz"),
        Route::Other => None,
    }
}

impl ObserveLayer {
    #[must_use]
    pub fn new(observing: Observing, policy: LivePolicy, proxies: TrustedProxies) -> Self {
        Self {
            shared: Arc::new(Shared {
                observing,
                policy,
                proxies,
                told_of_overlooked: Once::new(),
            }),
        }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe {
            inner,
            shared: self.shared.clone(),
        }
    }
}

/// The outermost service of the data listener.
#[derive(Clone, Debug)]
pub struct Observe<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B> Service<Request<B>> for Observe<S>
where
    S: Service<Box<Asked<B>>, Response = Answer>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let ConnectionInfo { peer, certificate } = request
            .extensions_mut()
            .remove()
            .expect("the server tells of the connection");
        let shared = &self.shared;
        let id = request_id(request.headers().get(REQUEST_ID));
        let caller = traceparent::read(request.headers());
        let caller_trace = caller.as_ref().map(SpanContext::trace_id);
        let route = route(request.uri().path());
        let span = shared.begin_span(&request, route, caller);
        let client_address = shared.client_address(peer, &request);
        let seen = Seen {
            started: Instant::now(),
            route,
            method: request.method().clone(),
            id: id.clone(),
            trace_id: span.context().trace_id().or(caller_trace),
            peer,
            client_address,
            in_flight: shared.observing.metrics.http.request_in_flight(),
            shared: shared.clone(),
            span,
        };
        let (head, body) = request.into_parts();
        let asked = Box::new(Asked {
            head,
            body,
            certificate,
            client_address,
            route,
            id,
            trace: seen.span.context().clone(),
            policy: shared.policy.load_full(),
            client: None,
        });
        ObserveFuture {
            inner: self.inner.call(asked),
            seen: Some(seen),
        }
    }
}

/// The route of `path`, by its form alone: whoever is refused is counted under it too.
pub(in crate::api) fn route(path: &str) -> Route {
    match path {
        "/openapi.json" => Route::OpenApi,
        "/healthz" => Route::Health,
        "/browser-tokens" => Route::BrowserTokens,
        _ if named_space(path).is_some() => Route::Tasks,
        _ => Route::Other,
    }
}

/// What stands in the space's place of a path of the tasks route, still percent-encoded.
///
/// Nothing at all is a bad token, not another route.
pub(in crate::api) fn named_space(path: &str) -> Option<&str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    path.strip_prefix("/spaces/")
        .or_else(|| path.strip_prefix("/api/v2/platform/spaces/"))?
        .strip_suffix("/tasks")
        // Byte by byte: each request comes here twice, and `contains` made a hit 2 % dearer.
        .filter(|space| space.bytes().all(|byte| byte != b'/'))
}

fn text(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

fn request_id(given: Option<&HeaderValue>) -> HeaderValue {
    let fit = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=64).contains(&bytes.len())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
    };
    given.filter(fit).cloned().unwrap_or_else(new_id)
}

/// 128 random bits in hex: ids need to differ, not to be secret.
fn new_id() -> HeaderValue {
    let mut digits = [0; 32];
    write_hex(&fastrand::u128(..).to_ne_bytes(), &mut digits);
    // Owned, so that the first copy allocates nothing.
    let digits = Bytes::from_owner(digits);
    HeaderValue::from_maybe_shared(digits).expect("hex digits are visible ASCII")
}

/// What is known of a request while it runs.
#[derive(Debug)]
struct Seen {
    started: Instant,
    route: Route,
    method: Method,
    id: HeaderValue,
    trace_id: Option<TraceId>,
    span: Span,
    peer: Peer,
    /// The peer's, or the one that a trusted proxy reports.
    client_address: Option<IpAddr>,
    in_flight: GaugeGuard,
    shared: Arc<Shared>,
}

impl Seen {
    /// Counts and logs a request whose client went away before there was an answer: hyper drops it then.
    fn cancelled(mut self) {
        self.span.fail(CANCELLED);
        let took = self.started.elapsed();
        self.metrics().http.cancelled(self.route, took);
        self.log(&Told {
            took,
            code: Some(CANCELLED),
            ..Told::default()
        });
    }

    fn finish(mut self, answer: Answer) -> Response<Body> {
        let Answer {
            mut response,
            facts,
        } = answer;
        self.dress(&mut response);
        // Refused as a parser would.
        let is_bare = response.status().is_client_error()
            && response.extensions().get::<ApiError>().is_none();
        self.report(&response, facts.as_ref());
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, self.id);
        if !is_bare {
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
        }
        response.body_mut().hold_in_flight(self.in_flight);
        response
    }

    /// Gives an error its body and the fields that every error has.
    fn dress(&self, response: &mut Response<Body>) {
        let Some(error) = response.extensions().get::<ApiError>() else {
            return;
        };
        let body = error.body(text(&self.id));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM);
        headers.insert(header::CACHE_CONTROL, NO_STORE);
        // CORS may have said more.
        headers.entry(header::VARY).or_insert(VARY);
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        // hyper leaves it out of HTTP/1 alone (RFC 9110 section 9.3.2).
        if self.method != Method::HEAD {
            response.body_mut().set(body);
        }
    }

    fn report(&mut self, response: &Response<Body>, facts: Option<&Facts>) {
        let took = self.started.elapsed();
        let account = facts.map(|facts| &facts.account);
        self.metrics()
            .http
            .answered(self.route, response.status(), account, took);
        let code = response.extensions().get().map(ApiError::code);
        if let Some(code) = code {
            self.metrics().http.error(code);
        }
        self.trace(response.status(), code, facts);
        self.log(&Told {
            took,
            facts,
            status: Some(response.status()),
            code,
            bytes: response.body().size_hint().exact(),
        });
    }

    /// What the request's span tells at its end; a refusal is the client's failure, not ours.
    fn trace(&mut self, status: StatusCode, code: Option<&'static str>, facts: Option<&Facts>) {
        if self.span.context().is_off() {
            return;
        }
        self.span
            .set("http.response.status_code", i64::from(status.as_u16()));
        self.span
            .set_with("gateway.request.id", || text(&self.id).to_owned());
        if let Some(address) = self.client_address {
            self.span.set("client.address", address.to_string());
        }
        if let Some(facts) = facts {
            self.span
                .set("gateway.client", facts.account.client().to_string());
            self.span
                .set("gateway.upstream.calls", i64::from(facts.upstream_calls));
            if let Some(space) = &facts.space {
                self.span.set("gateway.space", space.as_str().to_owned());
            }
            if let Some(outcome) = facts.cache {
                self.span.set("gateway.cache.outcome", outcome);
            }
        }
        match code {
            Some(code) if status.is_server_error() => self.span.fail(code),
            Some(code) => self.span.set("error.type", code),
            None => {}
        }
    }

    /// The one line of a request.
    fn log(&self, told: &Told<'_>) {
        if self.route == Route::Health {
            return;
        }
        let facts = told.facts;
        let query = facts.and_then(|facts| facts.query);
        self.shared.observing.access_log.write(&access::Request {
            id: text(&self.id),
            method: &self.method,
            route: self.route.as_str(),
            trace_id: self.trace_id,
            peer: self.peer.address(),
            client_address: self.client_address,
            client: facts.map_or(NO_CLIENT, |facts| facts.account.client()),
            space: facts.and_then(|facts| Some(facts.space.as_ref()?.as_str())),
            page: query.map(|query| query.page),
            page_size: query.map(|query| query.page_size),
            status: told.status.map(|status| status.as_u16()),
            code: told.code,
            bytes: told.bytes,
            duration_us: u64::try_from(told.took.as_micros()).unwrap_or(u64::MAX),
            cache: facts.and_then(|facts| facts.cache),
            age_s: facts.and_then(|facts| facts.age_s),
            upstream_calls: facts.map(|facts| facts.upstream_calls),
        });
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.observing.metrics
    }
}

/// How a request ended, as far as it came.
#[derive(Default)]
struct Told<'a> {
    took: Duration,
    facts: Option<&'a Facts>,
    status: Option<StatusCode>,
    code: Option<&'static str>,
    bytes: Option<u64>,
}

pin_project_lite::pin_project! {
    /// Finishes an answer when it is there.
    #[derive(Debug)]
    pub struct ObserveFuture<F> {
        #[pin]
        inner: F,
        seen: Option<Seen>,
    }

    impl<F> PinnedDrop for ObserveFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(seen) = this.project().seen.take() {
                seen.cancelled();
            }
        }
    }
}

impl<F, E> Future for ObserveFuture<F>
where
    F: Future<Output = Result<Answer, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.inner.poll(cx))?;
        let seen = this
            .seen
            .take()
            .expect("a future is not polled after it is ready");
        Poll::Ready(Ok(seen.finish(answer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_request_id_is_kept_and_any_other_replaced() {
        let kept = |text: &str| {
            let given = HeaderValue::from_str(text).unwrap();
            request_id(Some(&given)) == given
        };
        assert!(kept("a.B-9_z") && kept(&"x".repeat(64)));
        for bad in ["", "a b", "ä", "a/b", "\"", &"x".repeat(65)] {
            assert!(!kept(bad), "{bad}");
        }
        assert_ne!(request_id(None), request_id(None));
    }

    #[test]
    fn routes_are_told_by_the_form_of_their_path() {
        for (path, expected) in [
            ("/spaces/A/tasks", Route::Tasks),
            ("/spaces/A/tasks/", Route::Tasks),
            ("/api/v2/platform/spaces/A/tasks/", Route::Tasks),
            ("/spaces/A/B/tasks", Route::Other),
            ("/spaces/A/tasksx", Route::Other),
            ("/healthz", Route::Health),
            ("/openapi.json", Route::OpenApi),
            ("/browser-tokens", Route::BrowserTokens),
            ("/browser-tokens/x", Route::Other),
            ("/browser-tokens/", Route::Other),
            ("/healthz/", Route::Other),
            ("/spaces//tasks", Route::Tasks),
            ("/spaces/tasks", Route::Other),
            ("/spaces/A/tasks//", Route::Other),
            ("/", Route::Other),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }
}
