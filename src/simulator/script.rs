//! Canned answers: what a test wants on the wire, whatever the world would say.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{answer::Answer, body::Body};

/// One canned answer: no header but its own, `Date` and the framing.
#[derive(Clone, Debug)]
pub struct Scripted {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    chunked: bool,
}

impl Scripted {
    /// Returns an answer that is sent with its true `Content-Length`.
    ///
    /// # Panics
    ///
    /// Panics if `status` is not within 100 to 999.
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::from_u16(status).expect("a status lies within 100 to 999"),
            headers: HeaderMap::new(),
            body: body.into(),
            chunked: false,
        }
    }

    /// Returns an answer of `application/json`.
    ///
    /// # Panics
    ///
    /// Panics if `status` is not within 100 to 999.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self::new(status, body).header("content-type", "application/json")
    }

    /// Adds a header; a name may be repeated. A `Content-Length` beyond the body's cuts the answer short.
    ///
    /// # Panics
    ///
    /// Panics if `name` or `value` cannot stand in a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        let value = HeaderValue::from_str(value).expect("a header value");
        self.headers.append(name, value);
        self
    }

    /// Sends the body in chunks, without a `Content-Length`.
    #[must_use]
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    fn promises_more(&self) -> bool {
        let promised = self.headers.get(header::CONTENT_LENGTH);
        promised.is_some_and(|length| length.as_bytes() != self.body.len().to_string().as_bytes())
    }

    pub(super) fn into_answer(self) -> Answer {
        let body = if self.promises_more() {
            Body::cut(self.body)
        } else if self.chunked {
            Body::chunked(self.body)
        } else {
            Body::whole(self.body)
        };
        Answer {
            status: self.status,
            headers: self.headers,
            body,
        }
    }
}

/// The canned answers still to be given, by space token.
#[derive(Debug, Default)]
pub(super) struct Scripts(BTreeMap<String, VecDeque<Scripted>>);

impl Scripts {
    pub(super) fn set(&mut self, space: &str, answers: Vec<Scripted>) {
        self.0.insert(space.to_owned(), answers.into());
    }

    /// Returns the next answer for `space`; the last one repeats.
    pub(super) fn next(&mut self, space: &str) -> Option<Scripted> {
        let answers = self.0.get_mut(space)?;
        if answers.len() > 1 {
            return answers.pop_front();
        }
        answers.front().cloned()
    }
}
