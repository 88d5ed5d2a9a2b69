//! The access log: one line a request, whatever became of it.
//!
//! JSON lines are serialized straight into the log's buffer: as an event, whose fields are visited one by one, a line costs several times
//! as much. Elsewhere the line is an event.

use std::{
    cell::RefCell,
    fmt::{self, Display},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use http::Method;
use opentelemetry::trace::TraceId;
use serde::{Serialize, Serializer};
use tracing::{Level, field, info};

use super::lines::Lines;

/// What the log's filter knows the lines by.
const TARGET: &str = "unpod_gateway::access";
const MESSAGE: &str = "request";
/// The longest registered method has 17 letters.
const LONGEST_METHOD: usize = 32;

/// Where the line of each request goes.
#[derive(Clone, Debug)]
pub enum AccessLog {
    Off,
    /// To the process's subscriber.
    Events,
    Json(Lines),
    /// To whom wants to see each request as it ends: the demo.
    Told(Told),
}

/// Sees each request as it ends.
#[derive(Clone)]
pub struct Told(Arc<dyn Fn(&Request<'_>) + Send + Sync>);

impl Told {
    pub fn new(tell: impl Fn(&Request<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

/// How a request ended, as far as it came; what does not apply is left out.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Request<'a> {
    #[serde(rename = "request.id")]
    pub id: &'a str,
    #[serde(rename = "request.method", serialize_with = "cut")]
    pub method: &'a Method,
    #[serde(rename = "request.route")]
    pub route: &'static str,
    #[serde(rename = "trace.id", serialize_with = "displayed")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<TraceId>,
    #[serde(rename = "peer.address", skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    #[serde(rename = "client.address", skip_serializing_if = "Option::is_none")]
    pub client_address: Option<IpAddr>,
    #[serde(rename = "client.name")]
    pub client: &'a str,
    /// Its fingerprint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space: Option<&'a str>,
    /// Which page of it is asked for, once that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u32>,
    #[serde(rename = "response.status", skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(rename = "response.code", skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// Of the body.
    #[serde(rename = "response.bytes", skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(rename = "response.duration_us")]
    pub duration_us: u64,
    #[serde(rename = "cache.outcome", skip_serializing_if = "Option::is_none")]
    pub cache: Option<&'static str>,
    #[serde(rename = "page.age_s", skip_serializing_if = "Option::is_none")]
    pub age_s: Option<u64>,
    #[serde(rename = "upstream.calls", skip_serializing_if = "Option::is_none")]
    pub upstream_calls: Option<u32>,
}

/// A request's line, in the form of every other one.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(serialize_with = "displayed")]
    timestamp: Option<humantime::Rfc3339Timestamp>,
    level: &'static str,
    message: &'static str,
    #[serde(flatten)]
    request: &'a Request<'a>,
    target: &'static str,
}

thread_local! {
    /// Keeps its memory from line to line.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl AccessLog {
    /// Writes the line of `request`, where the filter lets it through.
    pub fn write(&self, request: &Request<'_>) {
        match self {
            Self::Off => {}
            Self::Events => request.event(),
            Self::Json(lines) => {
                if tracing::enabled!(target: TARGET, Level::INFO) {
                    request.with_json(lines.prefix(Level::INFO), |line| lines.push(line));
                }
            }
            Self::Told(Told(tell)) => tell(request),
        }
    }
}

impl Request<'_> {
    /// Has `take` take it as a line of JSON after `prefix`.
    fn with_json<R>(&self, prefix: &str, take: impl FnOnce(&[u8]) -> R) -> R {
        let line = Line {
            timestamp: Some(humantime::format_rfc3339_micros(SystemTime::now())),
            level: "INFO",
            message: MESSAGE,
            request: self,
            target: TARGET,
        };
        LINE.with_borrow_mut(|bytes| {
            bytes.clear();
            bytes.extend_from_slice(prefix.as_bytes());
            serde_json::to_writer(&mut *bytes, &line).expect("texts and numbers are JSON");
            bytes.push(b'\n');
            take(bytes)
        })
    }

    fn event(&self) {
        info!(
            target: TARGET,
            {
                request.id = self.id,
                request.method = shortened(self.method),
                request.route = self.route,
                trace.id = self.trace_id.map(field::display),
                peer.address = self.peer.map(field::display),
                client.address = self.client_address.map(field::display),
                client.name = self.client,
                space = self.space,
                page = self.page,
                page_size = self.page_size,
                response.status = self.status,
                response.code = self.code,
                response.bytes = self.bytes,
                response.duration_us = self.duration_us,
                cache.outcome = self.cache,
                page.age_s = self.age_s,
                upstream.calls = self.upstream_calls
            },
            "{MESSAGE}"
        );
    }
}

/// No more of it than any registered one has: a client may make up one as long as its header may be.
fn shortened(method: &Method) -> &str {
    let method = method.as_str();
    // A method is ASCII (RFC 9110 section 9.1).
    method.get(..LONGEST_METHOD).unwrap_or(method)
}

fn cut<S: Serializer>(method: &Method, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(shortened(method))
}

fn displayed<T: Display, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use serde_json::{Value, json};

    use super::{super::tests::logged, *};

    const LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    fn request() -> Request<'static> {
        Request {
            id: "a.B-9_z",
            method: &Method::GET,
            route: "tasks",
            trace_id: Some(TraceId::from(0xabc)),
            peer: Some(Ipv4Addr::new(10, 0, 200, 9).into()),
            client_address: Some(LOCAL),
            client: "a \"b\"",
            space: Some("space-0123456789ab"),
            page: Some(7),
            page_size: Some(50),
            status: Some(200),
            code: None,
            bytes: Some(2048),
            duration_us: 17,
            cache: Some("hit"),
            age_s: Some(3),
            upstream_calls: Some(0),
        }
    }

    fn written(request: &Request<'_>) -> Value {
        request.with_json("", |line| serde_json::from_slice(line).unwrap())
    }

    #[test]
    fn a_line_tells_what_applies() {
        let mut line = written(&request());
        let time = line["timestamp"].take();
        assert!(humantime::parse_rfc3339(time.as_str().unwrap()).is_ok());
        let expected = json!({
            "timestamp": null, "level": "INFO", "message": "request", "target": "unpod_gateway::access",
            "request.id": "a.B-9_z", "request.method": "GET", "request.route": "tasks",
            "trace.id": "00000000000000000000000000000abc",
            "peer.address": "10.0.200.9", "client.address": "::1", "client.name": "a \"b\"",
            "space": "space-0123456789ab", "page": 7, "page_size": 50,
            "response.status": 200, "response.bytes": 2048, "response.duration_us": 17,
            "cache.outcome": "hit", "page.age_s": 3, "upstream.calls": 0,
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_method_is_told_up_to_its_32nd_letter() {
        for length in [3, 31, 32, 33, 15_000] {
            let method = Method::from_bytes(&vec![b'M'; length]).unwrap();
            let long = Request {
                method: &method,
                ..request()
            };
            let event = logged(|| AccessLog::Events.write(&long));
            let event: Value = serde_json::from_str(&event).unwrap();
            for line in [event, written(&long)] {
                let told = line["request.method"].as_str().unwrap();
                assert_eq!(told, "M".repeat(length.min(32)));
            }
        }
    }

    #[test]
    fn as_an_event_a_request_tells_the_same() {
        let whole = request();
        let cancelled = Request {
            trace_id: None,
            peer: None,
            client_address: None,
            space: None,
            page: None,
            page_size: None,
            status: None,
            code: Some("cancelled"),
            bytes: None,
            cache: None,
            age_s: None,
            upstream_calls: None,
            ..whole
        };
        for request in [whole, cancelled] {
            let event = logged(|| AccessLog::Events.write(&request));
            let mut event: Value = serde_json::from_str(&event).unwrap();
            let mut line = written(&request);
            for told in [&mut event, &mut line] {
                told["timestamp"].take();
            }
            assert_eq!(event, line);
        }
    }
}
