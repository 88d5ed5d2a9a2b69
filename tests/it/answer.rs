//! The strict client: it asks as anybody would, and checks of every answer what the contract promises for all of them.

use std::{future::IntoFuture, io::Read, pin::Pin};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// Every code of the contract with its status.
pub(crate) const CODES: [(&str, u16); 29] = [
    ("invalid_space_token", 400),
    ("invalid_run_id", 400),
    ("invalid_task_id", 400),
    ("invalid_parameter", 400),
    ("unknown_parameter", 400),
    ("invalid_body", 400),
    ("unauthenticated", 401),
    ("identity_unavailable", 503),
    ("space_not_allowed", 403),
    ("minting_not_allowed", 403),
    ("space_access_denied", 403),
    ("space_not_found", 404),
    ("task_not_found", 404),
    ("list_incomplete", 503),
    ("cursor_gone", 410),
    ("route_not_found", 404),
    ("method_not_allowed", 405),
    ("upstream_rejected", 422),
    ("rate_limited", 429),
    ("upstream_auth_failed", 502),
    ("upstream_failed", 502),
    ("upstream_invalid_response", 502),
    ("upstream_unreachable", 502),
    ("upstream_timeout", 504),
    ("not_cached", 504),
    ("upstream_quota_exhausted", 503),
    ("upstream_unavailable", 503),
    ("overloaded", 503),
    ("internal", 500),
];

const ALWAYS: &[&str] = &[
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "date",
    "vary",
    "x-content-type-options",
    "x-request-id",
];
const ON_PAGES: &[&str] = &[
    "age",
    "cache-status",
    "content-encoding",
    "etag",
    "last-modified",
    "link",
    "ratelimit",
    "ratelimit-policy",
    "x-list-generation",
    "x-list-scope",
];
const ON_ERRORS: &[&str] = &[
    "age",
    "allow",
    "cache-status",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "www-authenticate",
    "x-list-scope",
];
/// Where CORS is configured, which `Vary: Origin` tells.
const ON_CORS: &[&str] = &[
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
];
/// Served to anybody alike.
const PUBLIC: [&str; 2] = ["/healthz", "/openapi.json"];

/// A client that changes nothing of what it receives.
pub(crate) fn http_client() -> reqwest::Client {
    let provider = rustls::crypto::ring::default_provider();
    let tls = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests' client, not the gateway's"
    )]
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .build()
        .unwrap()
}

/// A request to come; awaited, it is the checked answer.
#[derive(Clone)]
pub(crate) struct Ask {
    http: reqwest::Client,
    method: Method,
    origin: String,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Ask {
    pub(crate) fn new(http: reqwest::Client, method: &str, origin: String, path: &str) -> Self {
        Self {
            http,
            method: method.parse().unwrap(),
            origin,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    /// Authenticates with `key`, and no other.
    pub(crate) fn key(self, key: &str) -> Self {
        self.without_key()
            .header("authorization", &format!("Token {key}"))
    }

    pub(crate) fn without_key(mut self) -> Self {
        self.headers.remove(header::AUTHORIZATION);
        self
    }

    /// Adds a field; a name may be repeated.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers
            .append(name, HeaderValue::from_str(value).unwrap());
        self
    }

    pub(crate) fn cache_control(self, directives: &str) -> Self {
        self.header("cache-control", directives)
    }

    pub(crate) fn accept_encoding(self, codings: &str) -> Self {
        self.header("accept-encoding", codings)
    }

    pub(crate) fn if_none_match(self, list: &str) -> Self {
        self.header("if-none-match", list)
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it from a task of its own.
    pub(crate) fn spawn(self) -> tokio::task::JoinHandle<Answer> {
        tokio::spawn(self.into_future())
    }

    async fn send(self) -> Answer {
        let sent = self
            .http
            .request(self.method.clone(), format!("{}{}", self.origin, self.path))
            .headers(self.headers)
            .body(self.body)
            .send();
        let response = crate::gateway::patiently("an answer", sent).await.unwrap();
        let answer = Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await.unwrap(),
        };
        check(&self.method, &self.path, &answer);
        answer
    }
}

impl IntoFuture for Ask {
    type Output = Answer;
    type IntoFuture = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// An answer as it came, its body not decoded.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("a field is visible ASCII"))
    }

    /// The code of an error; empty where it is none.
    pub(crate) fn code(&self) -> String {
        if self.status < 400 {
            return String::new();
        }
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The body without its content coding.
    pub(crate) fn decoded(&self) -> Vec<u8> {
        let body = &self.body[..];
        let mut plain = Vec::new();
        match self.header("content-encoding") {
            None => plain.extend_from_slice(body),
            Some("gzip") => {
                let mut decoder = flate2::read::GzDecoder::new(body);
                decoder.read_to_end(&mut plain).unwrap();
            }
            Some("br") => {
                let mut decoder = brotli::Decompressor::new(body, 4096);
                decoder.read_to_end(&mut plain).unwrap();
            }
            Some("zstd") => plain = zstd::bulk::decompress(body, 1 << 20).unwrap(),
            Some(other) => panic!("nobody asked for {other}"),
        }
        plain
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// `Cache-Status` without its name and its `ttl`, which the clock decides.
    pub(crate) fn cache_status(&self) -> String {
        let value = self.header("cache-status").unwrap_or_default();
        let mut parts = value.split(';').map(str::trim);
        assert_eq!(parts.next(), Some("unpod-gateway"), "{value}");
        let told: Vec<&str> = parts.filter(|part| !part.starts_with("ttl=")).collect();
        told.join("; ")
    }

    /// Asserts that it is the error `code`, with that code's status.
    #[track_caller]
    pub(crate) fn assert_error(&self, code: &str) {
        assert_eq!(self.code(), code, "{} {:?}", self.status, self.body);
    }

    /// Asserts that it is a whole page with these bytes.
    #[track_caller]
    pub(crate) fn assert_page(&self, body: &[u8]) {
        assert_eq!(self.status, 200, "{:?}", self.body);
        assert!(
            self.body == body,
            "another page: {} bytes in place of {}",
            self.body.len(),
            body.len()
        );
    }
}

/// What holds for every answer of the data listener.
#[track_caller]
pub(crate) fn check(method: &Method, path: &str, answer: &Answer) {
    let context = format!("{method} {path}: {} {:?}", answer.status, answer.headers);
    assert_ne!(answer.status, 206, "{context}");
    let id = answer.header("x-request-id").expect(&context);
    assert!((1..=64).contains(&id.len()), "{context}");
    assert_eq!(
        answer.header("x-content-type-options"),
        Some("nosniff"),
        "{context}"
    );
    let is_error = answer.status >= 400;
    let rest = if is_error { ON_ERRORS } else { ON_PAGES };
    let vary = answer.header("vary").unwrap_or_default();
    let cors = if vary.contains("Origin") {
        ON_CORS
    } else {
        &[]
    };
    for name in answer.headers.keys().map(HeaderName::as_str) {
        assert!(
            ALWAYS.contains(&name) || rest.contains(&name) || cors.contains(&name),
            "{name} is no field of ours: {context}"
        );
        assert_eq!(answer.headers.get_all(name).iter().count(), 1, "{context}");
    }
    assert_eq!(
        answer.header("ratelimit").is_some(),
        answer.header("ratelimit-policy").is_some(),
        "{context}"
    );
    let public = PUBLIC.contains(&path.split('?').next().unwrap_or_default());
    if !public || is_error {
        check_privacy(answer, &context);
    }
    match answer.status {
        200 => assert!(answer.header("content-length").is_some(), "{context}"),
        204 => check_preflight(method, answer, &context),
        304 => check_not_modified(answer, &context),
        _ => check_error(method, answer, id, &context),
    }
    if *method == Method::HEAD {
        assert!(answer.body.is_empty(), "{context}");
    }
}

fn check_privacy(answer: &Answer, context: &str) {
    let cache_control = answer.header("cache-control").expect(context);
    let is_private = cache_control.starts_with("private") || cache_control == "no-store";
    assert!(is_private, "{context}");
    let vary = answer.header("vary").expect(context);
    assert!(vary.contains("Authorization"), "{context}");
}

/// RFC 9110 section 15.4.5: no body, and no length but that of the page.
fn check_not_modified(answer: &Answer, context: &str) {
    assert!(answer.body.is_empty(), "{context}");
    assert!(answer.header("etag").is_some(), "{context}");
    for name in ["content-length", "content-type", "content-encoding"] {
        assert_eq!(answer.header(name), None, "{context}");
    }
}

fn check_preflight(method: &Method, answer: &Answer, context: &str) {
    assert_eq!(*method, Method::OPTIONS, "{context}");
    assert!(answer.body.is_empty(), "{context}");
    for name in ["content-length", "content-type", "etag", "cache-status"] {
        assert_eq!(answer.header(name), None, "{context}");
    }
}

fn check_error(method: &Method, answer: &Answer, id: &str, context: &str) {
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json"),
        "{context}"
    );
    assert_eq!(
        answer.header("cache-control"),
        Some("no-store"),
        "{context}"
    );
    if *method == Method::HEAD {
        return;
    }
    let body = answer.json();
    let members = body.as_object().expect(context);
    let mut names: Vec<&str> = members.keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected = [
        "code",
        "data",
        "detail",
        "message",
        "request_id",
        "status",
        "status_code",
        "title",
        "type",
    ];
    assert_eq!(names, expected, "{context}");
    let code = body["code"].as_str().expect(context);
    assert!(CODES.contains(&(code, answer.status)), "{code}: {context}");
    assert_eq!(body["type"], format!("/problems/{code}"), "{context}");
    assert_eq!(body["status"], answer.status, "{context}");
    assert_eq!(body["status_code"], answer.status, "{context}");
    assert_eq!(body["request_id"], id, "{context}");
    let data: Vec<_> = body["data"].as_object().expect(context).keys().collect();
    let expected: &[&str] = match code {
        "cursor_gone" => &["cursor", "reason"],
        _ => &[],
    };
    assert_eq!(data, expected, "{context}");
    for text in ["title", "detail", "message"] {
        assert!(
            body[text].as_str().is_some_and(|text| !text.is_empty()),
            "{context}"
        );
    }
    // Only what is remembered has an age.
    let remembered = answer.header("cache-status");
    assert!(
        answer.header("age").is_none() || remembered.is_some_and(|told| told.contains("hit")),
        "{context}"
    );
    let waits = matches!(answer.status, 429 | 503);
    assert_eq!(answer.header("retry-after").is_some(), waits, "{context}");
    let asks_who = answer.status == 401;
    let challenge = asks_who.then_some("Token, Bearer");
    assert_eq!(answer.header("www-authenticate"), challenge, "{context}");
}
