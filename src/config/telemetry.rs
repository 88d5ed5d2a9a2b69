//! `[telemetry]`: logs and traces.

use std::path::PathBuf;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use tracing_subscriber::filter::Targets;
use url::Url;

use super::{Problems, files, value::Address};

/// What a request to the collector says of itself.
const OWN_HEADERS: [HeaderName; 5] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::TRANSFER_ENCODING,
];

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
    /// Names and values of headers for the collector; absent: there are none.
    pub otlp_headers_file: Option<PathBuf>,
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
        if self.filter.parse::<Targets>().is_err() {
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
        if let Err(text) = self.read_otlp_headers() {
            problems.add("telemetry.otlp_headers_file", text);
        }
    }

    /// What goes with each request to the collector, marked as secret.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the file, without quoting it.
    pub fn read_otlp_headers(&self) -> Result<HeaderMap, String> {
        let Some(file) = &self.otlp_headers_file else {
            return Ok(HeaderMap::new());
        };
        let text = files::read_text(file).map_err(|error| format!("cannot be read: {error}"))?;
        headers(&text)
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

/// Reads lines of `Name: value`; empty ones do not count.
fn headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (line, number) in text.lines().zip(1..) {
        if line.trim().is_empty() {
            continue;
        }
        let (name, value) =
            header(line).ok_or_else(|| format!("line {number} is not `Name: value`"))?;
        if OWN_HEADERS.contains(&name) {
            return Err(format!("line {number} names a header that is set anyway"));
        }
        headers.append(name, value);
    }
    Ok(headers)
}

fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let name = name.trim().parse().ok()?;
    let mut value = HeaderValue::from_str(value.trim()).ok()?;
    value.set_sensitive(true);
    Some((name, value))
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
                otlp_headers_file: None,
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

    #[test]
    fn headers_are_read_line_by_line() {
        let read =
            headers("\nAuthorization: Bearer a:b\r\n x-scope : one \nx-scope:two\n").unwrap();
        assert_eq!(read["authorization"], "Bearer a:b");
        let scopes: Vec<_> = read.get_all("x-scope").iter().collect();
        assert_eq!(scopes, ["one", "two"]);
        assert!(read.values().all(HeaderValue::is_sensitive));
        assert!(headers("").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_header_is_refused_by_its_line_and_not_quoted() {
        for bad in [
            "s3cret",
            "x=s3cret",
            "s3 cret: x",
            ": s3cret",
            "x: s3\u{7}cret",
            "Content-Type: s3cret",
            "host: s3cret",
        ] {
            let error = headers(&format!("a: b\n{bad}")).unwrap_err();
            assert!(error.starts_with("line 2 "), "{error}");
            assert!(!error.contains("cret"), "{error}");
        }
    }
}
