//! The access log: one line a request, whatever became of it.
//!
//! Where the process logs as JSON the lines go past its subscriber, to the same place and in the same form: by way of an event, whose
//! fields a visitor reads one by one, a line was a quarter of what the gateway itself does for a hit.

use std::{fmt::Write as _, net::IpAddr};

use compact_str::{CompactString, ToCompactString};
use opentelemetry::trace::TraceId;
use tracing::{Level, Metadata, info, metadata::Kind};
use tracing_core::callsite::DefaultCallsite;

use super::{
    json::{self, Line},
    lines::Lines,
};

/// What the log's filter knows the lines by.
const TARGET: &str = "unpod_gateway::access";
const MESSAGE: &str = "request";

/// Knows what the filter says of the lines, as the site of an event does, and is told when that changes.
static SITE: DefaultCallsite = DefaultCallsite::new(&METADATA);
static METADATA: Metadata<'static> = tracing_core::metadata! {
    name: MESSAGE,
    target: TARGET,
    level: Level::INFO,
    fields: &[],
    callsite: &SITE,
    kind: Kind::EVENT,
};

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
    pub method: &'a str,
    pub route: &'static str,
    pub trace_id: Option<TraceId>,
    pub peer: Option<IpAddr>,
    pub client_address: Option<IpAddr>,
    pub client: &'a str,
    /// The space's fingerprint.
    pub space: Option<&'a str>,
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
            Sink::Event if is_wanted() => {
                let mut words = Words(MESSAGE.to_owned());
                request.tell(&mut words);
                info!(target: TARGET, "{}", words.0);
            }
            Sink::Json(lines) if is_wanted() => {
                let members = |line: &mut Line| {
                    line.begin(name!("message").member);
                    line.quoted(MESSAGE);
                    request.tell(line);
                };
                json::line(&METADATA, members, |line| lines.push(line));
            }
            Sink::Off | Sink::Event | Sink::Json(_) => {}
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
    fn tell(&self, to: &mut impl Fields) {
        let peer = self.peer.map(written);
        let client_address = if self.client_address == self.peer {
            peer.clone()
        } else {
            self.client_address.map(written)
        };
        to.word(name!("request.id"), self.id);
        // A token of RFC 9110 section 5.6.2 has neither quotes nor backslashes.
        to.word(name!("request.method"), self.method);
        to.word(name!("request.route"), self.route);
        let trace_id = self.trace_id.map(|id| id.to_compact_string());
        to.any_word(name!("trace.id"), trace_id.as_deref());
        to.any_word(name!("peer.address"), peer.as_deref());
        to.any_word(name!("client.address"), client_address.as_deref());
        to.text(name!("client.name"), self.client);
        to.any_word(name!("space"), self.space);
        to.any_number(name!("response.status"), self.status);
        to.any_word(name!("response.code"), self.code);
        to.any_number(name!("response.bytes"), self.bytes);
        to.number(name!("response.duration_us"), self.duration_us);
        to.any_word(name!("cache.outcome"), self.cache);
        to.any_number(name!("page.age_s"), self.age_s);
        to.any_number(name!("upstream.calls"), self.upstream_calls);
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

/// A field's name, and how a member of that name begins.
#[derive(Clone, Copy)]
struct Name {
    plain: &'static str,
    member: &'static str,
}

macro_rules! name {
    ($name:literal) => {
        Name {
            plain: $name,
            member: concat!(",\"", $name, "\":"),
        }
    };
}
use name;

/// Takes the fields of a line, in their order.
trait Fields {
    /// A text that may hold anything.
    fn text(&mut self, name: Name, text: &str);

    /// One that JSON takes as it is.
    fn word(&mut self, name: Name, word: &str);

    fn number(&mut self, name: Name, number: u64);

    fn any_word(&mut self, name: Name, word: Option<&str>) {
        if let Some(word) = word {
            self.word(name, word);
        }
    }

    fn any_number(&mut self, name: Name, number: Option<impl Into<u64>>) {
        if let Some(number) = number {
            self.number(name, number.into());
        }
    }
}

impl Fields for Line {
    fn text(&mut self, name: Name, text: &str) {
        self.begin(name.member);
        self.string(text);
    }

    fn word(&mut self, name: Name, word: &str) {
        self.begin(name.member);
        self.quoted(word);
    }

    fn number(&mut self, name: Name, number: u64) {
        self.begin(name.member);
        self.number(number);
    }
}

/// A line as an event's message, written as the fields of one would be.
struct Words(String);

impl Fields for Words {
    fn text(&mut self, name: Name, text: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, " {}={text:?}", name.plain);
    }

    fn word(&mut self, name: Name, word: &str) {
        self.text(name, word);
    }

    fn number(&mut self, name: Name, number: u64) {
        let _ = write!(self.0, " {}={number}", name.plain);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const WHOLE: Request<'_> = Request {
        id: "a.B-9_z",
        method: "GET",
        route: "tasks",
        trace_id: None,
        peer: Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 200, 9))),
        client_address: Some(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)),
        client: "a \"b\"",
        space: Some("space-0123456789ab"),
        status: Some(200),
        code: None,
        bytes: Some(2048),
        duration_us: 17,
        cache: Some("hit"),
        age_s: Some(3),
        upstream_calls: Some(0),
    };

    fn told(request: &Request<'_>) -> Value {
        json::line(
            &METADATA,
            |line| request.tell(line),
            |line| serde_json::from_str(line).unwrap(),
        )
    }

    #[test]
    fn a_line_tells_what_applies() {
        let mut line = told(&WHOLE);
        let time = line["timestamp"].take();
        assert!(humantime::parse_rfc3339(time.as_str().unwrap()).is_ok());
        let expected = json!({
            "timestamp": null, "level": "INFO", "target": "unpod_gateway::access",
            "request.id": "a.B-9_z", "request.method": "GET", "request.route": "tasks",
            "peer.address": "10.0.200.9", "client.address": "::1", "client.name": "a \"b\"",
            "space": "space-0123456789ab",
            "response.status": 200, "response.bytes": 2048, "response.duration_us": 17,
            "cache.outcome": "hit", "page.age_s": 3, "upstream.calls": 0,
        });
        assert_eq!(line, expected);
        let cancelled = Request {
            status: None,
            code: Some("cancelled"),
            ..WHOLE
        };
        let line = told(&cancelled);
        assert_eq!(line["response.code"], "cancelled");
        assert_eq!(line.get("response.status"), None);
    }

    #[test]
    fn in_words_a_line_tells_the_same() {
        let mut words = Words(MESSAGE.to_owned());
        WHOLE.tell(&mut words);
        let (told, line) = (words.0, told(&WHOLE));
        for (name, value) in line.as_object().unwrap() {
            let is_own = !["timestamp", "level", "target"].contains(&name.as_str());
            assert_eq!(told.contains(&format!(" {name}={value}")), is_own, "{told}");
        }
    }
}
