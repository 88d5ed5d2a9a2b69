//! Whether the gateway is fit to serve, part by part.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use http::StatusCode;
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::Admin;
use crate::{
    api::clients::{KeysHealth, KeysState},
    shared::RedisConnection,
    upstream::{CircuitState, Credential},
};

/// Each part and why. A refused credential, an open circuit and a lost Redis degrade, as long as anything can be answered: from the cache or
/// with another credential.
#[derive(Debug, Serialize)]
pub(super) struct Readiness {
    pub(super) status: &'static str,
    #[serde(skip)]
    is_served: bool,
    parts: Parts,
}

#[derive(Debug, Serialize)]
struct Parts {
    listener: Part<Nothing>,
    credentials: Part<Refused>,
    circuits: Part<NotClosed>,
    answers: Answerable,
    /// Absent where none is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<Part<Answers>>,
    /// Absent where no identity provider is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<Part<ProviderKeys>>,
}

/// The state of a part, since when, and why.
#[derive(Debug, Serialize)]
struct Part<Why> {
    status: &'static str,
    since: Rfc3339,
    #[serde(flatten)]
    why: Why,
}

#[derive(Debug, Serialize)]
struct Nothing {}

#[derive(Debug, Serialize)]
struct Refused {
    refused_by_upstream: Vec<String>,
}

#[derive(Debug, Serialize)]
struct NotClosed {
    not_closed: BTreeMap<String, &'static str>,
}

/// Whether anything could be answered now.
#[derive(Debug, Serialize)]
struct Answerable {
    status: &'static str,
    /// The credentials with which nothing could, each with the code of the error.
    nothing_with: BTreeMap<String, &'static str>,
}

impl Answerable {
    /// A page that is not in memory may be in Redis.
    fn of(admin: &Admin, credentials: &[&Arc<Credential>]) -> Self {
        let has_redis = admin
            .redis
            .as_ref()
            .is_some_and(|redis| redis.health().is_up);
        let asked = if has_redis { &[][..] } else { credentials };
        let now = Instant::now();
        let nothing_with: BTreeMap<_, _> = asked
            .iter()
            .filter_map(|credential| {
                let error = admin.pages.could_answer_nothing(credential, now)?;
                Some((credential.name.clone(), error.as_str()))
            })
            .collect();
        let status = match nothing_with.len() {
            0 => "ready",
            some if some < credentials.len() => "degraded",
            _ => "unavailable",
        };
        Self {
            status,
            nothing_with,
        }
    }

    fn is_nothing(&self) -> bool {
        self.status == "unavailable"
    }
}

#[derive(Debug, Serialize)]
struct ProviderKeys {
    keys: &'static str,
}

#[derive(Debug, Serialize)]
struct Answers {
    answers: bool,
    /// Replicas connected to it, as the last heartbeat saw them.
    members: u32,
    /// Purges that the other replicas have not been told of.
    pending_purges: usize,
}

impl Readiness {
    pub(super) fn of(admin: &Admin) -> Self {
        let policy = admin.policy.load();
        let credentials: Vec<_> = policy.clients.credentials().all().collect();
        let parts = Parts {
            listener: listener(admin),
            credentials: accepted(admin, &credentials),
            circuits: circuits(admin, &credentials),
            answers: Answerable::of(admin, &credentials),
            redis: admin
                .redis
                .as_deref()
                .map(|connection| redis(admin, connection)),
            identity: policy.clients.issuers().keys_health().map(identity),
        };
        let is_draining = admin.draining.since().is_some();
        Self {
            status: if is_draining {
                parts.listener.status
            } else if parts.answers.is_nothing() {
                parts.answers.status
            } else {
                health(parts.are_healthy())
            },
            is_served: !is_draining && !parts.answers.is_nothing(),
            parts,
        }
    }

    /// Whether a load balancer should send requests here.
    pub(super) fn code(&self) -> StatusCode {
        if self.is_served {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

impl Parts {
    fn are_healthy(&self) -> bool {
        let redis = self.redis.as_ref().map(|part| part.status);
        let identity = self.identity.as_ref().map(|part| part.status);
        [self.credentials.status, self.circuits.status]
            .into_iter()
            .chain(redis)
            .chain(identity)
            .all(|status| status == health(true))
    }
}

fn listener(admin: &Admin) -> Part<Nothing> {
    let draining = admin.draining.since();
    Part {
        status: if draining.is_some() {
            "draining"
        } else {
            "ready"
        },
        since: draining.unwrap_or(admin.started).into(),
        why: Nothing {},
    }
}

/// Whether the upstream accepts each credential.
fn accepted(admin: &Admin, credentials: &[&Arc<Credential>]) -> Part<Refused> {
    let refused = credentials
        .iter()
        .filter(|credential| credential.is_refused());
    let refused: Vec<_> = refused.map(|credential| credential.name.clone()).collect();
    let members = credentials
        .iter()
        .map(|credential| (credential.is_refused(), credential.refused_or_not_since()));
    Part {
        status: health(refused.is_empty()),
        since: since(admin, members),
        why: Refused {
            refused_by_upstream: refused,
        },
    }
}

fn circuits(admin: &Admin, credentials: &[&Arc<Credential>]) -> Part<NotClosed> {
    let state = |credential: &Credential| credential.circuit().state();
    let not_closed: BTreeMap<_, _> = credentials
        .iter()
        .filter(|credential| state(credential) != CircuitState::Closed)
        .map(|credential| (credential.name.clone(), state(credential).as_str()))
        .collect();
    let members = credentials.iter().filter_map(|credential| {
        let is_bad = state(credential) != CircuitState::Closed;
        Some((is_bad, credential.circuit().closed_or_not_since()?))
    });
    Part {
        status: health(not_closed.is_empty()),
        since: since(admin, members),
        why: NotClosed { not_closed },
    }
}

fn redis(admin: &Admin, connection: &RedisConnection) -> Part<Answers> {
    let redis = connection.health();
    Part {
        status: health(redis.is_up),
        since: redis.since.into(),
        why: Answers {
            answers: redis.is_up,
            members: connection.members().present(),
            pending_purges: admin.pages.pending_purges(),
        },
    }
}

fn identity(keys: KeysHealth) -> Part<ProviderKeys> {
    Part {
        status: health(keys.state == KeysState::Current),
        since: keys.since.into(),
        why: ProviderKeys {
            keys: keys.state.as_str(),
        },
    }
}

fn health(is_healthy: bool) -> &'static str {
    if is_healthy { "ready" } else { "degraded" }
}

/// Since when a part is bad or good, by its members: bad since the first of them went bad, good since the last recovered.
fn since(admin: &Admin, members: impl Iterator<Item = (bool, Instant)> + Clone) -> Rfc3339 {
    let bad = members.clone().filter(|(is_bad, _)| *is_bad);
    let first_bad = bad.map(|(_, since)| since).min();
    let last_recovered = members.map(|(_, since)| since).max();
    first_bad.or(last_recovered).unwrap_or(admin.started).into()
}

/// A moment by the wall clock, in UTC and whole seconds.
#[derive(Debug)]
struct Rfc3339(SystemTime);

impl From<Instant> for Rfc3339 {
    fn from(moment: Instant) -> Self {
        Self(SystemTime::now() - moment.elapsed())
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_seconds(self.0))
    }
}
