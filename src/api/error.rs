//! Every error answer: one shape, whose statuses and words live in one table.
//!
//! The shape is RFC 9457's problem and an Unpod error envelope at once, so that both kinds of client read it. The cause
//! stays inside, for the access log.

use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::{
    list_scope,
    rate_limit::{self, RateLimit, whole_seconds},
};
use crate::{
    cache::CacheStatus,
    service::{PagesError, PagesErrorKind, Scope},
    upstream::UpstreamError,
};

/// Why a request is not answered with what it asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    #[error("space token is not valid")]
    InvalidSpaceToken,
    #[error("run id is not valid")]
    InvalidRunId,
    #[error("task id is not valid")]
    InvalidTaskId,
    #[error("parameter {name} is not valid")]
    InvalidParameter {
        name: &'static str,
        expected: Expected,
    },
    #[error("parameter {name} is not valid")]
    InvalidValue {
        name: &'static str,
        expected: &'static str,
    },
    #[error("cursor cannot be honoured")]
    CursorGone {
        /// To go on with.
        cursor: String,
        reason: &'static str,
    },
    #[error("parameter is not known")]
    UnknownParameter { name: String, known: &'static str },
    #[error("body is not valid")]
    InvalidBody,
    #[error("not authenticated")]
    Unauthenticated,
    #[error("the identity provider's keys are not there yet")]
    IdentityUnavailable { retry_after: Duration },
    #[error("client may not read this space")]
    SpaceNotAllowed,
    #[error("client may not mint tokens")]
    MintingNotAllowed,
    #[error("no such route")]
    RouteNotFound,
    #[error("method is not allowed")]
    MethodNotAllowed { allow: &'static str },
    #[error("limit is spent")]
    RateLimited(RateLimit),
    #[error("too many requests are under way")]
    Overloaded,
    #[error("request ended in a bug")]
    Internal,
    #[error("no such task among the newest")]
    TaskNotFound { scope: Scope, status: CacheStatus },
    #[error("no page")]
    Pages(#[from] PagesError),
}

/// What a parameter must be. It is told without the value that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// From 1.
    Number {
        most: u32,
    },
    Values,
    Fields,
    /// There with a filter, and only then.
    WithFilter,
}

impl Expected {
    fn of(self, name: &str) -> String {
        match self {
            Self::Number { most } => format!(
                "Parameter `{name}` must be given at most once, as a decimal number from 1 to {most}."
            ),
            Self::Values => format!(
                "Parameter `{name}` must be given at most once, as 1 to 8 values joined by commas, each 1 to 128 of A-Z a-z 0-9 _ . -."
            ),
            Self::Fields => format!(
                "Parameter `{name}` must be given at most once, as 1 to 32 dotted paths joined by commas, of at most 1 KiB."
            ),
            Self::WithFilter => format!(
                "Parameter `{name}` must be given with `status`, `assignee` or `run_id`, and not without one of them."
            ),
        }
    }
}

/// What an error looks like from outside.
struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: Cow<'static, str>,
}

/// The code of every error there is.
pub const CODES: [&str; 29] = [
    "invalid_space_token",
    "invalid_run_id",
    "invalid_task_id",
    "invalid_parameter",
    "unknown_parameter",
    "invalid_body",
    "unauthenticated",
    "identity_unavailable",
    "space_not_allowed",
    "minting_not_allowed",
    "space_access_denied",
    "space_not_found",
    "task_not_found",
    "list_incomplete",
    "cursor_gone",
    "route_not_found",
    "method_not_allowed",
    "upstream_rejected",
    "rate_limited",
    "upstream_auth_failed",
    "upstream_failed",
    "upstream_invalid_response",
    "upstream_unreachable",
    "upstream_timeout",
    "not_cached",
    "upstream_quota_exhausted",
    "upstream_unavailable",
    "overloaded",
    "internal",
];

/// What a client is told to wait where nobody knows better.
const RETRY_LATER: Duration = Duration::from_secs(1);
/// The same where the upstream's minute is spent.
const RETRY_NEXT_MINUTE: Duration = Duration::from_secs(60);

impl ApiError {
    /// What the client sees; no upstream's text but what is spelled out here.
    fn problem(&self) -> Problem {
        match self {
            Self::InvalidSpaceToken => problem(
                StatusCode::BAD_REQUEST,
                "invalid_space_token",
                "Invalid space token",
                "A space token is 1 to 128 of A-Z a-z 0-9 _ -.",
            ),
            Self::InvalidRunId => problem(
                StatusCode::BAD_REQUEST,
                "invalid_run_id",
                "Invalid run id",
                "A run id is 1 to 64 of A-Z a-z 0-9 _ -.",
            ),
            Self::InvalidTaskId => problem(
                StatusCode::BAD_REQUEST,
                "invalid_task_id",
                "Invalid task id",
                "A task id is 1 to 128 of A-Z a-z 0-9 _ . -.",
            ),
            Self::InvalidParameter { name, expected } => problem(
                StatusCode::BAD_REQUEST,
                "invalid_parameter",
                "Invalid parameter",
                expected.of(name),
            ),
            Self::InvalidValue { name, expected } => problem(
                StatusCode::BAD_REQUEST,
                "invalid_parameter",
                "Invalid parameter",
                format!("Parameter `{name}` must be given at most once, as {expected}."),
            ),
            Self::CursorGone { .. } => problem(
                StatusCode::GONE,
                "cursor_gone",
                "Cursor gone",
                "Nobody can tell what changed since this cursor; read the list again and go on with the cursor in `data`.",
            ),
            Self::UnknownParameter { name, known } => problem(
                StatusCode::BAD_REQUEST,
                "unknown_parameter",
                "Unknown parameter",
                format!("Parameter `{name}` is not known here; {known}."),
            ),
            Self::InvalidBody => problem(
                StatusCode::BAD_REQUEST,
                "invalid_body",
                "Invalid body",
                "The body must be a JSON object of at most 4 KiB with `spaces`, 1 to 32 space tokens, `ttl_seconds`, 1 or more, and at most a configured `view`.",
            ),
            Self::Unauthenticated => problem(
                StatusCode::UNAUTHORIZED,
                "unauthenticated",
                "Not authenticated",
                "Send a valid client key as `Authorization: Token <key>` or `Authorization: Bearer <key>`.",
            ),
            Self::IdentityUnavailable { .. } => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "identity_unavailable",
                "Identity unavailable",
                "The identity provider's keys are not known yet; try again after the time in `Retry-After`.",
            ),
            Self::SpaceNotAllowed => problem(
                StatusCode::FORBIDDEN,
                "space_not_allowed",
                "Space not allowed",
                "This client may not read this space.",
            ),
            Self::MintingNotAllowed => problem(
                StatusCode::FORBIDDEN,
                "minting_not_allowed",
                "Minting not allowed",
                "A browser token mints no other; use the client's own credential.",
            ),
            Self::RouteNotFound => problem(
                StatusCode::NOT_FOUND,
                "route_not_found",
                "No such route",
                "Nothing is served at this path.",
            ),
            Self::MethodNotAllowed { .. } => problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "Method not allowed",
                "This path takes the methods named in `Allow`.",
            ),
            Self::RateLimited(_) => problem(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "Rate limited",
                "Too many requests; try again after the time in `Retry-After`.",
            ),
            Self::Overloaded => overloaded(),
            Self::Internal => internal(),
            Self::TaskNotFound { .. } => problem(
                StatusCode::NOT_FOUND,
                "task_not_found",
                "Task not found",
                "The task is not among the newest tasks of the space; `X-List-Scope` says how many were looked at.",
            ),
            Self::Pages(error) => match &error.kind {
                PagesErrorKind::Incomplete { .. } => problem(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "list_incomplete",
                    "List incomplete",
                    "The tasks that this takes are still being fetched; try again after the time in `Retry-After`.",
                ),
                PagesErrorKind::NotCached => problem(
                    StatusCode::GATEWAY_TIMEOUT,
                    "not_cached",
                    "Not cached",
                    "The request says only-if-cached, and nothing stored may be used.",
                ),
                PagesErrorKind::Lost => internal(),
                PagesErrorKind::Upstream(error) => upstream_problem(error),
            },
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited(limit) => Some(limit.reset_after),
            Self::IdentityUnavailable { retry_after } => Some((*retry_after).max(RETRY_LATER)),
            Self::Overloaded => Some(RETRY_LATER),
            Self::Pages(PagesError {
                kind: PagesErrorKind::Incomplete { retry_after },
                ..
            }) => Some(*retry_after),
            Self::Pages(PagesError {
                kind: PagesErrorKind::Upstream(error),
                ..
            }) => match error {
                UpstreamError::QuotaExhausted { retry_after } => {
                    Some(retry_after.unwrap_or(RETRY_NEXT_MINUTE))
                }
                // A second at least: "at once" is no help.
                UpstreamError::Unavailable { retry_after } => Some((*retry_after).max(RETRY_LATER)),
                UpstreamError::Overloaded => Some(RETRY_LATER),
                UpstreamError::SpaceNotFound { .. }
                | UpstreamError::SpaceAccessDenied
                | UpstreamError::Rejected
                | UpstreamError::AuthFailed
                | UpstreamError::Failed(_)
                | UpstreamError::InvalidResponse(_)
                | UpstreamError::Unreachable(_)
                | UpstreamError::Timeout(_) => None,
            },
            Self::Pages(_)
            | Self::InvalidSpaceToken
            | Self::InvalidRunId
            | Self::InvalidTaskId
            | Self::TaskNotFound { .. }
            | Self::InvalidParameter { .. }
            | Self::InvalidValue { .. }
            | Self::CursorGone { .. }
            | Self::UnknownParameter { .. }
            | Self::InvalidBody
            | Self::Unauthenticated
            | Self::SpaceNotAllowed
            | Self::MintingNotAllowed
            | Self::RouteNotFound
            | Self::MethodNotAllowed { .. }
            | Self::Internal => None,
        }
    }

    /// The stable code, as the answer and the log name it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.problem().code
    }

    /// What the client may go on with.
    fn data(&self) -> serde_json::Value {
        match self {
            Self::CursorGone { cursor, reason } => {
                serde_json::json!({"cursor": cursor, "reason": reason})
            }
            _ => serde_json::json!({}),
        }
    }

    /// The body, naming the request.
    #[must_use]
    pub fn body(&self, request_id: &str) -> Bytes {
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: String,
            title: &'a str,
            status: u16,
            detail: &'a str,
            code: &'a str,
            status_code: u16,
            message: &'a str,
            data: serde_json::Value,
            request_id: &'a str,
        }
        let problem = self.problem();
        let body = Body {
            r#type: format!("/problems/{}", problem.code),
            title: problem.title,
            status: problem.status.as_u16(),
            detail: &problem.detail,
            code: problem.code,
            status_code: problem.status.as_u16(),
            message: &problem.detail,
            data: self.data(),
            request_id,
        };
        Bytes::from(serde_json::to_vec(&body).expect("strings and numbers serialize"))
    }

    /// Its status and fields, with the error itself among the extensions. Without its body: [`super::layers::observe`] writes it, since it
    /// knows the request's id.
    #[must_use]
    pub fn into_answer<B: Default>(self) -> http::Response<B> {
        let mut response = http::Response::new(B::default());
        *response.status_mut() = self.problem().status;
        let headers = response.headers_mut();
        match &self {
            Self::Unauthenticated => {
                let challenges = HeaderValue::from_static("Token, Bearer");
                headers.insert(header::WWW_AUTHENTICATE, challenges);
            }
            Self::MethodNotAllowed { allow } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allow));
            }
            Self::RateLimited(limit) => rate_limit::write(&[*limit], headers),
            _ => {}
        }
        if let Some(wait) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, whole_seconds(wait).into());
        }
        if let Self::TaskNotFound { scope, status } = &self {
            list_scope::write(*scope, headers);
            headers.insert("cache-status", status.header_value());
        }
        if let Self::Pages(error) = &self {
            headers.insert("cache-status", error.status.header_value());
            if let Some(age) = error.age {
                headers.insert(header::AGE, age.as_secs().into());
            }
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// What an upstream error looks like. Without `_`: a new one must choose.
fn upstream_problem(error: &UpstreamError) -> Problem {
    match error {
        UpstreamError::SpaceNotFound { .. } => problem(
            StatusCode::NOT_FOUND,
            "space_not_found",
            "Space not found",
            "Invalid Space Token",
        ),
        UpstreamError::SpaceAccessDenied => problem(
            StatusCode::FORBIDDEN,
            "space_access_denied",
            "Space access denied",
            "You Don't have Access to this Space",
        ),
        UpstreamError::Rejected => problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            "upstream_rejected",
            "Rejected upstream",
            "The upstream refused this request.",
        ),
        UpstreamError::AuthFailed => problem(
            StatusCode::BAD_GATEWAY,
            "upstream_auth_failed",
            "Gateway not authenticated upstream",
            "The upstream refused the gateway's own credential; its operator must act.",
        ),
        UpstreamError::Failed(_) => problem(
            StatusCode::BAD_GATEWAY,
            "upstream_failed",
            "Upstream failed",
            "The upstream could not answer this request.",
        ),
        UpstreamError::InvalidResponse(_) => problem(
            StatusCode::BAD_GATEWAY,
            "upstream_invalid_response",
            "Invalid answer from upstream",
            "The upstream's answer is not a page of tasks.",
        ),
        UpstreamError::Unreachable(_) => problem(
            StatusCode::BAD_GATEWAY,
            "upstream_unreachable",
            "Upstream unreachable",
            "The upstream cannot be reached.",
        ),
        UpstreamError::Timeout(_) => problem(
            StatusCode::GATEWAY_TIMEOUT,
            "upstream_timeout",
            "Upstream timed out",
            "The upstream did not answer in time.",
        ),
        UpstreamError::QuotaExhausted { .. } => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "upstream_quota_exhausted",
            "Upstream quota exhausted",
            "The upstream's call quota is spent; try again after the time in `Retry-After`.",
        ),
        UpstreamError::Unavailable { .. } => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "upstream_unavailable",
            "Upstream unavailable",
            "The upstream keeps failing and is not asked for a while; try again after the time in `Retry-After`.",
        ),
        UpstreamError::Overloaded => overloaded(),
    }
}

fn overloaded() -> Problem {
    problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "overloaded",
        "Overloaded",
        "Too many requests are under way; try again shortly.",
    )
}

fn internal() -> Problem {
    problem(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "Internal error",
        "The gateway failed to handle this request.",
    )
}

fn problem(
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: impl Into<Cow<'static, str>>,
) -> Problem {
    Problem {
        status,
        code,
        title,
        detail: detail.into(),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.into_answer()
    }
}
