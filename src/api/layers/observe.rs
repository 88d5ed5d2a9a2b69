//! The edge: gives each request its id, each error its body, and writes the one line of the access log.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{body::Body, response::Response};
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body::Body as _;
use tokio::time::Instant;
use tower::{Layer, Service};
use tracing::info;

use crate::{
    api::ApiError,
    domain::SpaceToken,
    telemetry::metrics::{GaugeGuard, Metrics, NO_CLIENT, Route},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// A client's answer is nobody else's, whatever stands between (contract section 2).
pub const VARY: HeaderValue = HeaderValue::from_static("Accept-Encoding, Authorization");

/// The request's id: the client's own if it is fit, else a new one.
#[derive(Clone, Debug)]
pub struct RequestId(pub HeaderValue);

/// What a handler tells the access log, in the answer's extensions.
#[derive(Clone, Debug)]
pub struct Facts {
    pub client: Arc<str>,
    pub space: Option<SpaceToken>,
    pub cache: Option<&'static str>,
    pub age_s: Option<u64>,
}

/// Whether each request is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    On,
    Off,
}

/// Observes what passes.
#[derive(Clone, Debug)]
pub struct ObserveLayer {
    metrics: Arc<Metrics>,
    access_log: AccessLog,
}

impl ObserveLayer {
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, access_log: AccessLog) -> Self {
        Self {
            metrics,
            access_log,
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

/// The outermost service of the data listener.
#[derive(Clone, Debug)]
pub struct Observe<S> {
    inner: S,
    layer: ObserveLayer,
}

impl<S, B> Service<Request<B>> for Observe<S>
where
    S: Service<Request<B>, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let id = request_id(request.headers().get(REQUEST_ID));
        request.extensions_mut().insert(RequestId(id.clone()));
        let seen = Seen {
            started: Instant::now(),
            route: route(request.uri().path()),
            method: request.method().clone(),
            id,
            in_flight: self.layer.metrics.request_in_flight(),
            layer: self.layer.clone(),
        };
        ObserveFuture {
            inner: self.inner.call(request),
            seen: Some(seen),
        }
    }
}

/// The route as it is counted: by the path's form alone, since whoever is refused has seen no router.
pub(super) fn route(path: &str) -> Route {
    let path = path.strip_suffix('/').unwrap_or(path);
    let space = path
        .strip_prefix("/spaces/")
        .or_else(|| path.strip_prefix("/api/v2/platform/spaces/"))
        .and_then(|rest| rest.strip_suffix("/tasks"));
    match path {
        "/openapi.json" => Route::OpenApi,
        "/healthz" => Route::Health,
        "/browser-tokens" => Route::BrowserTokens,
        _ if space.is_some_and(|space| !space.contains('/')) => Route::Tasks,
        _ => Route::Other,
    }
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

/// 128 random bits in hex. The seed is the system's, once a process; ids need to differ, not to be secret.
fn new_id() -> HeaderValue {
    use std::hash::{BuildHasher, RandomState};
    let (high, low) = (
        RandomState::new().hash_one(1),
        RandomState::new().hash_one(2),
    );
    HeaderValue::try_from(format!("{high:016x}{low:016x}")).expect("hex digits are visible ASCII")
}

/// What is known of a request while it runs.
#[derive(Debug)]
struct Seen {
    started: Instant,
    route: Route,
    method: Method,
    id: HeaderValue,
    in_flight: GaugeGuard,
    layer: ObserveLayer,
}

impl Seen {
    fn finish(self, response: Response) -> Response {
        let mut response = self.dress(response);
        response.headers_mut().insert(REQUEST_ID, self.id.clone());
        self.report(&response);
        drop(self.in_flight);
        response
    }

    /// Gives an error its body and the fields that every error has.
    fn dress(&self, mut response: Response) -> Response {
        let Some(error) = response.extensions().get::<ApiError>() else {
            return response;
        };
        let body = error.body(self.id.to_str().unwrap_or_default());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM);
        headers.insert(header::CACHE_CONTROL, NO_STORE);
        // CORS may have said more.
        headers.entry(header::VARY).or_insert(VARY);
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        // hyper leaves it out of HTTP/1 alone (RFC 9110 section 9.3.2).
        if self.method != Method::HEAD {
            *response.body_mut() = Body::from(body);
        }
        response
    }

    fn report(&self, response: &Response) {
        let took = self.started.elapsed();
        let facts = response.extensions().get::<Facts>();
        let client = facts.map_or(NO_CLIENT, |facts| facts.client.as_ref());
        self.layer
            .metrics
            .answered(self.route, response.status(), client, took);
        let error = response.extensions().get::<ApiError>();
        if let Some(error) = error {
            self.layer.metrics.answered_error(error.code());
        }
        if self.layer.access_log == AccessLog::Off || self.route == Route::Health {
            return;
        }
        info!(
            request.id = self.id.to_str().unwrap_or_default(),
            request.method = self.method.as_str(),
            request.route = self.route.as_str(),
            client.name = client,
            space = facts
                .and_then(|facts| facts.space.as_ref())
                .map(tracing::field::display),
            response.status = response.status().as_u16(),
            response.code = error.map(ApiError::code),
            response.bytes = response.body().size_hint().exact(),
            response.duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            cache.outcome = facts.and_then(|facts| facts.cache),
            page.age_s = facts.and_then(|facts| facts.age_s),
            "request"
        );
    }
}

pin_project_lite::pin_project! {
    /// Finishes an answer when it is there.
    #[derive(Debug)]
    pub struct ObserveFuture<F> {
        #[pin]
        inner: F,
        seen: Option<Seen>,
    }
}

impl<F, E> Future for ObserveFuture<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        let seen = this
            .seen
            .take()
            .expect("a future is not polled after it is ready");
        Poll::Ready(Ok(seen.finish(response)))
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
            ("/", Route::Other),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }
}
