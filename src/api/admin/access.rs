//! Who may use the operators' listener: while no key is set, whoever reaches it; then who has the key. Never a foreign web page.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{self, AUTHORIZATION},
};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    api::{
        LivePolicy,
        key::OperatorKeys,
        layers::{
            host::names_one,
            internal_auth::{Failures, sole_authorization},
        },
        rate_limit::whole_seconds,
    },
    peer::ConnectionInfo,
};

/// Served without a key, to probes.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// How a request was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    Key,
    /// No key is set.
    NotAsked,
    /// A probe without one.
    None,
}

/// Who sent a request.
#[derive(Clone, Copy, Debug)]
pub struct Operator {
    address: Option<IpAddr>,
    proof: Proof,
}

impl Operator {
    /// Whether it may read more than a probe.
    #[must_use]
    pub fn is_trusted(self) -> bool {
        match self.proof {
            Proof::Key | Proof::NotAsked => true,
            Proof::None => false,
        }
    }
}

/// As the log names it.
impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => address.fmt(f)?,
            None => f.write_str("a Unix socket")?,
        }
        f.write_str(match self.proof {
            Proof::Key => " by key",
            Proof::NotAsked | Proof::None => " without a key",
        })
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A name that resolves to this machine: a web page could make one (DNS rebinding).
    ForeignHost,
    /// A web page of another origin wants to change something.
    ForeignOrigin,
    NoKey,
    TooManyFailures(Duration),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let refused = |status, text: &'static str| (status, text).into_response();
        match self {
            Self::ForeignHost => refused(
                StatusCode::FORBIDDEN,
                "this Host is not served: use an IP address or localhost",
            ),
            Self::ForeignOrigin => {
                refused(StatusCode::FORBIDDEN, "this Origin may not change anything")
            }
            Self::NoKey => {
                let mut response = refused(
                    StatusCode::UNAUTHORIZED,
                    "send the operators' key as Bearer, or as the password of Basic",
                );
                // Two lines: Chromium reads each as one challenge, and asks for a password only where one begins with Basic.
                let headers = response.headers_mut();
                for challenge in ["Bearer", "Basic realm=\"unpod-gateway\""] {
                    headers.append(
                        header::WWW_AUTHENTICATE,
                        HeaderValue::from_static(challenge),
                    );
                }
                response
            }
            Self::TooManyFailures(wait) => {
                let text = "too many wrong keys came from this address";
                let mut response = refused(StatusCode::TOO_MANY_REQUESTS, text);
                let wait = whole_seconds(wait).into();
                response.headers_mut().insert(header::RETRY_AFTER, wait);
                response
            }
        }
    }
}

/// Authenticates whoever comes to the operators' listener.
#[derive(Debug)]
pub struct AdminAuth {
    policy: LivePolicy,
    failures: Failures,
}

impl AdminAuth {
    /// `max_failures`: wrong keys a minute from one address before further ones get 429; 0: no limit.
    #[must_use]
    pub fn new(policy: LivePolicy, max_failures: u32) -> Self {
        Self {
            policy,
            failures: Failures::new(max_failures),
        }
    }

    /// Who sent `request`.
    ///
    /// # Errors
    ///
    /// Returns why it is not served.
    pub fn admit(&self, request: &Request) -> Result<Operator, Refusal> {
        let connection = request.extensions().get::<ConnectionInfo>();
        let address = connection.and_then(|connection| connection.peer.address());
        let proof = judge(&self.policy.load().operators, request);
        match proof {
            Ok(proof) => Ok(Operator { address, proof }),
            Err(Refusal::NoKey) if request.headers().contains_key(AUTHORIZATION) => {
                Err(self.count_wrong_key(address))
            }
            Err(refusal) => Err(refusal),
        }
    }

    fn count_wrong_key(&self, address: Option<IpAddr>) -> Refusal {
        match self.failures.count(address, Instant::now()) {
            Some(wait) => Refusal::TooManyFailures(wait),
            None => {
                let address = address.map(tracing::field::display);
                warn!(peer.address = address, "a wrong operators' key is refused");
                Refusal::NoKey
            }
        }
    }
}

fn judge(keys: &OperatorKeys, request: &Request) -> Result<Proof, Refusal> {
    let host = sole_host(request).ok_or(Refusal::ForeignHost)?;
    let proof = if keys.is_empty() {
        if !is_local(host) {
            return Err(Refusal::ForeignHost);
        }
        Proof::NotAsked
    } else {
        prove(keys, request)?
    };
    let changes = matches!(*request.method(), Method::POST | Method::DELETE);
    if changes && is_foreign_page(request.headers(), host) {
        return Err(Refusal::ForeignOrigin);
    }
    Ok(proof)
}

fn prove(keys: &OperatorKeys, request: &Request) -> Result<Proof, Refusal> {
    let headers = request.headers();
    if sole_authorization(headers).is_some_and(|value| keys.admit(value)) {
        return Ok(Proof::Key);
    }
    // A probe with a wrong key is refused: a wrong key is a mistake to notice.
    if PROBES.contains(&request.uri().path()) && !headers.contains_key(AUTHORIZATION) {
        return Ok(Proof::None);
    }
    Err(Refusal::NoKey)
}

/// The one host that a request names, in its target or its `Host`.
fn sole_host(request: &Request) -> Option<&str> {
    if !names_one(request.version(), request.uri(), request.headers()) {
        return None;
    }
    match request.uri().authority() {
        Some(target) => Some(target.as_str()),
        None => match request.headers().get(header::HOST) {
            Some(field) => field.to_str().ok(),
            None => Some(""),
        },
    }
}

/// Whether `host` is an IP address or `localhost`, with or without a port, and nothing else: no name that somebody could have resolve
/// to this machine.
fn is_local(host: &str) -> bool {
    let (is_named, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => (address.parse::<Ipv6Addr>().is_ok(), port),
            None => return false,
        },
        None => {
            let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
            let is_named =
                name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok();
            (is_named, port)
        }
    };
    is_named && is_port(port)
}

/// Nothing, or a colon and a number.
fn is_port(text: &str) -> bool {
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    text.is_empty()
        || text
            .strip_prefix(':')
            .is_some_and(|port| digits(port) && port.parse::<u16>().is_ok())
}

/// Whether a web page of another origin asks, or what may be one: an origin is one scheme, host and port (RFC 6454 section 4).
fn is_foreign_page(headers: &HeaderMap, host: &str) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).into_iter();
    let Some(origin) = origins.next() else {
        return false;
    };
    let is_own = |scheme: &str, default_port: &str| {
        let host = host.strip_suffix(default_port).unwrap_or(host);
        let own = format!("{scheme}://{host}");
        origin.as_bytes().eq_ignore_ascii_case(own.as_bytes())
    };
    // This listener speaks plain HTTP. Behind a proxy that speaks TLS the page is of https: then its browser must have said that page
    // and target are of one origin, which no page can make it say.
    let is_alone = origins.next().is_none();
    let is_ours = is_own("http", ":80") || is_own("https", ":443") && is_same_origin(headers);
    !(is_alone && is_ours)
}

fn is_same_origin(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").into_iter();
    sites.next().is_some_and(|site| site == "same-origin") && sites.next().is_none()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;
    use crate::{api::key::digest, config::value::Sha256Digest};

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for host in [
            "127.0.0.1:9090",
            "localhost:9090",
            "LOCALHOST",
            "[::1]:9090",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "10.1.2.3",
            "10.1.2.3:65535",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            ":9090",
            "evil.example:9090",
            "localhost.evil.example",
            "localhost.",
            "evil.localhost",
            "[127.0.0.1]",
            "[127.0.0.1]evil.test",
            "[::1]evil.test",
            "[::1]evil.test:9090",
            "[::1].evil.test",
            "[::1",
            "::1",
            "[[::1]]",
            "[localhost]",
            "127.0.0.1:",
            "127.0.0.1:evil.test",
            "127.0.0.1:9090:evil.test",
            "127.0.0.1:+80",
            "127.0.0.1:65536",
            "127.0.0.1.evil.test",
            "127.1",
            "0177.0.0.1",
            "2130706433",
            "evil@127.0.0.1",
            "127.0.0.1@evil.test",
            "127.0.0.1,evil.test",
            "%6cocalhost",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn one_host_is_named_and_the_same_everywhere() {
        let none = keys(&[]);
        for (uri, host, expected) in [
            ("http://localhost/", "localhost", Ok(Proof::NotAsked)),
            ("http://LOCALHOST/", "localhost", Ok(Proof::NotAsked)),
            ("http://localhost/", "127.0.0.1", Err(Refusal::ForeignHost)),
            ("http://localhost/", "evil.test", Err(Refusal::ForeignHost)),
            ("http://evil.test/", "localhost", Err(Refusal::ForeignHost)),
            (
                "http://x@localhost/",
                "localhost",
                Err(Refusal::ForeignHost),
            ),
        ] {
            let judged = judge(&none, &asked("GET", uri, ["", host, ""]));
            assert_eq!(judged, expected, "{uri} {host}");
        }
        let mut two = asked("GET", "/", ["", "localhost", ""]);
        let second = HeaderValue::from_static("localhost");
        two.headers_mut().append(header::HOST, second);
        assert_eq!(judge(&none, &two), Err(Refusal::ForeignHost));
    }

    #[test]
    fn an_origin_is_ours_by_scheme_host_and_port() {
        for (host, origins, site, expected) in [
            ("localhost:9090", &[][..], "", true),
            ("localhost:9090", &["http://localhost:9090"], "", true),
            ("localhost:9090", &["HTTP://LocalHost:9090"], "", true),
            ("localhost:80", &["http://localhost"], "", true),
            ("localhost", &["http://localhost"], "", true),
            ("[::1]:9090", &["http://[::1]:9090"], "", true),
            ("ops.example", &["https://ops.example"], "same-origin", true),
            (
                "ops.example:443",
                &["https://ops.example"],
                "same-origin",
                true,
            ),
            ("ops.example", &["https://ops.example"], "", false),
            ("ops.example", &["https://ops.example"], "same-site", false),
            ("localhost:9090", &["https://localhost:9090"], "", false),
            ("localhost:9090", &["ftp://localhost:9090"], "", false),
            ("localhost:9090", &["localhost:9090"], "", false),
            ("localhost:9090", &["http://localhost"], "", false),
            ("localhost:9090", &["http://localhost:9090/"], "", false),
            (
                "localhost:9090",
                &["http://localhost:9090.evil.test"],
                "",
                false,
            ),
            ("localhost:9090", &["http://evil@localhost:9090"], "", false),
            ("localhost:9090", &["null"], "", false),
            ("localhost:9090", &[""], "", false),
            (
                "localhost:9090",
                &["http://localhost:9090 http://evil.test"],
                "",
                false,
            ),
            (
                "localhost:9090",
                &["http://localhost:9090", "http://evil.test"],
                "",
                false,
            ),
            (
                "localhost:9090",
                &["http://evil.test", "http://localhost:9090"],
                "",
                false,
            ),
            (
                "localhost:9090",
                &["http://localhost:9090", "http://localhost:9090"],
                "",
                false,
            ),
        ] {
            let origins_of = origins.iter().map(|origin| (header::ORIGIN, *origin));
            let site_of = ("sec-fetch-site".parse().unwrap(), site);
            let headers: HeaderMap = origins_of
                .chain([site_of])
                .map(|(name, value)| (name, HeaderValue::from_static(value)))
                .collect();
            let found = !is_foreign_page(&headers, host);
            assert_eq!(found, expected, "{host} {origins:?} {site}");
        }
    }

    fn basic(user_and_password: &str) -> String {
        format!("Basic {}", STANDARD.encode(user_and_password))
    }

    fn keys(keys: &[&str]) -> OperatorKeys {
        let digests: Vec<_> = keys
            .iter()
            .map(|key| Sha256Digest(digest(key.as_bytes())))
            .collect();
        OperatorKeys::new(&digests)
    }

    /// `fields` are an authorization, a host and an origin; an empty one is not sent.
    fn asked(method: &str, path: &str, fields: [&str; 3]) -> Request {
        let names = [AUTHORIZATION, header::HOST, header::ORIGIN];
        let fields = names.into_iter().zip(fields);
        let request = http::Request::builder().method(method).uri(path);
        fields
            .filter(|(_, value)| !value.is_empty())
            .fold(request, |request, (name, value)| {
                request.header(name, value)
            })
            .body(Body::empty())
            .unwrap()
    }

    #[test]
    fn without_a_key_names_of_others_are_refused() {
        let none = keys(&[]);
        for (method, path, fields, expected) in [
            ("GET", "/", ["", "127.0.0.1:9090", ""], Ok(Proof::NotAsked)),
            (
                "GET",
                "/",
                ["Bearer x", "localhost", ""],
                Ok(Proof::NotAsked),
            ),
            ("GET", "/livez", ["", "10.0.0.1", ""], Ok(Proof::NotAsked)),
            (
                "GET",
                "/",
                ["", "ops.example", ""],
                Err(Refusal::ForeignHost),
            ),
            (
                "POST",
                "/reload",
                ["", "localhost:9090", "http://localhost:9090"],
                Ok(Proof::NotAsked),
            ),
            (
                "POST",
                "/reload",
                ["", "localhost:9090", "http://localhost:8080"],
                Err(Refusal::ForeignOrigin),
            ),
        ] {
            let judged = judge(&none, &asked(method, path, fields));
            assert_eq!(judged, expected, "{method} {path} {fields:?}");
        }
    }

    #[test]
    fn with_keys_one_is_needed_and_any_host_is_served() {
        let two = keys(&["old", "new"]);
        let host = "ops.example";
        let (ours, foreign) = ("http://ops.example", "http://evil.example");
        let password = basic("anybody:new");
        for (method, path, fields, expected) in [
            ("GET", "/", ["Bearer old", host, ""], Ok(Proof::Key)),
            ("GET", "/", [password.as_str(), host, ""], Ok(Proof::Key)),
            ("GET", "/", ["", host, ""], Err(Refusal::NoKey)),
            ("GET", "/", ["", "127.0.0.1", ""], Err(Refusal::NoKey)),
            ("GET", "/", ["Bearer", host, ""], Err(Refusal::NoKey)),
            ("GET", "/", ["Bearer other", host, ""], Err(Refusal::NoKey)),
            ("GET", "/livez", ["", host, ""], Ok(Proof::None)),
            ("GET", "/readyz", ["", host, ""], Ok(Proof::None)),
            ("GET", "/readyz", ["Bearer new", host, ""], Ok(Proof::Key)),
            (
                "GET",
                "/readyz",
                ["Bearer x", host, ""],
                Err(Refusal::NoKey),
            ),
            (
                "DELETE",
                "/cache",
                ["Bearer new", host, ours],
                Ok(Proof::Key),
            ),
            (
                "DELETE",
                "/cache",
                ["Bearer new", host, foreign],
                Err(Refusal::ForeignOrigin),
            ),
            ("DELETE", "/cache", ["", host, ours], Err(Refusal::NoKey)),
        ] {
            let judged = judge(&two, &asked(method, path, fields));
            assert_eq!(judged, expected, "{method} {path} {fields:?}");
        }
    }

    #[test]
    fn of_two_authorizations_none_counts() {
        let mut request = asked("GET", "/readyz", ["Bearer key", "a", ""]);
        let second = HeaderValue::from_static("Bearer key");
        request.headers_mut().append(AUTHORIZATION, second);
        assert_eq!(judge(&keys(&["key"]), &request), Err(Refusal::NoKey));
    }
}
