//! Why the upstream gave no page.

use std::{error::Error, sync::Arc, time::Duration};

use http::StatusCode;

use super::{Head, client::ClientError};

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
    #[error("too many fills are waiting")]
    Overloaded,
}

/// What told that the upstream failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailureSource {
    /// A 206 from an inner service that broke: one bad task does it for good, an outage for a while.
    #[error("an inner failure under a 206")]
    Inner,
    /// A 206 from an inner service that asks for patience.
    #[error("an inner service that asks to slow down, under a 206")]
    InnerSlowDown,
    #[error("status {0}")]
    Status(StatusCode),
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
    #[error("ended early or does not decode")]
    Truncated,
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
            | Self::Overloaded => true,
            Self::SpaceNotFound { .. }
            | Self::SpaceAccessDenied
            | Self::Rejected
            | Self::AuthFailed => false,
        }
    }

    /// Whether asking again at once may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Failed(source) => match source {
                FailureSource::Inner => true,
                FailureSource::Status(status) => matches!(status.as_u16(), 502..=504),
                FailureSource::InnerSlowDown | FailureSource::Html => false,
            },
            Self::SpaceNotFound { .. }
            | Self::SpaceAccessDenied
            | Self::Rejected
            | Self::AuthFailed
            | Self::InvalidResponse(_)
            | Self::Timeout(_)
            | Self::QuotaExhausted { .. }
            | Self::Overloaded => false,
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
