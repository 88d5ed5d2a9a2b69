//! The access log: one line a request, whatever became of it.
//!
//! Where the process logs as JSON the lines go past its subscriber, to the same place and in the same form: by way of an event, whose
//! fields a visitor reads one by one, a line was a quarter of what the gateway itself does for a hit.

use std::net::IpAddr;

use compact_str::{CompactString, ToCompactString};
use http::Method;
use opentelemetry::trace::TraceId;
use tracing::{Level, Metadata, field, info, metadata::Kind};
use tracing_core::callsite::DefaultCallsite;

use super::{
    json::{self, Line},
    lines::Lines,
};

/// What the log's filter knows the lines by.
const TARGET: &str = "unpod_gateway::access";
const MESSAGE: &str = "request";
/// The longest one registered has 17 letters.
const LONGEST_METHOD: usize = 32;

/// Knows what the filter says of the lines, as the site of an event does, and is told when that changes.
static SITE: DefaultCallsite = DefaultCallsite::new(&METADATA);
static METADATA: Metadata<'static> = tracing_core::metadata! {
    name: MESSAGE,
    target: TARGET,
    level: Level::INFO,
    fields: &[
        "message",
        "request.id",
        "request.method",
        "request.route",
        "trace.id",
        "peer.address",
        "client.address",
        "client.name",
        "space",
        "page",
        "page_size",
        "response.status",
        "response.code",
        "response.bytes",
        "response.duration_us",
        "cache.outcome",
        "page.age_s",
        "upstream.calls",
    ],
    callsite: &SITE,
    kind: Kind::EVENT,
};

/// How a member of this name begins behind another.
macro_rules! member {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// Where the line of each request goes.
#[derive(Clone, Debug)]
pub struct AccessLog(Sink);

#[derive(Clone, Debug)]
enum Sink {
    Off,
    /// An event, to whoever takes the process's.
    Event,
    Json(Lines),
}

/// How a request ended, as far as it came; what does not apply is left out.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Of `A-Z a-z 0-9 . _ -` alone.
    pub id: &'a str,
    pub method: &'a Method,
    pub route: &'static str,
    pub trace_id: Option<TraceId>,
    pub peer: Option<IpAddr>,
    pub client_address: Option<IpAddr>,
    pub client: &'a str,
    /// Its fingerprint.
    pub space: Option<&'a str>,
    /// Which page of it is asked for, once that is known.
    pub page: Option<u32>,
    pub page_size: Option<u32>,
    pub status: Option<u16>,
    pub code: Option<&'static str>,
    /// Of the body.
    pub bytes: Option<u64>,
    pub duration_us: u64,
    pub cache: Option<&'static str>,
    pub age_s: Option<u64>,
    pub upstream_calls: Option<u32>,
}

impl AccessLog {
    pub const OFF: Self = Self(Sink::Off);

    pub(super) const EVENTS: Self = Self(Sink::Event);

    pub(super) fn json(lines: Lines) -> Self {
        Self(Sink::Json(lines))
    }

    /// Writes the line of `request`, where the filter lets it through.
    pub fn write(&self, request: &Request<'_>) {
        match &self.0 {
            Sink::Event => request.event(),
            Sink::Json(lines) if is_wanted() => {
                json::line(
                    &METADATA,
                    |line| request.members(line),
                    |line| lines.push(line),
                );
            }
            Sink::Off | Sink::Json(_) => {}
        }
    }
}

fn is_wanted() -> bool {
    let interest = SITE.interest();
    interest.is_always()
        || (interest.is_sometimes()
            && tracing::dispatcher::get_default(|subscriber| subscriber.enabled(&METADATA)))
}

impl Request<'_> {
    /// No more of it than any method that there is has: a client may make one up as long as its header may be.
    fn method(&self) -> &str {
        let method = self.method.as_str();
        // A method is ASCII (RFC 9110 section 9.1).
        method.get(..LONGEST_METHOD).unwrap_or(method)
    }

    fn event(&self) {
        info!(
            target: TARGET,
            {
                request.id = self.id,
                request.method = self.method(),
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

    /// The same as members of an object, in the same order.
    fn members(&self, line: &mut Line) {
        let peer = self.peer.map(written);
        let client_address = if self.client_address == self.peer {
            peer.clone()
        } else {
            self.client_address.map(written)
        };
        let trace_id = self.trace_id.map(|id| id.to_compact_string());
        word(line, member!("message"), MESSAGE);
        word(line, member!("request.id"), self.id);
        // A token of RFC 9110 section 5.6.2 has neither quotes nor backslashes.
        word(line, member!("request.method"), self.method());
        word(line, member!("request.route"), self.route);
        any_word(line, member!("trace.id"), trace_id.as_deref());
        any_word(line, member!("peer.address"), peer.as_deref());
        any_word(line, member!("client.address"), client_address.as_deref());
        line.begin(member!("client.name"));
        line.string(self.client);
        any_word(line, member!("space"), self.space);
        any_number(line, member!("page"), self.page);
        any_number(line, member!("page_size"), self.page_size);
        any_number(line, member!("response.status"), self.status);
        any_word(line, member!("response.code"), self.code);
        any_number(line, member!("response.bytes"), self.bytes);
        any_number(
            line,
            member!("response.duration_us"),
            Some(self.duration_us),
        );
        any_word(line, member!("cache.outcome"), self.cache);
        any_number(line, member!("page.age_s"), self.age_s);
        any_number(line, member!("upstream.calls"), self.upstream_calls);
    }
}

/// A text that JSON takes as it is.
fn word(line: &mut Line, member: &'static str, word: &str) {
    line.begin(member);
    line.quoted(word);
}

fn any_word(line: &mut Line, member: &'static str, any: Option<&str>) {
    if let Some(text) = any {
        word(line, member, text);
    }
}

fn any_number(line: &mut Line, member: &'static str, any: Option<impl itoa::Integer>) {
    if let Some(number) = any {
        line.begin(member);
        line.number(number);
    }
}

/// An address in the log. IPv4, which most are, is written digit by digit: by way of the formatter it costs five times as much.
fn written(address: IpAddr) -> CompactString {
    let IpAddr::V4(address) = address else {
        return address.to_compact_string();
    };
    let mut text = [0; 15];
    let mut length = 0;
    let mut push = |byte| {
        text[length] = byte;
        length += 1;
    };
    for (place, octet) in address.octets().into_iter().enumerate() {
        if place > 0 {
            push(b'.');
        }
        if octet >= 100 {
            push(b'0' + octet / 100);
        }
        if octet >= 10 {
            push(b'0' + octet / 10 % 10);
        }
        push(b'0' + octet % 10);
    }
    CompactString::from_utf8(&text[..length]).expect("digits and dots are ASCII")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use serde_json::{Value, json};

    use super::{super::json::tests::logged, *};

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
        json::line(
            &METADATA,
            |line| request.members(line),
            |line| serde_json::from_str(line).unwrap(),
        )
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
            let event = logged(|| AccessLog::EVENTS.write(&long));
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
            let event = logged(|| AccessLog::EVENTS.write(&request));
            let mut event: Value = serde_json::from_str(&event).unwrap();
            let mut line = written(&request);
            for told in [&mut event, &mut line] {
                told["timestamp"].take();
            }
            assert_eq!(event, line);
        }
    }

    #[test]
    fn the_filter_knows_every_field() {
        let whole = Request {
            code: Some("code"),
            ..request()
        };
        let line = written(&whole);
        let names = line.as_object().unwrap().keys().map(String::as_str);
        let mut told: Vec<_> = names
            .filter(|name| !["timestamp", "level", "target"].contains(name))
            .collect();
        let mut known: Vec<_> = METADATA.fields().iter().map(|field| field.name()).collect();
        told.sort_unstable();
        known.sort_unstable();
        assert_eq!(told, known);
    }
}
