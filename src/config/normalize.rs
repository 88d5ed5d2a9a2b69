//! `[[normalize.rules]]`: what a 206's message means if no built-in rule matches it.

use serde::Deserialize;

use super::Problems;

/// The operator's rules, in order.
#[derive(Clone, Debug, Default)]
pub struct NormalizeConfig {
    pub rules: Vec<RuleConfig>,
}

impl NormalizeConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        for (place, rule) in self.rules.iter().enumerate() {
            if rule.contains.trim().is_empty() {
                problems.add(
                    format!("normalize.rules[{place}].contains"),
                    "expected a text: an empty one is found in every message",
                );
            }
        }
    }
}

/// One rule: a text in the message, and the error it means.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// Matched anywhere in the message, case-insensitively.
    pub contains: String,
    pub code: RuleCode,
}

/// The errors that an upstream's message can mean.
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
