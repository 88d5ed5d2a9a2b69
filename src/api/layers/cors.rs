//! What browsers may do with the routes of a space: the server's side of the CORS protocol (Fetch standard, section 3.3).
//!
//! Of our own, since tower-http's layer answers every `OPTIONS`, tells an origin that is not allowed what others may send, and adds
//! a second `Vary`.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use tower::{Layer, Service};

use crate::{
    api::context::RequestContext,
    config::{CorsConfig, cors::RequestHeader},
};

/// Whatever the origin: a stored answer must not be taken for another's.
const VARY: HeaderValue = HeaderValue::from_static("Accept-Encoding, Authorization, Origin");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD");
/// What pages may send anyway; the last three are what tracing in a browser adds to each request (W3C Trace Context and Baggage).
const REQUEST_HEADERS: [HeaderName; 8] = [
    header::AUTHORIZATION,
    header::IF_NONE_MATCH,
    header::CACHE_CONTROL,
    // What a reader of changes goes on from.
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
];
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "ETag, Link, Cache-Status, X-Request-Id, RateLimit, RateLimit-Policy, X-List-Generation, X-List-Scope, Age, Retry-After, Date",
);
/// How long browsers cache a preflight, in seconds; a withdrawn origin may pass for that long.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Answers preflights, and says of every other answer who may read it.
#[derive(Clone, Debug)]
pub struct CorsLayer;

impl<S> Layer<S> for CorsLayer {
    type Service = Cors<S>;

    fn layer(&self, inner: S) -> Cors<S> {
        Cors { inner }
    }
}

/// Outside of all that may refuse, so that a browser may read the refusal too.
#[derive(Clone, Debug)]
pub struct Cors<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Cors<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = CorsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let terms = Terms::of(
            &RequestContext::of(request.extensions()).policy.cors,
            &request,
        );
        let is_preflight = terms
            .as_ref()
            .is_some_and(|terms| terms.preflight.is_some());
        CorsFuture {
            inner: (!is_preflight).then(|| self.inner.call(request)),
            terms,
        }
    }
}

/// What an answer must say, besides itself.
#[derive(Debug, PartialEq, Eq)]
struct Terms {
    /// The origin that asks, if it may.
    allowed: Option<HeaderValue>,
    /// What it may send; `None` where it is no preflight.
    preflight: Option<HeaderValue>,
}

impl Terms {
    /// `None` where no origin is configured.
    fn of<B>(cors: &CorsConfig, request: &Request<B>) -> Option<Self> {
        if cors.origins.is_empty() {
            return None;
        }
        let headers = request.headers();
        let allowed = sole_origin(headers).filter(|origin| {
            let origin = origin.as_bytes();
            cors.origins.iter().any(|pattern| pattern.matches(origin))
        });
        let is_preflight = request.method() == Method::OPTIONS
            && headers.contains_key(header::ORIGIN)
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        Some(Self {
            allowed: allowed.cloned(),
            preflight: is_preflight.then(|| request_headers(cors)),
        })
    }

    fn write(self, headers: &mut HeaderMap) {
        headers.insert(header::VARY, VARY);
        let Some(origin) = self.allowed else {
            return;
        };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if let Some(request_headers) = self.preflight {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, request_headers);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        } else {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
        }
    }
}

/// The same whatever the preflight asks about: the browser compares.
fn request_headers(cors: &CorsConfig) -> HeaderValue {
    let mut names = REQUEST_HEADERS.to_vec();
    for RequestHeader(name) in &cors.allow_headers {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
    HeaderValue::try_from(names.join(", ")).expect("names and commas are visible ASCII")
}

/// The one `Origin`; a browser sends no two.
fn sole_origin(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut values = headers.get_all(header::ORIGIN).into_iter();
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// The same for any origin: what it may do, the fields say.
fn preflight<R: Default>() -> Response<R> {
    let mut response = Response::new(R::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    response
}

pin_project_lite::pin_project! {
    /// Adds the fields to an answer when it is there.
    #[derive(Debug)]
    pub struct CorsFuture<F> {
        // `None`: a preflight, answered from here.
        #[pin]
        inner: Option<F>,
        terms: Option<Terms>,
    }
}

impl<F, R, E> Future for CorsFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Default,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.inner.as_pin_mut() {
            Some(inner) => ready!(inner.poll(cx))?,
            None => preflight(),
        };
        if let Some(terms) = this.terms.take() {
            terms.write(response.headers_mut());
        }
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible, future::ready, sync::Arc};

    use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};

    use super::*;
    use crate::{
        api::{Clients, Issuers, Policy, context::SharedRecord},
        config::Config,
        telemetry::traces::TraceContext,
        upstream::{Credentials, PageRequest, UpstreamError},
    };

    const APP: &str = "https://app.example.com";

    type Lines<'a> = [(&'a str, &'a str)];

    fn policy(origins: &[&str]) -> Arc<Policy> {
        let text = format!(
            "[upstream]\nbase_url = 'https://unpod.example'\n\
             [upstream.credentials.default]\ntoken = 'abc'\n[cors]\norigins = {origins:?}"
        );
        let config = Config::from_toml(&text).unwrap();
        let credentials = Credentials::load(&config.upstream).unwrap();
        let issuers = Issuers::load(&config.auth, None).unwrap();
        let clients = Clients::new(&config.clients, &config.views, credentials, issuers, None);
        let upstream = service_fn(|_: PageRequest| ready(Err(UpstreamError::Overloaded)));
        let upstream = Arc::new(BoxCloneSyncService::new(upstream));
        Arc::new(Policy::new(&config, clients, upstream, BTreeMap::new()))
    }

    fn request(policy: Arc<Policy>, method: &str, lines: &Lines) -> Request<()> {
        let context = RequestContext {
            id: HeaderValue::from_static("1"),
            trace: TraceContext::default(),
            policy,
            client_address: None,
            client: None,
            record: SharedRecord::default(),
        };
        let mut request = Request::builder().method(method).extension(context);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn terms(method: &str, lines: &Lines) -> Option<Terms> {
        let policy = policy(&[APP]);
        Terms::of(&policy.cors, &request(policy.clone(), method, lines))
    }

    #[test]
    fn a_preflight_is_an_options_that_says_who_asks_and_for_what() {
        let origin = ("origin", APP);
        let foreign = ("origin", "https://evil.test");
        let asks = ("access-control-request-method", "GET");
        let table: &[(&str, &Lines, bool, bool)] = &[
            ("OPTIONS", &[origin, asks], true, true),
            ("OPTIONS", &[foreign, asks], false, true),
            ("OPTIONS", &[origin, origin, asks], false, true),
            ("OPTIONS", &[asks], false, false),
            ("OPTIONS", &[origin], true, false),
            ("OPTIONS", &[], false, false),
            ("GET", &[origin, asks], true, false),
            ("GET", &[foreign], false, false),
            ("GET", &[], false, false),
        ];
        for &(method, lines, allowed, is_preflight) in table {
            let allowed = allowed.then(|| HeaderValue::from_static(APP));
            let terms = terms(method, lines).unwrap();
            let judged = (terms.allowed, terms.preflight.is_some());
            assert_eq!(judged, (allowed, is_preflight), "{method} {lines:?}");
        }
    }

    #[test]
    fn what_a_page_may_send_is_told_once_each_in_lower_case() {
        let own = "authorization, if-none-match, cache-control, last-event-id, x-request-id, traceparent, tracestate, baggage";
        for (configured, more) in [
            ("[]", ""),
            ("['x-my-trace']", ", x-my-trace"),
            ("['X-B3-TraceId', 'b3']", ", x-b3-traceid, b3"),
            ("['b3', 'B3', 'Authorization', 'Baggage']", ", b3"),
        ] {
            let config = Config::from_toml(&format!(
                "[upstream]\nbase_url = 'https://unpod.example'\n\
                 [upstream.credentials.default]\ntoken = 'abc'\n[cors]\nallow_headers = {configured}"
            ));
            let told = request_headers(&config.unwrap().cors);
            assert_eq!(told, format!("{own}{more}"), "{configured}");
        }
    }

    #[tokio::test]
    async fn the_policy_it_came_under_decides() {
        let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) });
        let service = CorsLayer.layer(inner);
        let answer = async |origins: &[&str]| {
            let request = request(policy(origins), "GET", &[("origin", APP)]);
            let answer = service.clone().oneshot(request);
            let headers = answer.await.unwrap().headers().clone();
            let allowed = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).cloned();
            (headers.contains_key(header::VARY), allowed)
        };

        assert_eq!(answer(&[]).await, (false, None));
        let allowed = HeaderValue::from_static(APP);
        let shown = answer(&["https://*.example.com"]).await;
        assert_eq!(shown, (true, Some(allowed)));
        let shown = answer(&["https://other.example.com"]).await;
        assert_eq!(shown, (true, None));
    }

    #[tokio::test]
    async fn a_preflight_reaches_nobody() {
        let inner = service_fn(|_: Request<()>| async { panic!("it was passed on") });
        let mut service = CorsLayer.layer(inner);
        for origin in [APP, "https://evil.test"] {
            let lines = [("origin", origin), ("access-control-request-method", "GET")];
            let request = request(policy(&[APP]), "OPTIONS", &lines);
            let answering = service.ready().await.unwrap().call(request);
            let answer: Result<Response<()>, Infallible> = answering.await;
            assert_eq!(answer.unwrap().status(), StatusCode::NO_CONTENT);
        }
    }
}
