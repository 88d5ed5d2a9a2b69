//! The data listener, composed once.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::{MethodRouter, any, get},
};
use http::{HeaderValue, Method, Request, header};
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder};
use tower_http::catch_panic::CatchPanicLayer;

use super::{
    ApiError, LivePolicy,
    error::method_not_allowed,
    layers::{
        cors::CorsLayer,
        internal_auth::InternalAuthLayer,
        observe::{AccessLog, ObserveLayer},
        shed::ShedLayer,
    },
    peer::TrustedProxies,
    routes::{
        browser_tokens::{self, ReadWithin},
        tasks,
    },
};
use crate::{
    config::{AuthConfig, ServerConfig},
    service::Tasks,
    telemetry::{metrics::Metrics, traces::Tracer},
};

/// Paths served to anybody.
const PUBLIC: &[&str] = &[HEALTH, "/openapi.json"];
const HEALTH: &str = "/healthz";
const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Data {
    pub tasks: Arc<Tasks>,
}

/// Builds the data listener's service.
#[must_use]
pub fn data_service(
    data: Data,
    policy: LivePolicy,
    server: &ServerConfig,
    auth: &AuthConfig,
    access_log: AccessLog,
    metrics: Arc<Metrics>,
    tracer: Option<Tracer>,
) -> impl Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static {
    let cors = CorsLayer::new(policy.clone());
    let authenticate = InternalAuthLayer::new(
        policy,
        PUBLIC,
        TrustedProxies::configured(server),
        auth.max_failures,
        metrics.clone(),
    );
    // A body is as short as a header, and is given as long.
    let body = ReadWithin(server.header_read_timeout);
    let panicked = metrics.clone();
    ServiceBuilder::new()
        // Outermost: whatever happens below gets a request id, a body if it is an error, and its line in the log.
        .layer(ObserveLayer::new(
            metrics.clone(),
            access_log,
            TrustedProxies::configured(server),
            tracer,
        ))
        // Around whatever may refuse or fail: a browser hides an error that does not say who may read it.
        .layer(cors)
        // One body type again, whatever the layer below boxed.
        .map_response(|response: Response<_>| response.map(Body::new))
        // A bug costs one request, and is counted.
        .layer(CatchPanicLayer::custom(move |_| {
            panicked.panicked();
            ApiError::Internal.into_response()
        }))
        // Before any work: refusing must stay cheap when there is too much of it.
        .layer(ShedLayer::new(server.max_in_flight, HEALTH, metrics))
        // Before routing: a stranger learns of no route, no space and no parameter.
        .layer(authenticate)
        .service(routes(data, body).into_service::<Incoming>())
}

fn routes(data: Data, body: ReadWithin) -> Router {
    Router::new()
        .route("/spaces/{space_token}/tasks", page())
        .route("/spaces/{space_token}/tasks/", page())
        .route("/api/v2/platform/spaces/{space_token}/tasks", page())
        .route("/api/v2/platform/spaces/{space_token}/tasks/", page())
        // An empty token is a bad token, not another route.
        .route("/spaces//tasks", empty_token())
        .route("/spaces//tasks/", empty_token())
        .route("/api/v2/platform/spaces//tasks", empty_token())
        .route("/api/v2/platform/spaces//tasks/", empty_token())
        .with_state(data)
        // Every method: whether there is such a route is for the policy to say, before what it takes.
        .route(
            "/browser-tokens",
            any(browser_tokens::mint).with_state(body),
        )
        .route("/openapi.json", reading(get(openapi)))
        .route(HEALTH, reading(get(healthz)))
        .fallback(|| async { ApiError::RouteNotFound })
}

fn page() -> MethodRouter<Data> {
    get(tasks::page).fallback(only_reading)
}

fn empty_token() -> MethodRouter<Data> {
    reading(get(|| async { ApiError::InvalidSpaceToken }))
}

fn reading<S: Clone + Send + Sync + 'static>(route: MethodRouter<S>) -> MethodRouter<S> {
    route.fallback(only_reading)
}

async fn only_reading() -> Response {
    method_not_allowed(&[Method::GET, Method::HEAD])
}

async fn openapi() -> Response {
    plain("application/json", OPENAPI)
}

async fn healthz() -> Response {
    plain("text/plain; charset=utf-8", "ok")
}

fn plain(content_type: &'static str, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
