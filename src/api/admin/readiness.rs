//! Whether the gateway is fit to serve, part by part.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use http::StatusCode;
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::Admin;
use crate::{
    api::clients::KeysState,
    upstream::{CircuitState, Credential},
};

/// Each part and why. A refused credential, an open circuit and a lost Redis degrade, as long as anything can be answered: stored pages,
/// or what another credential reads.
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

/// How a part does, since when, and why.
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
    /// Who has nothing to show may still find it in Redis.
    fn of(admin: &Admin, credentials: &[&Arc<Credential>]) -> Self {
        let has_redis = admin.redis.as_ref().is_some_and(|link| link.health().is_up);
        let asked = if has_redis { &[][..] } else { credentials };
        let now = Instant::now();
        let nothing_with: BTreeMap<_, _> = asked
            .iter()
            .filter_map(|credential| {
                let error = admin.tasks.could_answer_nothing(credential, now)?;
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
}

impl Readiness {
    pub(super) fn of(admin: &Admin) -> Self {
        let policy = admin.policy.load();
        let credentials: Vec<_> = policy.clients.credentials().all().collect();
        let draining = admin.draining.since();
        let listener = Part {
            status: if draining.is_some() {
                "draining"
            } else {
                "ready"
            },
            since: draining.unwrap_or(admin.started).into(),
            why: Nothing {},
        };
        let refused = credentials
            .iter()
            .filter(|credential| credential.is_refused());
        let refused: Vec<_> = refused.map(|credential| credential.name.clone()).collect();
        let credentials_part = Part {
            status: health(refused.is_empty()),
            since: since(
                admin,
                credentials
                    .iter()
                    .map(|credential| (credential.is_refused(), credential.refused_or_not_since())),
            ),
            why: Refused {
                refused_by_upstream: refused,
            },
        };
        let state = |credential: &Credential| credential.circuit().state();
        let not_closed: BTreeMap<_, _> = credentials
            .iter()
            .filter(|credential| state(credential) != CircuitState::Closed)
            .map(|credential| (credential.name.clone(), state(credential).as_str()))
            .collect();
        let circuits = Part {
            status: health(not_closed.is_empty()),
            since: since(
                admin,
                credentials.iter().filter_map(|credential| {
                    let is_bad = state(credential) != CircuitState::Closed;
                    Some((is_bad, credential.circuit().closed_or_not_since()?))
                }),
            ),
            why: NotClosed { not_closed },
        };
        let redis = admin.redis.as_ref().map(|link| {
            let redis = link.health();
            Part {
                status: health(redis.is_up),
                since: redis.since.into(),
                why: Answers {
                    answers: redis.is_up,
                },
            }
        });
        let answers = Answerable::of(admin, &credentials);
        let identity = policy.clients.issuers().keys_health().map(|keys| Part {
            status: health(keys.state == KeysState::Current),
            since: keys.since.into(),
            why: ProviderKeys {
                keys: keys.state.as_str(),
            },
        });
        let whole = credentials_part.why.refused_by_upstream.is_empty()
            && circuits.why.not_closed.is_empty()
            && redis.as_ref().is_none_or(|redis| redis.why.answers)
            && identity
                .as_ref()
                .is_none_or(|keys| keys.status == health(true));
        Self {
            status: match draining {
                Some(_) => listener.status,
                None if answers.is_nothing() => answers.status,
                None => health(whole),
            },
            is_served: draining.is_none() && !answers.is_nothing(),
            parts: Parts {
                listener,
                credentials: credentials_part,
                circuits,
                answers,
                redis,
                identity,
            },
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

fn health(is_whole: bool) -> &'static str {
    if is_whole { "ready" } else { "degraded" }
}

/// Since when a part does as it does, by what is bad or good of it and since when: bad since the first went bad, good since the last
/// mended.
fn since(admin: &Admin, members: impl Iterator<Item = (bool, Instant)> + Clone) -> Rfc3339 {
    let bad = members.clone().filter(|(is_bad, _)| *is_bad);
    let first_bad = bad.map(|(_, since)| since).min();
    let last_mended = members.map(|(_, since)| since).max();
    first_bad.or(last_mended).unwrap_or(admin.started).into()
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
