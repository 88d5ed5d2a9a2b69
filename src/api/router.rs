//! The data listener, composed once.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, Request, header};
use http_body::Body as _;
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder, service_fn};

use super::{
    ApiError, LivePolicy,
    error::method_not_allowed,
    layers::{
        catch_panic::CatchPanicLayer,
        cors::CorsLayer,
        internal_auth::InternalAuthLayer,
        observe::{AccessLog, ObserveLayer, route},
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
    telemetry::{
        metrics::{Metrics, Route},
        traces::Tracer,
    },
};

/// Paths served to anybody.
const PUBLIC: &[&str] = &[HEALTH, "/openapi.json"];
const HEALTH: &str = "/healthz";
const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// What the routes share.
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
        // A bug costs one request, and is counted.
        .layer(CatchPanicLayer::new(metrics.clone()))
        // Before any work: refusing must stay cheap when there is too much of it.
        .layer(ShedLayer::new(server.max_in_flight, HEALTH, metrics))
        // Before routing: a stranger learns of no route, no space and no parameter.
        .layer(authenticate)
        .service(service_fn(move |request| {
            let answer = answer(data.clone(), body, request);
            async { Ok(answer.await) }
        }))
}

/// Goes by the route's form, which it is counted under: axum's router would cost a hit more than all that is done for it, in boxed
/// futures, captures and copies of the header.
async fn answer(data: Data, body: ReadWithin, request: Request<Incoming>) -> Response {
    let (mut asked, incoming) = request.into_parts();
    let reads = [Method::GET, Method::HEAD].contains(&asked.method);
    let mut response = match route(asked.uri.path()) {
        Route::Other => ApiError::RouteNotFound.into_response(),
        // Every method: whether there is such a route is for the policy to say, before what it takes.
        Route::BrowserTokens => browser_tokens::mint(body, &mut asked, incoming).await,
        Route::Tasks | Route::OpenApi | Route::Health if !reads => {
            method_not_allowed(&[Method::GET, Method::HEAD])
        }
        Route::Tasks => tasks::page(&data, &mut asked).await,
        Route::OpenApi => plain("application/json", OPENAPI),
        Route::Health => plain("text/plain; charset=utf-8", "ok"),
    };
    if asked.method == Method::HEAD {
        leave_body_out(&mut response);
    }
    response
}

/// hyper does it for HTTP/1 alone (RFC 9110 section 9.3.2), and tells the length only of a body that there is.
fn leave_body_out(response: &mut Response) {
    let body = std::mem::take(response.body_mut());
    if let Some(length @ 1..) = body.size_hint().exact() {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
}

fn plain(content_type: &'static str, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
