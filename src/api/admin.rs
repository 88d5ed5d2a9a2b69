//! The operators' listener: probes, metrics, the dashboard, reloads and purges.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwap;
use axum::{
    Json, Router,
    body::Body,
    extract::{Extension, Path, RawQuery, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use tracing::info;

mod access;
mod dashboard;
mod docs;
mod live;
mod readiness;
mod status;

pub use self::access::{AdminAuth, Operator};
use self::{live::Live, readiness::Readiness};
use super::{
    ApiError, LivePolicy,
    layers::catch_panic,
    query::{self, Parameters},
};
use crate::{
    config::{Problems, routes::TasksRouteConfig},
    domain::{Collection, ListId, ListKey, PageKey, PageQuery, RunId, SpaceKey, SpaceToken},
    off_runtime::{on_a_thread, to_its_end},
    service::{Changes, Pages},
    shared::RedisConnection,
    telemetry::{LogLosses, history::History, metrics::Metrics},
};

/// Since when the gateway drains, if it does.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<OnceLock<Instant>>);

impl Draining {
    pub fn begin(&self) {
        self.0.get_or_init(Instant::now);
    }

    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.0.get().copied()
    }
}

/// What the operators' handlers share.
#[derive(Clone, Debug)]
pub struct Admin {
    pub pages: Arc<Pages>,
    pub changes: Arc<Changes>,
    pub policy: LivePolicy,
    pub metrics: Arc<Metrics>,
    pub history: Arc<History>,
    /// Counts dropped log lines; `None` where the log is another gateway's.
    pub log_losses: Option<LogLosses>,
    /// What replicas share, where they do.
    pub redis: Option<Arc<RedisConnection>>,
    pub draining: Draining,
    /// The configuration in force, secrets hidden.
    pub effective_config: Arc<ArcSwap<String>>,
    pub reload: Arc<dyn Reload>,
    pub started: Instant,
}

/// Reads the configuration again and applies it.
pub trait Reload: fmt::Debug + Send + Sync {
    /// The log names `who`. A reload that is still queued when its future is dropped is skipped.
    ///
    /// # Errors
    ///
    /// Returns everything wrong with the new configuration; the old one stays in force.
    fn reload(&self, who: String) -> BoxFuture<'static, Result<Reloaded, Problems>>;
}

/// What a reload changed, by dotted keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    pub changed: Vec<String>,
    /// Those that differ from the start and are only read at start.
    pub needs_restart: Vec<String>,
}

/// Builds the operators' router, behind `auth`.
pub fn router(admin: Admin, auth: AdminAuth) -> Router {
    let catch_panics = catch_panic::layer(admin.metrics.clone());
    admin.metrics.collect(Box::new(Live::of(&admin)));
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status::status))
        .route("/history", get(status::history))
        .route("/docs/{page}", get(docs::docs))
        .route("/config", get(config))
        .route("/reload", post(reload))
        .route("/cache", delete(purge))
        .route(
            "/cache/spaces/{space_token}",
            get(inspect_space).delete(purge_space),
        )
        .route(
            "/cache/fingerprints/{fingerprint}",
            delete(purge_fingerprint),
        )
        .route("/cache/explain", get(explain))
        .merge(dashboard::routes())
        .with_state(admin)
        .layer(middleware::from_fn_with_state(Arc::new(auth), admit))
        .layer(catch_panics)
        .layer(middleware::map_response(no_store))
}

/// Keeps answers out of caches, and browsers from guessing their type.
async fn no_store(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let no_store = HeaderValue::from_static("no-store");
    headers.insert(header::CACHE_CONTROL, no_store);
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// Lets operators in, and probes to their paths.
async fn admit(State(auth): State<Arc<AdminAuth>>, mut request: Request, next: Next) -> Response {
    match auth.admit(&request) {
        Ok(operator) => {
            request.extensions_mut().insert(operator);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Each part and why; without a key the status alone.
async fn readyz(State(admin): State<Admin>, Extension(operator): Extension<Operator>) -> Response {
    let readiness = Readiness::of(&admin);
    let code = readiness.code();
    if operator.is_trusted() {
        (code, Json(readiness)).into_response()
    } else {
        (code, Json(json!({ "status": readiness.status }))).into_response()
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut response = Response::new(Body::from(admin.metrics.encode()));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

async fn config(State(admin): State<Admin>) -> String {
    admin.effective_config.load().to_string()
}

/// What was reloaded, or everything wrong with the new configuration.
async fn reload(State(admin): State<Admin>, Extension(operator): Extension<Operator>) -> Response {
    let who = format!("POST /reload from {operator}");
    match admin.reload.reload(who).await {
        Ok(reloaded) => Json(reloaded).into_response(),
        Err(problems) => {
            let told: Vec<_> = problems
                .iter()
                .map(|problem| json!({ "key": problem.key, "problem": problem.text }))
                .collect();
            let body = Json(json!({ "problems": told }));
            (StatusCode::UNPROCESSABLE_ENTITY, body).into_response()
        }
    }
}

async fn purge(State(admin): State<Admin>, Extension(operator): Extension<Operator>) -> Response {
    to_its_end(async move {
        admin.pages.purge().await;
        info!(%operator, "operator purged the whole cache");
        purged(&admin)
    })
    .await
}

/// 204 where every replica was told, else 202 and how many purges wait for Redis.
fn purged(admin: &Admin) -> Response {
    let pending = admin.pages.pending_purges();
    if pending == 0 {
        return StatusCode::NO_CONTENT.into_response();
    }
    let body = Json(json!({
        "status_code": 202,
        "message": "Purged here; other replicas follow when Redis is back",
        "data": { "pending": pending },
    }));
    (StatusCode::ACCEPTED, body).into_response()
}

/// The pages of a space, for each credential that reads it.
async fn inspect_space(State(admin): State<Admin>, Path(token): Path<String>) -> Response {
    let Ok(space) = SpaceToken::new(&token) else {
        return bad_request("expected a space token");
    };
    on_a_thread(move || inspected(&admin, &space)).await
}

fn inspected(admin: &Admin, space: &SpaceToken) -> Response {
    let now = Instant::now();
    let policy = admin.policy.load();
    let credentials: serde_json::Map<_, _> = policy
        .clients
        .credentials()
        .all()
        .map(|credential| {
            let key = SpaceKey {
                credential: credential.id,
                space: space.clone(),
            };
            let pages = admin.pages.stored_pages(&key, now);
            (credential.name.clone(), json!(pages))
        })
        .collect();
    Json(json!({ "space": space.to_string(), "pages": credentials })).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainQuery {
    space: String,
    /// Absent: the tasks.
    collection: Option<String>,
    run_id: Option<String>,
    page: Option<String>,
    page_size: Option<String>,
    /// Whose request: absent, that of a client without a credential of its own.
    client: Option<String>,
}

impl ExplainQuery {
    fn list(&self) -> Option<ListId> {
        let collection = match &self.collection {
            None => Collection::TASKS,
            Some(name) => Collection::named(name)?,
        };
        let run = self.run_id.as_deref().map(RunId::new).transpose();
        ListId::new(collection, run.ok()?)
    }

    /// The page, read as a request for it is.
    fn page(&self, config: &TasksRouteConfig) -> Result<PageQuery, ApiError> {
        let named = [("page", &self.page), ("page_size", &self.page_size)];
        let query = serde_urlencoded::to_string(named).expect("text can be encoded");
        query::parse(&query, Parameters::Page, config).map(|read| read.page)
    }
}

/// What a plain request would get now, and why.
async fn explain(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let Ok(asked) = serde_urlencoded::from_str::<ExplainQuery>(&query.unwrap_or_default()) else {
        return bad_request(
            "expected ?space=TOKEN&collection=NAME&run_id=ID&page=N&page_size=N&client=NAME",
        );
    };
    let Ok(space) = SpaceToken::new(&asked.space) else {
        return bad_request("expected a space token");
    };
    let Some(list) = asked.list() else {
        return bad_request(
            "no such list: expected a collection that is served, and run_id where its lists are a run's",
        );
    };
    let policy = admin.policy.load();
    let Ok(query) = asked.page(&policy.route) else {
        return bad_request("no request may ask for this page and page_size");
    };
    let credential = match &asked.client {
        None => policy.clients.credentials().serving(&space),
        Some(name) => {
            let Some(client) = policy.clients.named(name) else {
                return bad_request("client: no client of this name is configured");
            };
            if !client.may_read(&space) || client.sees(list.collection().rows).is_none() {
                return Json(json!({
                    "verdict": "space-not-allowed",
                    "why": "this client may not read the space, or nothing of such a list: refused before the cache is asked",
                }))
                .into_response();
            }
            client.credential(&space)
        }
    };
    let Some(credential) = credential else {
        return bad_request("no credential serves this space");
    };
    let key = PageKey {
        list: ListKey {
            space: SpaceKey {
                credential: credential.id,
                space,
            },
            id: list,
        },
        query,
    };
    Json(admin.pages.explain(&key, credential, Instant::now())).into_response()
}

fn bad_request(text: &'static str) -> Response {
    (StatusCode::BAD_REQUEST, text).into_response()
}

async fn purge_space(
    State(admin): State<Admin>,
    Extension(operator): Extension<Operator>,
    Path(token): Path<String>,
) -> Response {
    match SpaceToken::new(&token) {
        Ok(space) => {
            to_its_end(async move {
                admin.pages.purge_space(&space).await;
                info!(%space, %operator, "operator purged a space");
                purged(&admin)
            })
            .await
        }
        Err(_) => bad_request("expected a space token"),
    }
}

/// Purges a space by its fingerprint, for operators who do not have its token.
async fn purge_fingerprint(
    State(admin): State<Admin>,
    Extension(operator): Extension<Operator>,
    Path(fingerprint): Path<String>,
) -> Response {
    let purge = async move {
        if admin.pages.purge_fingerprint(&fingerprint).await {
            info!(space = fingerprint, %operator, "operator purged a space");
            return purged(&admin);
        }
        (StatusCode::NOT_FOUND, "nothing is known of such a space").into_response()
    };
    to_its_end(purge).await
}
