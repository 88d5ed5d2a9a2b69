//! `[telemetry]`: logs and traces.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use url::Url;

use super::{Problems, value::Address};

/// `[telemetry]`: what is logged and how it looks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    pub format: LogFormat,
    /// A level or a list of `target=level`.
    pub filter: String,
    pub access_log: bool,
    /// Where traces are sent; absent: there are none.
    pub otlp_endpoint: Option<Address>,
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
        if self
            .otlp_endpoint
            .as_ref()
            .is_some_and(|endpoint| !is_plain_http(&endpoint.0))
        {
            problems.add(
                "telemetry.otlp_endpoint",
                "expected the http or https URL of a collector, without a user, a query or a fragment",
            );
        }
    }

    /// Where traces are posted, by OTLP/HTTP's rule: below the endpoint.
    #[must_use]
    pub fn traces_url(&self) -> Option<Url> {
        let mut url = self.otlp_endpoint.as_ref()?.0.clone();
        url.path_segments_mut()
            .ok()?
            .pop_if_empty()
            .extend(["v1", "traces"]);
        Some(url)
    }
}

/// Nothing that would be a secret, or be lost where a path is added.
fn is_plain_http(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_posted_below_the_endpoint() {
        for (endpoint, expected) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("https://c/otlp", "https://c/otlp/v1/traces"),
            ("https://c/otlp/", "https://c/otlp/v1/traces"),
        ] {
            let config = TelemetryConfig {
                format: LogFormat::Json,
                filter: "info".to_owned(),
                access_log: true,
                otlp_endpoint: Some(Address(endpoint.parse().unwrap())),
            };
            assert_eq!(config.traces_url().unwrap().as_str(), expected);
        }
    }

    #[test]
    fn a_collector_is_named_by_a_plain_url() {
        for (url, expected) in [
            ("http://127.0.0.1:4318", true),
            ("https://collector.example/otlp", true),
            ("grpc://c:4317", false),
            ("http://user@c", false),
            ("http://:secret@c", false),
            ("http://c?key=secret", false),
            ("http://c#part", false),
        ] {
            assert_eq!(is_plain_http(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
