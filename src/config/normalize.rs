//! `[[normalize.rules]]`: what a 206's message means, where the built-in rules do not know it.

use serde::Deserialize;

/// The operator's own rules, in the order they are asked.
#[derive(Clone, Debug, Default)]
pub struct NormalizeConfig {
    pub rules: Vec<RuleConfig>,
}

/// One rule: a text in the message, and the error it stands for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// Found anywhere in the message, in any case.
    pub contains: String,
    pub code: RuleCode,
}

/// The errors that an upstream's message can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleCode {
    SpaceNotFound,
    SpaceAccessDenied,
    UpstreamRejected,
    UpstreamFailed,
    UpstreamAuthFailed,
    UpstreamQuotaExhausted,
}
