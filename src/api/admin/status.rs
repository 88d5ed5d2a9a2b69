//! `GET /status` and `GET /history`: what the dashboard shows beside `/metrics`, as JSON.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::time::Instant;

use super::{Admin, readiness::Readiness};
use crate::{
    off_runtime::on_a_thread,
    service::{changes::WatchReport, inspect::SpaceReport},
    telemetry::history::{self, Window},
    upstream::Credential,
};

/// Spaces, and watches, that are listed: what a page can show.
const MOST_SPACES: usize = 20;

#[derive(Debug, Serialize)]
struct Status {
    /// The machine's, container's or pod's name.
    instance: Option<String>,
    version: &'static str,
    uptime_seconds: f64,
    readiness: Readiness,
    credentials: Vec<CredentialReport>,
    /// Those with most pages.
    spaces: Vec<SpaceReport>,
    /// Those that cost most.
    watches: Vec<WatchReport>,
}

/// How a credential stands with the upstream.
#[derive(Debug, Serialize)]
struct CredentialReport {
    name: String,
    refused: bool,
    circuit: &'static str,
    /// `None` where no quota is known.
    calls_per_minute: Option<u32>,
    calls_left: Option<u32>,
    /// The TTL of an average page without upstream headers.
    page_lifetime_seconds: f64,
}

pub(super) async fn status(State(admin): State<Admin>) -> Response {
    // It looks at every page of the largest spaces.
    on_a_thread(move || status_of(&admin)).await
}

fn status_of(admin: &Admin) -> Response {
    let now = Instant::now();
    let policy = admin.policy.load();
    let credentials = policy.clients.credentials();
    let body = Status {
        instance: hostname(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: (now - admin.started).as_secs_f64(),
        readiness: Readiness::of(admin),
        credentials: credentials
            .all()
            .map(|credential| report(admin, credential, now))
            .collect(),
        spaces: admin.pages.largest_spaces(MOST_SPACES, credentials, now),
        watches: admin.changes.watches(MOST_SPACES, now),
    };
    Json(body).into_response()
}

/// `None` on systems without `/proc`.
fn hostname() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}

#[derive(Debug, Serialize)]
struct LastHour {
    interval_seconds: u64,
    windows: Vec<Window>,
}

/// What happened in the last hour, for charts.
pub(super) async fn history(State(admin): State<Admin>) -> Response {
    on_a_thread(move || {
        let body = LastHour {
            interval_seconds: history::EVERY.as_secs(),
            windows: admin.history.windows(),
        };
        Json(body).into_response()
    })
    .await
}

fn report(admin: &Admin, credential: &Credential, now: Instant) -> CredentialReport {
    let lifetime = admin.pages.store().lifetime(credential.id);
    CredentialReport {
        name: credential.name.clone(),
        refused: credential.is_refused(),
        circuit: credential.circuit().state().as_str(),
        calls_per_minute: credential.budget().per_minute(),
        calls_left: credential.budget().remaining(now),
        page_lifetime_seconds: lifetime.as_secs_f64(),
    }
}
