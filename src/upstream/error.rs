//! Why the upstream gave no page.

use std::{error::Error, sync::Arc, time::Duration};

use http::StatusCode;

use super::{Evidence, Head, client::ClientError};

/// Why the upstream gave no page. Cheap to clone: every waiter of a fill gets one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It knows no such space. `head` is there where a 404 or 410 told it, whose header may state a lifetime.
    #[error("no such space")]
    SpaceNotFound { head: Option<Arc<Head>> },
    #[error("the credential's user has no access to the space")]
    SpaceAccessDenied,
    #[error("refused the request")]
    Rejected,
    #[error("refused the credential")]
    AuthFailed,
    #[error("failed: {0}")]
    Failed(FailureSource),
    #[error("answer is not a task page")]
    InvalidResponse(#[source] InvalidAnswer),
    #[error("cannot be reached")]
    Unreachable(#[source] Arc<ClientError>),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("call quota is spent")]
    QuotaExhausted { retry_after: Option<Duration> },
    /// Not asked: it kept failing, and its circuit is open.
    #[error("keeps failing, and is not asked for a while")]
    Unavailable { retry_after: Duration },
    #[error("too many fills are waiting")]
    Overloaded,
}

/// What told that the upstream failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailureSource {
    /// A 206 from an inner service that broke: one bad task does it for good, an outage for a while. `message` is the 206's own.
    #[error("an inner failure under a 206")]
    Inner { message: Option<Arc<str>> },
    /// A 206 from an inner service that asks for patience.
    #[error("an inner service that asks to slow down, under a 206")]
    InnerSlowDown { message: Option<Arc<str>> },
    /// `retry_after` is how long it asks to be left alone.
    #[error("status {status}")]
    Status {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    #[error("HTML in place of JSON")]
    Html,
}

/// In which way an answer is not a task page.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InvalidAnswer {
    // Without the text: serde_json quotes what it read.
    #[error("not JSON of the expected shape (line {line}, column {column})")]
    Json { line: usize, column: usize },
    #[error("no `data` array")]
    NoData,
    #[error("no integer `count`")]
    NoCount,
    #[error("larger than {0} bytes")]
    TooLarge(usize),
    #[error("ended early")]
    Truncated,
    #[error("{0}")]
    Coding(String),
    #[error("header is longer than 256 lines or 400 KiB")]
    HeaderTooLarge,
    #[error("not HTTP")]
    NotHttp,
}

impl UpstreamError {
    /// Whether a stored page may stand in for it.
    #[must_use]
    pub fn allows_stale(&self) -> bool {
        match self {
            Self::Failed(_)
            | Self::InvalidResponse(_)
            | Self::Unreachable(_)
            | Self::Timeout(_)
            | Self::QuotaExhausted { .. }
            | Self::Unavailable { .. }
            | Self::Overloaded => true,
            Self::SpaceNotFound { .. }
            | Self::SpaceAccessDenied
            | Self::Rejected
            | Self::AuthFailed => false,
        }
    }

    /// Whether it is an answer that the upstream gives only to a user it knows.
    #[must_use]
    pub fn is_told_to_a_known_user(&self) -> bool {
        match self {
            Self::SpaceNotFound { .. } | Self::SpaceAccessDenied | Self::Rejected => true,
            Self::Failed(source) => match source {
                FailureSource::Inner { .. } | FailureSource::InnerSlowDown { .. } => true,
                FailureSource::Status { .. } | FailureSource::Html => false,
            },
            Self::AuthFailed
            | Self::InvalidResponse(_)
            | Self::Unreachable(_)
            | Self::Timeout(_)
            | Self::QuotaExhausted { .. }
            | Self::Unavailable { .. }
            | Self::Overloaded => false,
        }
    }

    /// Whether asking again at once may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Failed(source) => match source {
                FailureSource::Inner { .. } => true,
                FailureSource::Status { status, .. } => matches!(status.as_u16(), 502..=504),
                FailureSource::InnerSlowDown { .. } | FailureSource::Html => false,
            },
            Self::SpaceNotFound { .. }
            | Self::SpaceAccessDenied
            | Self::Rejected
            | Self::AuthFailed
            | Self::InvalidResponse(_)
            | Self::Timeout(_)
            | Self::QuotaExhausted { .. }
            | Self::Unavailable { .. }
            | Self::Overloaded => false,
        }
    }

    /// How long the upstream, failing, asks to be left alone.
    #[must_use]
    pub fn asks_to_wait(&self) -> Option<Duration> {
        match self {
            Self::Failed(source) => match source {
                FailureSource::Status {
                    status,
                    retry_after,
                } => retry_after.filter(|_| status.is_server_error()),
                FailureSource::Inner { .. }
                | FailureSource::InnerSlowDown { .. }
                | FailureSource::Html => None,
            },
            Self::SpaceNotFound { .. }
            | Self::SpaceAccessDenied
            | Self::Rejected
            | Self::AuthFailed
            | Self::InvalidResponse(_)
            | Self::Unreachable(_)
            | Self::Timeout(_)
            | Self::QuotaExhausted { .. }
            | Self::Unavailable { .. }
            | Self::Overloaded => None,
        }
    }

    /// What it tells about the upstream as a whole.
    #[must_use]
    pub fn evidence(&self) -> Evidence {
        match self {
            Self::SpaceNotFound { .. } | Self::SpaceAccessDenied | Self::Rejected => {
                Evidence::Works
            }
            // Something answered: whatever it says may be about this page alone, and last as long as the page does.
            Self::Failed(_) => Evidence::PageFails,
            Self::InvalidResponse(answer) => match answer {
                InvalidAnswer::Json { .. }
                | InvalidAnswer::NoData
                | InvalidAnswer::NoCount
                | InvalidAnswer::TooLarge(_)
                | InvalidAnswer::Truncated
                | InvalidAnswer::Coding(_)
                | InvalidAnswer::HeaderTooLarge => Evidence::PageFails,
                InvalidAnswer::NotHttp => Evidence::Fails,
            },
            Self::Unreachable(_) | Self::Timeout(_) => Evidence::Fails,
            // A token or a quota says nothing of whether the rest works; of the others the upstream knows nothing.
            Self::AuthFailed
            | Self::QuotaExhausted { .. }
            | Self::Unavailable { .. }
            | Self::Overloaded => Evidence::Nothing,
        }
    }

    /// The first characters of the message of the 206 that told it. For the log: it is not known to be fit for a client.
    #[must_use]
    pub fn inner_message(&self) -> Option<&str> {
        match self {
            Self::Failed(
                FailureSource::Inner { message } | FailureSource::InnerSlowDown { message },
            ) => message.as_deref(),
            Self::Failed(FailureSource::Status { .. } | FailureSource::Html)
            | Self::SpaceNotFound { .. }
            | Self::SpaceAccessDenied
            | Self::Rejected
            | Self::AuthFailed
            | Self::InvalidResponse(_)
            | Self::Unreachable(_)
            | Self::Timeout(_)
            | Self::QuotaExhausted { .. }
            | Self::Unavailable { .. }
            | Self::Overloaded => None,
        }
    }

    /// Every cause behind it, outermost first, for the log: "request failed" alone would not tell a name that does not resolve
    /// from a certificate that does not fit.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let reasons: Vec<String> = causes(self).map(ToString::to_string).collect();
        (!reasons.is_empty()).then(|| reasons.join(": "))
    }

    /// The name under which it is counted and logged.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::SpaceNotFound { .. } => "space_not_found",
            Self::SpaceAccessDenied => "space_access_denied",
            Self::Rejected => "upstream_rejected",
            Self::AuthFailed => "upstream_auth_failed",
            Self::Failed(_) => "upstream_failed",
            Self::InvalidResponse(_) => "upstream_invalid_response",
            Self::Unreachable(_) => "upstream_unreachable",
            Self::Timeout(_) => "upstream_timeout",
            Self::QuotaExhausted { .. } => "upstream_quota_exhausted",
            Self::Unavailable { .. } => "upstream_unavailable",
            Self::Overloaded => "overloaded",
        }
    }
}

/// What an error comes from, outermost first.
pub(super) fn causes(error: &dyn Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_every_cause() {
        let too_large = Arc::new(ClientError::TooLarge(7));
        let unreachable = UpstreamError::Unreachable(too_large);
        let reason = unreachable.reason();
        assert_eq!(reason.as_deref(), Some("body is larger than 7 bytes"));
        let invalid = UpstreamError::InvalidResponse(InvalidAnswer::NotHttp);
        assert_eq!(invalid.reason().as_deref(), Some("not HTTP"));
        assert_eq!(UpstreamError::Overloaded.reason(), None);
    }
}
