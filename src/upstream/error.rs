//! Why the upstream gave no page.

use std::{error::Error, sync::Arc, time::Duration};

use http::StatusCode;

use super::Head;

/// hyper's own bound is 100; in bytes it is 400 KiB.
pub(super) const MAX_HEADER_LINES: usize = 256;

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
    #[error("header is longer than {MAX_HEADER_LINES} lines or 400 KiB")]
    HeaderTooLarge,
    #[error("not HTTP")]
    NotHttp,
    #[error("pages that do not fit together")]
    Inconsistent,
    /// It was none of the above, and the page is not asked for again yet.
    #[error("was no page a moment ago")]
    AMomentAgo,
}

/// What the end of a call tells about the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It answered, be it with a refusal.
    Works,
    Fails,
    /// It answered and failed, perhaps for this page alone: counted once a window.
    PageFails,
    /// It was not asked, or said nothing of itself.
    Nothing,
}

/// What follows from an error.
struct Traits {
    code: &'static str,
    evidence: Evidence,
    allows_stale: bool,
}

impl UpstreamError {
    /// What follows from each: the one place that lists them all.
    fn traits(&self) -> Traits {
        use Evidence::{Fails, Nothing, PageFails, Works};
        let (code, evidence, allows_stale) = match self {
            Self::SpaceNotFound { .. } => ("space_not_found", Works, false),
            Self::SpaceAccessDenied => ("space_access_denied", Works, false),
            Self::Rejected => ("upstream_rejected", Works, false),
            // A token or a quota says nothing of whether the rest works; of the other two the upstream knows nothing.
            Self::AuthFailed => ("upstream_auth_failed", Nothing, false),
            Self::QuotaExhausted { .. } => ("upstream_quota_exhausted", Nothing, true),
            Self::Unavailable { .. } => ("upstream_unavailable", Nothing, true),
            Self::Overloaded => ("overloaded", Nothing, true),
            // Something answered: whatever it says may be about this page alone, and last as long as the page does.
            Self::Failed(_) => ("upstream_failed", PageFails, true),
            Self::InvalidResponse(InvalidAnswer::NotHttp) => {
                ("upstream_invalid_response", Fails, true)
            }
            Self::InvalidResponse(_) => ("upstream_invalid_response", PageFails, true),
            Self::Unreachable(_) => ("upstream_unreachable", Fails, true),
            Self::Timeout(_) => ("upstream_timeout", Fails, true),
        };
        Traits {
            code,
            evidence,
            allows_stale,
        }
    }

    /// The name under which it is counted and logged.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        self.traits().code
    }

    /// What it tells about the upstream as a whole.
    #[must_use]
    pub fn evidence(&self) -> Evidence {
        self.traits().evidence
    }

    /// Whether a stale page may be served in its place.
    #[must_use]
    pub fn allows_stale(&self) -> bool {
        self.traits().allows_stale
    }

    /// Whether it says that the space is not there, or not to be read.
    #[must_use]
    pub fn refuses_space(&self) -> bool {
        matches!(self, Self::SpaceNotFound { .. } | Self::SpaceAccessDenied)
    }

    /// Whether it is an answer that the upstream gives only to a user it knows.
    #[must_use]
    pub fn is_told_to_a_known_user(&self) -> bool {
        let is_from_within = matches!(
            self,
            Self::Failed(FailureSource::Inner { .. } | FailureSource::InnerSlowDown { .. })
        );
        is_from_within || self.evidence() == Evidence::Works
    }

    /// Whether asking again at once may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Failed(FailureSource::Inner { .. }) => true,
            Self::Failed(FailureSource::Status { status, .. }) => {
                matches!(status.as_u16(), 502..=504)
            }
            _ => false,
        }
    }

    /// How long the upstream, failing, asks to be left alone.
    #[must_use]
    pub fn asks_to_wait(&self) -> Option<Duration> {
        let Self::Failed(FailureSource::Status {
            status,
            retry_after,
        }) = self
        else {
            return None;
        };
        retry_after.filter(|_| status.is_server_error())
    }

    /// The first characters of the message of the 206 that told it. For the log: it is not known to be fit for a client.
    #[must_use]
    pub fn inner_message(&self) -> Option<&str> {
        match self {
            Self::Failed(
                FailureSource::Inner { message } | FailureSource::InnerSlowDown { message },
            ) => message.as_deref(),
            _ => None,
        }
    }

    /// Every cause behind it, outermost first, for the log: "request failed" alone would not tell a name that does not resolve
    /// from a certificate that does not fit.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let reasons: Vec<String> = causes(self).map(ToString::to_string).collect();
        (!reasons.is_empty()).then(|| reasons.join(": "))
    }
}

/// Why there is no answer at all.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    // Without the URL, which holds the space token.
    #[error("request failed")]
    Request(#[source] reqwest::Error),
    #[error("answer is not HTTP")]
    NotHttp(#[source] reqwest::Error),
    #[error("connection broke within the body")]
    Broken(#[source] reqwest::Error),
    #[error("header of the answer is longer than {MAX_HEADER_LINES} lines or 400 KiB")]
    HeaderTooLarge(#[source] reqwest::Error),
    #[error("body ended early")]
    Truncated(#[source] reqwest::Error),
    #[error("content coding is not known: {0}")]
    UnknownCoding(String),
    #[error("content has more than three codings, one upon another")]
    TooManyCodings,
    #[error("body does not decode")]
    Undecodable(#[source] std::io::Error),
    #[error("body is larger than {0} bytes")]
    TooLarge(usize),
}

impl ClientError {
    /// The name under which a trace shows it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Request(_) => "request_failed",
            Self::NotHttp(_) => "not_http",
            Self::Broken(_) => "connection_broken",
            Self::HeaderTooLarge(_) => "header_too_large",
            Self::Truncated(_) => "truncated",
            Self::UnknownCoding(_) => "unknown_coding",
            Self::TooManyCodings => "too_many_codings",
            Self::Undecodable(_) => "undecodable",
            Self::TooLarge(_) => "too_large",
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
