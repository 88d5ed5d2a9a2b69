//! What the message of a 206 means: a table, and what the operator adds to it.

use std::sync::Arc;

use super::{Envelope, FailureSource, UpstreamError, shown};
use crate::config::{NormalizeConfig, normalize::RuleCode};

/// What a message means. Asked in order; the first whose texts are all found, in any case, decides.
struct BuiltInRule {
    message: &'static str,
    /// Found in `errors`, where the message alone does not tell.
    inner: Option<&'static str>,
    meaning: Meaning,
}

/// What a 206 can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    SpaceNotFound,
    SpaceAccessDenied,
    Rejected,
    Failed,
    SlowDown,
    AuthFailed,
    QuotaExhausted,
}

const fn rule(message: &'static str, inner: Option<&'static str>, meaning: Meaning) -> BuiltInRule {
    BuiltInRule {
        message,
        inner,
        meaning,
    }
}

const RULES: [BuiltInRule; 10] = [
    rule("invalid space token", None, Meaning::SpaceNotFound),
    rule("you don't have access", None, Meaning::SpaceAccessDenied),
    rule("invalid role code", None, Meaning::Failed),
    // Of tasks and of runs alike.
    rule("fetch failed", Some("skip must be"), Meaning::Rejected),
    rule("fetch failed", Some("8-byte ints"), Meaning::Rejected),
    rule("fetch failed", Some("slow down"), Meaning::SlowDown),
    rule("fetch failed", Some("too many requests"), Meaning::SlowDown),
    rule("fetch failed", Some("rate limit"), Meaning::SlowDown),
    rule("fetch failed", Some("throttled"), Meaning::SlowDown),
    rule("fetch failed", None, Meaning::Failed),
];

/// The operator's rules, then the built-in ones.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    own: Arc<[(String, Meaning)]>,
}

impl Rules {
    #[must_use]
    pub fn new(config: &NormalizeConfig) -> Self {
        let own = config
            .rules
            .iter()
            .map(|rule| (rule.contains.to_lowercase(), Meaning::from(rule.code)))
            .collect();
        Self { own }
    }

    /// What a 206 means; `None` where no rule knows its message.
    pub(super) fn meaning(&self, envelope: &Envelope) -> Option<Meaning> {
        let message = envelope.message.as_deref()?.to_lowercase();
        if let Some((_, meaning)) = self.own.iter().find(|(text, _)| message.contains(text)) {
            return Some(*meaning);
        }
        let errors = envelope.errors.as_deref().unwrap_or("").to_lowercase();
        RULES
            .iter()
            .find(|rule| {
                message.contains(rule.message)
                    && rule.inner.is_none_or(|inner| errors.contains(inner))
            })
            .map(|rule| rule.meaning)
    }
}

impl From<RuleCode> for Meaning {
    fn from(code: RuleCode) -> Self {
        match code {
            RuleCode::SpaceNotFound => Self::SpaceNotFound,
            RuleCode::SpaceAccessDenied => Self::SpaceAccessDenied,
            RuleCode::UpstreamRejected => Self::Rejected,
            RuleCode::UpstreamFailed => Self::Failed,
            RuleCode::UpstreamAuthFailed => Self::AuthFailed,
            RuleCode::UpstreamQuotaExhausted => Self::QuotaExhausted,
        }
    }
}

impl Meaning {
    pub(super) fn error(self, message: Option<&str>) -> UpstreamError {
        let message = || message.map(|message| shown(message).into());
        match self {
            Self::SpaceNotFound => UpstreamError::SpaceNotFound { head: None },
            Self::SpaceAccessDenied => UpstreamError::SpaceAccessDenied,
            Self::Rejected => UpstreamError::Rejected,
            Self::Failed => UpstreamError::Failed(FailureSource::Inner { message: message() }),
            Self::SlowDown => {
                UpstreamError::Failed(FailureSource::InnerSlowDown { message: message() })
            }
            Self::AuthFailed => UpstreamError::AuthFailed,
            Self::QuotaExhausted => UpstreamError::QuotaExhausted { retry_after: None },
        }
    }
}
