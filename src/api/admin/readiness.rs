//! Whether the gateway is fit to serve, part by part.

use std::collections::BTreeMap;

use http::StatusCode;
use serde::Serialize;

use super::Admin;
use crate::upstream::CircuitState;

/// Each part and why. A refused credential, an open circuit and a lost Redis degrade: pages are still served, and other credentials
/// work.
#[derive(Debug, Serialize)]
pub(super) struct Readiness {
    pub(super) status: &'static str,
    #[serde(skip)]
    draining: bool,
    parts: Parts,
}

#[derive(Debug, Serialize)]
struct Parts {
    listener: Listener,
    credentials: Credentials,
    circuits: Circuits,
    /// Absent where none is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<Redis>,
}

#[derive(Debug, Serialize)]
struct Redis {
    status: &'static str,
    answers: bool,
    /// For how long it has or has not.
    since_seconds: u64,
}

#[derive(Debug, Serialize)]
struct Listener {
    status: &'static str,
}

#[derive(Debug, Serialize)]
struct Credentials {
    status: &'static str,
    refused_by_upstream: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Circuits {
    status: &'static str,
    not_closed: BTreeMap<String, &'static str>,
}

impl Readiness {
    pub(super) fn of(admin: &Admin) -> Self {
        let draining = admin.draining.has_begun();
        let policy = admin.policy.load();
        let credentials = || policy.clients.credentials().all();
        let refused_by_upstream: Vec<_> = credentials()
            .filter(|credential| credential.is_refused())
            .map(|credential| credential.name.clone())
            .collect();
        let not_closed: BTreeMap<_, _> = credentials()
            .map(|credential| (credential.name.clone(), credential.circuit().state()))
            .filter(|(_, state)| *state != CircuitState::Closed)
            .map(|(name, state)| (name, state.as_str()))
            .collect();
        let health = |is_whole| if is_whole { "ready" } else { "degraded" };
        let listener = if draining { "draining" } else { "ready" };
        let redis = admin.redis.as_ref().map(|link| link.health());
        let redis_up = redis.is_none_or(|redis| redis.is_up);
        let whole = refused_by_upstream.is_empty() && not_closed.is_empty() && redis_up;
        Self {
            status: if draining { listener } else { health(whole) },
            draining,
            parts: Parts {
                listener: Listener { status: listener },
                credentials: Credentials {
                    status: health(refused_by_upstream.is_empty()),
                    refused_by_upstream,
                },
                circuits: Circuits {
                    status: health(not_closed.is_empty()),
                    not_closed,
                },
                redis: redis.map(|redis| Redis {
                    status: health(redis.is_up),
                    answers: redis.is_up,
                    since_seconds: redis.since.elapsed().as_secs(),
                }),
            },
        }
    }

    /// Whether a load balancer should send requests here.
    pub(super) fn code(&self) -> StatusCode {
        if self.draining {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        }
    }
}
