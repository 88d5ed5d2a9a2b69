//! The operators' listener: probes, metrics, and dropping pages from the cache.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, RawQuery, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use tracing::info;

use super::LivePolicy;
use crate::{
    config::Problems,
    domain::{PageKey, PageQuery, SpaceKey, SpaceToken},
    service::Tasks,
    telemetry::metrics::Metrics,
    upstream::{CircuitState, LimitLayer},
};

/// Whether the gateway takes requests: not while it drains.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    pub fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What the operators' handlers share.
#[derive(Clone, Debug)]
pub struct Admin {
    pub tasks: Arc<Tasks>,
    pub policy: LivePolicy,
    pub metrics: Arc<Metrics>,
    pub limit: LimitLayer,
    pub draining: Draining,
    /// The configuration in force, secrets hidden.
    pub effective_config: Arc<ArcSwap<String>>,
    pub reload: Arc<dyn Reload>,
}

/// Reads the configuration anew and puts it in force.
pub trait Reload: fmt::Debug + Send + Sync {
    /// Blocks on the file system. `who` asked is told to the log.
    ///
    /// # Errors
    ///
    /// Returns everything wrong with the new configuration; the old one stays in force.
    fn reload(&self, who: &str) -> Result<Reloaded, Problems>;
}

/// What a reload did, by dotted keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    pub changed: Vec<String>,
    /// Those that differ from what the process began with and are read at start alone.
    pub needs_restart: Vec<String>,
}

/// Builds the operators' router.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/config", get(config))
        .route("/reload", post(reload))
        .route("/cache", delete(purge))
        .route(
            "/cache/spaces/{space_token}",
            get(inspect_space).delete(purge_space),
        )
        .route("/cache/explain", get(explain))
        .with_state(admin)
        .layer(middleware::from_fn(refuse_foreign))
}

/// Keeps web pages out: a name that resolves to loopback, and a form posted from elsewhere, are no operator.
async fn refuse_foreign(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .or_else(|| request.uri().host())
        .unwrap_or_default()
        .to_owned();
    if !is_local_name(&host) {
        return refusal("this Host is not served: use an IP address or localhost");
    }
    let changes = matches!(*request.method(), Method::POST | Method::DELETE);
    if changes && is_foreign_origin(headers, &host) {
        return refusal("this Origin may not change anything");
    }
    next.run(request).await
}

fn refusal(text: &'static str) -> Response {
    (StatusCode::FORBIDDEN, text).into_response()
}

fn is_local_name(host: &str) -> bool {
    let name = host_name(host);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn host_name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_foreign_origin(headers: &HeaderMap, host: &str) -> bool {
    headers.get(header::ORIGIN).is_some_and(|origin| {
        origin
            .to_str()
            .ok()
            .and_then(|origin| origin.split_once("://"))
            .is_none_or(|(_, origin)| !origin.eq_ignore_ascii_case(host))
    })
}

/// Each part and why. A refused credential and an open circuit degrade: pages are still served, and other credentials work.
async fn readyz(State(admin): State<Admin>) -> Response {
    let draining = admin.draining.has_begun();
    let policy = admin.policy.load();
    let credentials = || policy.clients.credentials().all();
    let refused: Vec<&str> = credentials()
        .filter(|credential| credential.is_refused())
        .map(|credential| credential.name.as_str())
        .collect();
    let not_closed: BTreeMap<&str, &str> = credentials()
        .map(|credential| (credential.name.as_str(), credential.circuit().state()))
        .filter(|(_, state)| *state != CircuitState::Closed)
        .map(|(name, state)| (name, state.as_str()))
        .collect();
    let health = |is_whole| if is_whole { "ready" } else { "degraded" };
    let status = if draining {
        "draining"
    } else {
        health(refused.is_empty() && not_closed.is_empty())
    };
    let body = json!({
        "status": status,
        "parts": {
            "listener": { "status": if draining { "draining" } else { "ready" } },
            "credentials": {
                "status": health(refused.is_empty()),
                "refused_by_upstream": refused,
            },
            "circuits": {
                "status": health(not_closed.is_empty()),
                "not_closed": not_closed,
            },
        },
    });
    let code = if draining {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    (code, Json(body)).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    for credential in admin.policy.load().clients.credentials().all() {
        let remaining = credential.purse().remaining(Instant::now());
        admin.metrics.quota_remaining(&credential.name, remaining);
        let circuit = credential.circuit().state().as_number();
        admin.metrics.circuit_state(&credential.name, circuit);
        let state = credential.state_as_number();
        admin.metrics.credential_state(&credential.name, state);
        let waiting = credential.purse().waiting();
        admin.metrics.quota_queue(&credential.name, waiting);
        let lifetime = admin.tasks.store().lifetime(credential.id);
        admin.metrics.cache_lifetime(&credential.name, lifetime);
    }
    admin.metrics.slot_queue(admin.limit.waiting());
    admin.metrics.fills_under_way(admin.tasks.fills_under_way());
    admin.metrics.evicted(admin.tasks.store().evictions());
    let text = admin.metrics.encode(admin.tasks.store().size());
    let mut response = Response::new(Body::from(text));
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
async fn reload(State(admin): State<Admin>) -> Response {
    let reload = admin.reload.clone();
    let outcome = tokio::task::spawn_blocking(move || reload.reload("POST /reload")).await;
    match outcome {
        Ok(Ok(reloaded)) => Json(reloaded).into_response(),
        Ok(Err(problems)) => {
            let told: Vec<_> = problems
                .iter()
                .map(|problem| json!({ "key": problem.key, "problem": problem.text }))
                .collect();
            let body = Json(json!({ "problems": told }));
            (StatusCode::UNPROCESSABLE_ENTITY, body).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn purge(State(admin): State<Admin>) -> StatusCode {
    admin.tasks.store().purge();
    info!("operator dropped the whole cache");
    StatusCode::NO_CONTENT
}

/// The pages of a space, for each credential that reads it.
async fn inspect_space(State(admin): State<Admin>, Path(token): Path<String>) -> Response {
    let Ok(space) = SpaceToken::new(&token) else {
        return bad_request("expected a space token");
    };
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
            let pages = admin.tasks.stored_pages(&key, now);
            (credential.name.clone(), json!(pages))
        })
        .collect();
    Json(json!({ "space": space.to_string(), "pages": credentials })).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainQuery {
    space: String,
    #[serde(default = "first_page")]
    page: u32,
    #[serde(default = "usual_size")]
    page_size: u32,
}

fn first_page() -> u32 {
    PageQuery::DEFAULT_PAGE
}

fn usual_size() -> u32 {
    PageQuery::DEFAULT_PAGE_SIZE
}

/// What a plain request would get now, and why.
async fn explain(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let Ok(asked) = serde_urlencoded::from_str::<ExplainQuery>(&query.unwrap_or_default()) else {
        return bad_request("expected ?space=TOKEN&page=N&page_size=N");
    };
    let Ok(space) = SpaceToken::new(&asked.space) else {
        return bad_request("expected a space token");
    };
    if asked.page == 0 || asked.page_size == 0 {
        return bad_request("page and page_size count from 1");
    }
    let policy = admin.policy.load();
    let Some(credential) = policy.clients.credentials().serving(&space) else {
        return bad_request("no credential serves this space");
    };
    let key = PageKey {
        space: SpaceKey {
            credential: credential.id,
            space,
        },
        query: PageQuery {
            page: asked.page,
            page_size: asked.page_size,
        },
    };
    Json(admin.tasks.explain(&key, credential, Instant::now())).into_response()
}

fn bad_request(text: &'static str) -> Response {
    (StatusCode::BAD_REQUEST, text).into_response()
}

async fn purge_space(State(admin): State<Admin>, Path(token): Path<String>) -> Response {
    match SpaceToken::new(&token) {
        Ok(space) => {
            admin.tasks.store().purge_space(&space);
            info!(%space, "operator dropped a space from the cache");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(_) => bad_request("expected a space token"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local_names() {
        for (host, expected) in [
            ("127.0.0.1:9090", true),
            ("localhost:9090", true),
            ("LOCALHOST", true),
            ("[::1]:9090", true),
            ("10.1.2.3", true),
            ("evil.example:9090", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            assert_eq!(is_local_name(host), expected, "{host}");
        }
    }
}
