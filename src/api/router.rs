//! The data listener, composed once.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    response::Response,
    routing::{MethodRouter, any, get},
};
use futures_util::FutureExt;
use http::{HeaderValue, Method, Request, header};
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder, service_fn};

use super::{
    ApiError, Caller, LivePolicy,
    error::method_not_allowed,
    exchange::{self, Answer, Asked, Facts},
    layers::{
        catch_panic::CatchPanicLayer,
        cors::CorsLayer,
        host::HostLayer,
        internal_auth::InternalAuthLayer,
        observe::{ObserveLayer, Observing},
        shed::ShedLayer,
    },
    routes::{
        browser_tokens::{self, ReadWithin},
        tasks,
    },
};
use crate::{
    config::{AuthConfig, ServerConfig},
    peer::TrustedProxies,
    service::Pages,
    telemetry::metrics::Route,
};

/// What is served to anybody.
const PUBLIC: &[Route] = &[Route::Health, Route::OpenApi];
const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// What the routes share.
#[derive(Clone, Debug)]
pub struct Data {
    pub pages: Arc<Pages>,
}

/// Builds the data listener's service.
#[must_use]
pub fn data_service(
    data: Data,
    policy: LivePolicy,
    server: &ServerConfig,
    auth: &AuthConfig,
    observing: Observing,
) -> impl Service<
    Request<Incoming>,
    Response = http::Response<exchange::Body>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    let metrics = observing.metrics.clone();
    let authenticate = InternalAuthLayer::new(PUBLIC, auth.max_failures, metrics.clone());
    // A body is as short as a header, and is given as long.
    let others = others(ReadWithin(server.header_read_timeout));
    ServiceBuilder::new()
        // Outermost: whatever happens below gets a request id, a body if it is an error, and its line in the log.
        .layer(ObserveLayer::new(
            observing,
            policy,
            TrustedProxies::configured(server),
        ))
        // A request that could be read in two ways is nobody's.
        .layer(HostLayer)
        // Around whatever may refuse or fail: a browser hides an error that does not say who may read it.
        .layer(CorsLayer)
        // A bug costs one request, and is counted.
        .layer(CatchPanicLayer::new(metrics.clone()))
        // Before routing: a stranger learns of no route, no space and no parameter.
        .layer(authenticate)
        // Before any work but that, which is one digest: a place is a client's, and refusing must stay cheap when there is too much of it.
        .layer(ShedLayer::new(server, data.pages.clone(), metrics))
        // Pages leave before the router: the edge has told their route by its form, and finding it again would cost a hit boxed
        // futures, captures and a copy of the header.
        .service(service_fn(move |asked: Box<Asked>| match asked.route {
            // In one box: as it is, it would be copied from layer to layer, which took a sixth of all instructions of a hit.
            Route::Tasks => tasks::answer(data.clone(), asked).boxed(),
            Route::BrowserTokens | Route::OpenApi | Route::Health | Route::Other => {
                route(others.clone(), asked).boxed()
            }
        }))
}

/// Every route but that of the pages.
fn others(body: ReadWithin) -> Router {
    Router::new()
        // Every method: whether there is such a route is for the policy to say, before what it takes.
        .route(
            "/browser-tokens",
            any(browser_tokens::mint).with_state(body),
        )
        .route("/openapi.json", reading(get(openapi)))
        .route("/healthz", reading(get(healthz)))
        .fallback(|| async { ApiError::RouteNotFound })
}

async fn route(mut others: Router, asked: Box<Asked>) -> Result<Answer, Infallible> {
    let Asked {
        mut head,
        body,
        policy,
        client,
        ..
    } = *asked;
    let account = client.as_ref().map(|client| client.account.clone());
    if let Some(client) = client {
        head.extensions.insert(Caller { client, policy });
    }
    let request = Request::from_parts(head, body);
    Ok(Answer {
        facts: account.map(Facts::of),
        ..others.call(request).await?.into()
    })
}

fn reading(route: MethodRouter) -> MethodRouter {
    route.fallback(|| async {
        method_not_allowed(&[Method::GET, Method::HEAD]).map(|()| Body::empty())
    })
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
