//! The requests that clients send, and the responses they accept.

use std::io::Read;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use tokio::time::Instant;
use unpod_gateway::simulator::{SplitMix64, world};

use crate::{
    client::Answer,
    truth::{Key, Truth, any_key},
};

/// Reads every space.
pub(crate) const READER: &str = "soak-reader";
/// Reads every space and may refresh.
pub(crate) const REFRESHER: &str = "soak-refresher";
/// Reads only the archive.
pub(crate) const NARROW: &str = "soak-narrow";
/// An unknown key.
pub(crate) const STRANGER: &str = "soak-stranger";

/// The errors that a failing upstream may cause.
const FAILURES: [(&str, u16); 9] = [
    ("upstream_auth_failed", 502),
    ("upstream_failed", 502),
    ("upstream_invalid_response", 502),
    ("upstream_unreachable", 502),
    ("upstream_timeout", 504),
    ("upstream_quota_exhausted", 503),
    ("upstream_unavailable", 503),
    ("overloaded", 503),
    // One of the simulator's faults reports a 404 in the body of a 200.
    ("space_not_found", 404),
];
/// Further statuses that a request may get.
const NOT_CACHED: (&str, u16) = ("not_cached", 504);
const ACCESS_DENIED: (&str, u16) = ("space_access_denied", 403);
const SPACE_NOT_ALLOWED: (&str, u16) = ("space_not_allowed", 403);
const STRANGERS: [(&str, u16); 2] = [("unauthenticated", 401), ("rate_limited", 429)];
const BAD_QUERY: [(&str, u16); 2] = [("invalid_parameter", 400), ("unknown_parameter", 400)];

/// A variant of a request for an existing page.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Plain,
    /// With the ETag of an earlier response.
    Conditional,
    Gzip,
    Head,
    NoCache,
    MaxStale,
    OnlyIfCached,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Page(Key, Manner),
    /// Its first page contains a task that makes it fail.
    Poisoned,
    UnknownSpace,
    ForeignSpace,
    Stranger,
    Forbidden,
    BadQuery,
}

/// A request and the check of its response.
pub(crate) struct Ask {
    kind: Kind,
    id: String,
    tag: Option<String>,
    /// The header with which a proxy reports the client.
    forwarded: Vec<(&'static str, String)>,
    asked: Instant,
}

impl Ask {
    /// A random request. `tag` is the ETag of the client's last response for its page.
    pub(crate) fn draw(random: &mut SplitMix64, id: String, tag: Option<&(Key, String)>) -> Self {
        let key = any_key(random);
        let page = |manner| Kind::Page(key, manner);
        let kind = match random.below(100) {
            0..=49 => page(Manner::Plain),
            50..=59 => page(Manner::Gzip),
            60..=69 => tag.map_or(page(Manner::Plain), |(key, _)| {
                Kind::Page(*key, Manner::Conditional)
            }),
            70..=74 => page(Manner::Head),
            75..=76 => page(Manner::NoCache),
            77..=80 => page(Manner::MaxStale),
            81..=85 => page(Manner::OnlyIfCached),
            86..=88 => Kind::Poisoned,
            89..=91 => Kind::UnknownSpace,
            92..=94 => Kind::ForeignSpace,
            95 => Kind::Stranger,
            96..=97 => Kind::Forbidden,
            _ => Kind::BadQuery,
        };
        Self::of(kind, id, tag)
    }

    /// A plain request for a page.
    pub(crate) fn plain(key: Key, id: String) -> Self {
        Self::of(Kind::Page(key, Manner::Plain), id, None)
    }

    /// A request with an unknown key.
    pub(crate) fn as_stranger(id: String) -> Self {
        Self::of(Kind::Stranger, id, None)
    }

    fn of(kind: Kind, id: String, tag: Option<&(Key, String)>) -> Self {
        let is_conditional = matches!(kind, Kind::Page(_, Manner::Conditional));
        Self {
            kind,
            id,
            tag: tag.filter(|_| is_conditional).map(|(_, tag)| tag.clone()),
            forwarded: Vec::new(),
            asked: Instant::now(),
        }
    }

    /// The same through a proxy.
    pub(crate) fn forwarded(self, forwarded: Vec<(&'static str, String)>) -> Self {
        Self { forwarded, ..self }
    }

    /// The page, if an existing one is requested.
    pub(crate) fn key(&self) -> Option<Key> {
        match self.kind {
            Kind::Page(key, _) => Some(key),
            Kind::Poisoned
            | Kind::UnknownSpace
            | Kind::ForeignSpace
            | Kind::Stranger
            | Kind::Forbidden
            | Kind::BadQuery => None,
        }
    }

    fn path(&self) -> String {
        let tasks = |space: &str| format!("/spaces/{space}/tasks");
        match self.kind {
            Kind::Page(Key { space, page, size }, _) => {
                format!("/spaces/{space}/tasks?page={page}&page_size={size}")
            }
            Kind::Poisoned => tasks(world::POISON),
            Kind::UnknownSpace => tasks(world::UNKNOWN_SPACE),
            Kind::ForeignSpace => tasks(world::GLOBEX_SPACE),
            Kind::Stranger | Kind::Forbidden => tasks(world::SUPPORT),
            Kind::BadQuery => tasks(world::SUPPORT) + "?page=0&space_id=8",
        }
    }

    fn api_key(&self) -> &'static str {
        match self.kind {
            Kind::Page(_, Manner::NoCache) => REFRESHER,
            Kind::Stranger => STRANGER,
            Kind::Forbidden => NARROW,
            Kind::Page(..)
            | Kind::Poisoned
            | Kind::UnknownSpace
            | Kind::ForeignSpace
            | Kind::BadQuery => READER,
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("host", "gateway".to_owned()),
            ("authorization", format!("Token {}", self.api_key())),
            ("x-request-id", self.id.clone()),
        ];
        lines.extend(self.forwarded.iter().cloned());
        if let Kind::Page(_, manner) = self.kind {
            let line = match manner {
                Manner::Plain | Manner::Head => None,
                Manner::Conditional => self.tag.clone().map(|tag| ("if-none-match", tag)),
                Manner::Gzip => Some(("accept-encoding", "gzip".to_owned())),
                Manner::NoCache => Some(("cache-control", "no-cache".to_owned())),
                Manner::MaxStale => Some(("cache-control", "max-stale=2".to_owned())),
                Manner::OnlyIfCached => Some(("cache-control", "only-if-cached".to_owned())),
            };
            lines.extend(line);
        }
        lines
    }

    fn method(&self) -> &'static str {
        if matches!(self.kind, Kind::Page(_, Manner::Head)) {
            "HEAD"
        } else {
            "GET"
        }
    }

    pub(crate) fn request(&self) -> Request<Empty<Bytes>> {
        let request = Request::builder().method(self.method()).uri(self.path());
        let lines = self.lines().into_iter();
        let request = lines.fold(request, |request, (name, value)| {
            request.header(name, value)
        });
        request
            .body(Empty::new())
            .expect("a path and plain fields make a request")
    }

    /// The same in bytes.
    pub(crate) fn text(&self) -> String {
        let lines = self.lines().into_iter();
        let lines: String = lines
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        format!("{} {} HTTP/1.1\r\n{lines}\r\n", self.method(), self.path())
    }

    /// Checks a response; returns the name to count it by.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub(crate) fn judge(&self, answer: &Answer, truth: &Truth) -> Result<String, String> {
        if answer.header("x-request-id") != self.id {
            return Err("it answers another request".to_owned());
        }
        match (answer.status, self.kind) {
            (200, Kind::Page(key, Manner::Head)) => {
                self.judge_age(key, answer, truth)?;
                judge_length(key, answer, truth)?;
            }
            (200, Kind::Page(key, _)) => {
                self.judge_age(key, answer, truth)?;
                judge_page(key, answer, truth)?;
            }
            (304, Kind::Page(key, Manner::Conditional)) => {
                self.judge_age(key, answer, truth)?;
                self.judge_unchanged(answer)?;
            }
            (400.., _) => return self.judge_error(answer),
            _ => return Err("this status was not to come".to_owned()),
        }
        let told = answer.header("cache-status").split("; ");
        let manner: Vec<&str> = told
            .skip(1)
            .filter(|part| !part.starts_with("ttl="))
            .collect();
        if manner.is_empty() {
            return Err("no Cache-Status".to_owned());
        }
        Ok(format!("{} {}", answer.status, manner.join("; ")))
    }

    /// Purged pages and pages that are too old must not be served.
    fn judge_age(&self, key: Key, answer: &Answer, truth: &Truth) -> Result<(), String> {
        let age: u64 = answer.header("age").parse().unwrap_or(0);
        let most = truth.most_age(key.space, self.asked);
        // Ages are rounded at both ends, since `Date` has whole seconds.
        if age > most.as_secs() + 1 {
            return Err(format!(
                "older than {most:?}, by a purge or by its lifetime"
            ));
        }
        Ok(())
    }

    fn judge_unchanged(&self, answer: &Answer) -> Result<(), String> {
        let same = self.tag.as_deref() == Some(answer.header("etag"));
        if same && answer.body.is_empty() {
            Ok(())
        } else {
            Err("304 for another tag, or with a body".to_owned())
        }
    }

    fn judge_error(&self, answer: &Answer) -> Result<String, String> {
        let is_allowed = |code: &str| {
            let known = (code, answer.status);
            match self.kind {
                Kind::Page(_, Manner::OnlyIfCached) if known == NOT_CACHED => true,
                Kind::ForeignSpace if known == ACCESS_DENIED => true,
                Kind::Page(..) | Kind::Poisoned | Kind::UnknownSpace | Kind::ForeignSpace => {
                    FAILURES.contains(&known)
                }
                Kind::Stranger => STRANGERS.contains(&known),
                Kind::Forbidden => known == SPACE_NOT_ALLOWED,
                Kind::BadQuery => BAD_QUERY.contains(&known),
            }
        };
        if answer.header("content-type") != "application/problem+json" {
            return Err("an error that is no problem document".to_owned());
        }
        let waits = matches!(answer.status, 429 | 503);
        if waits == answer.header("retry-after").is_empty() {
            return Err("Retry-After is missing, or out of place".to_owned());
        }
        if self.method() == "HEAD" {
            return Ok(format!("{} to HEAD", answer.status));
        }
        let body: serde_json::Value =
            serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        let code = body["code"].as_str().unwrap_or_default();
        if body["status"] != answer.status || body["request_id"] != self.id {
            return Err("the problem document speaks of another answer".to_owned());
        }
        if !is_allowed(code) {
            return Err("this error was not to come".to_owned());
        }
        Ok(code.to_owned())
    }

    /// Details for debugging: no keys, and only made-up spaces.
    pub(crate) fn describe(&self, answer: &Answer) -> String {
        let start = &answer.body[..answer.body.len().min(300)];
        format!(
            "{:?} {} {} tag {:?}\n  got {} {:?}\n  {} bytes: {:?}",
            self.kind,
            self.method(),
            self.path(),
            self.tag,
            answer.status,
            answer.headers,
            answer.body.len(),
            String::from_utf8_lossy(start)
        )
    }
}

fn judge_page(key: Key, answer: &Answer, truth: &Truth) -> Result<(), String> {
    let body = match answer.header("content-encoding") {
        "" => answer.body.to_vec(),
        "gzip" => inflate(&answer.body)?,
        other => return Err(format!("{other} was not asked for")),
    };
    if !truth.is_page(key, &body) {
        return Err("the page never had these bytes".to_owned());
    }
    if !truth.is_tag_of(key, answer.header("etag"), &body) {
        return Err("the tag has stood for other bytes".to_owned());
    }
    Ok(())
}

fn judge_length(key: Key, answer: &Answer, truth: &Truth) -> Result<(), String> {
    let length = answer.header("content-length").parse();
    let known = length.is_ok_and(|length| truth.is_length(key, length));
    if known && answer.body.is_empty() {
        Ok(())
    } else {
        Err("the page never was that long, or HEAD has a body".to_owned())
    }
}

fn inflate(coded: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let read = flate2::read::GzDecoder::new(coded).read_to_end(&mut body);
    read.map(|_| body)
        .map_err(|error| format!("no gzip: {error}"))
}
