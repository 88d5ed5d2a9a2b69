//! `[telemetry]`: logs and traces.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use super::{Problems, value::NotYet};

/// `[telemetry]`: what is logged and how it looks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    pub format: LogFormat,
    /// A level or a list of `target=level`.
    pub filter: String,
    pub access_log: bool,
    pub otlp_endpoint: Option<NotYet>,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Json,
    Pretty,
}

impl TelemetryConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        if EnvFilter::try_new(&self.filter).is_err() {
            problems.add(
                "telemetry.filter",
                "expected a level such as \"info\", or \"info,unpod_gateway::cache=debug\"",
            );
        }
    }
}
