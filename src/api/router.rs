//! The data listener, composed once.

use std::sync::Arc;

use axum::{Router, handler::Handler};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;

use super::{
    ApiError, LivePolicy,
    layers::{
        catch_panic,
        cors::CorsLayer,
        host::HostLayer,
        internal_auth::InternalAuthLayer,
        observe::{ObserveLayer, Observing},
        shed::ShedLayer,
    },
    query::Parameters,
    routes::{
        Spelling,
        browser_tokens::{self, ReadWithin},
        changes::{self, ChangesState, Streams},
        documents, is_of_a_space, is_public,
        list::{self, ListState},
        paths_of, paths_of_a_task, paths_of_changes,
        task::{self, TaskState},
    },
};
use crate::{
    config::{AuthConfig, ServerConfig},
    domain::Collection,
    peer::TrustedProxies,
    service::{Changes, Pages},
    telemetry::metrics::Route,
};

/// What the routes of a space share.
#[derive(Clone, Debug)]
pub struct Data {
    pub pages: Arc<Pages>,
    pub changes: Arc<Changes>,
    /// Completes when the listener is closed.
    pub closing: CancellationToken,
}

/// Builds the data listener's router.
pub fn data_router(
    data: &Data,
    policy: LivePolicy,
    server: &ServerConfig,
    auth: &AuthConfig,
    observing: Observing,
) -> Router {
    let metrics = observing.metrics.clone();
    let observe = ObserveLayer::new(
        observing,
        policy.clone(),
        TrustedProxies::configured(server),
    );
    let catch_panics = catch_panic::layer(metrics.clone());
    let authenticate = InternalAuthLayer::new(auth.max_failures, metrics.clone());
    let shed = ShedLayer::new(server, data.pages.clone(), metrics.clone());
    // Around each handler and the fallback, so that every layer knows the route.
    let stack = |route: Route| {
        ServiceBuilder::new()
            // Outermost: whatever happens below gets a request id, a body if it is an error, and its line in the log.
            .layer(observe.of(route))
            // A request with an ambiguous host could be read in two ways, so it is refused.
            .layer(HostLayer)
            // Outside of whatever may fail: a browser hides an error response without CORS headers.
            .option_layer(is_of_a_space(route).then_some(CorsLayer))
            // A panic costs one request, and is counted.
            .layer(catch_panics.clone())
            // Before the handler: a stranger learns of no route, no space and no parameter.
            .option_layer((!is_public(route)).then(|| authenticate.clone()))
            // Right after authentication, since permits are per client: refusing must stay cheap under overload.
            .layer(match route {
                Route::Changes => shed.except(changes::is_held),
                _ => shed.clone(),
            })
    };
    // A token request is as short as a header, so it gets the same timeout.
    let mint = browser_tokens::mint.with_state(ReadWithin(server.header_read_timeout));
    let openapi = documents::openapi.with_state(());
    let healthz = documents::healthz.with_state(());
    let mut router = Router::new();
    for collection in Collection::all() {
        for (spelling, path) in paths_of(collection) {
            let page = list::page.with_state(ListState {
                data: data.clone(),
                collection,
                parameters: parameters(collection, spelling),
            });
            let page = stack(Route::List(collection)).service(page);
            router = router.route_service(&path, page);
        }
    }
    let task = task::task.with_state(TaskState(data.clone()));
    for path in paths_of_a_task() {
        let task = stack(Route::Task).service(task.clone());
        router = router.route_service(&path, task);
    }
    let changes = changes::changes.with_state(ChangesState {
        changes: data.changes.clone(),
        policy,
        streams: Arc::<Streams>::default(),
        metrics: metrics.changes.clone(),
        closing: data.closing.clone(),
    });
    for path in paths_of_changes() {
        let changes = stack(Route::Changes).service(changes.clone());
        router = router.route_service(&path, changes);
    }
    router
        .route_service("/browser-tokens", stack(Route::BrowserTokens).service(mint))
        .route_service("/openapi.json", stack(Route::OpenApi).service(openapi))
        .route_service("/healthz", stack(Route::Health).service(healthz))
        .fallback_service(stack(Route::Other).service(route_not_found.with_state(())))
}

/// What a list may be asked for. Where the upstream has it too, no parameter means here what it does not mean there.
fn parameters(collection: Collection, spelling: Spelling) -> Parameters {
    match spelling {
        Spelling::Gateway if collection == Collection::TASKS => Parameters::Filter,
        Spelling::Gateway | Spelling::Vendor => Parameters::Page,
    }
}

async fn route_not_found() -> ApiError {
    ApiError::RouteNotFound
}
