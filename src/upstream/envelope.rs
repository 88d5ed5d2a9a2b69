//! The wire form of a page of rows: where `count`, `status_code`, `message` and the rows lie in the upstream's bytes.

use std::{borrow::Cow, ops::Range, str};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::InvalidAnswer;
use crate::domain::{
    ListPage, Row,
    json::{NotJson, Scanner, text},
};

/// What an answer says of itself, page or not. Values of a wrong type count as absent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Envelope {
    pub status_code: Option<u64>,
    pub message: Option<String>,
    /// The raw JSON of `errors`: what an inner service answered. For rules only; never shown or logged.
    pub errors: Option<String>,
    /// `code` of an `error` object: a dialect without `status_code`.
    pub error_code: Option<String>,
}

/// The `error` of that dialect.
#[derive(Default, Deserialize)]
struct ErrorObject {
    code: Option<Value>,
    message: Option<Value>,
}

/// An answer's JSON as it lies in its bytes.
#[derive(Default)]
pub(super) struct Reading<'a> {
    status_code: Option<&'a str>,
    message: Option<&'a str>,
    errors: Option<&'a str>,
    error: Option<&'a str>,
    count: Option<&'a str>,
    data: Option<Data>,
}

/// The value of `data`.
enum Data {
    Array(Vec<Row>),
    Other,
}

/// Reads `body` as a JSON object, once: a page is too long to be gone through for its rows anew.
///
/// # Errors
///
/// Returns where it is none.
pub(super) fn read(body: &[u8]) -> Result<Reading<'_>, InvalidAnswer> {
    let read = str::from_utf8(body).map_err(|error| error.valid_up_to());
    let read = read.and_then(|text| Reading::of(text).map_err(|NotJson { at }| at));
    read.map_err(|at| not_json(body, at))
}

impl<'a> Reading<'a> {
    fn of(text: &'a str) -> Result<Self, NotJson> {
        let mut reading = Self::default();
        let mut scanner = Scanner::new(text);
        scanner.members(|scanner, name| {
            let value = match &*name {
                "data" => return read_once(&mut reading.data, scanner, Data::read),
                "status_code" => &mut reading.status_code,
                "message" => &mut reading.message,
                "errors" => &mut reading.errors,
                "error" => &mut reading.error,
                "count" => &mut reading.count,
                _ => return scanner.value().map(drop),
            };
            read_once(value, scanner, Scanner::value)
        })?;
        scanner.end()?;
        Ok(reading)
    }

    /// What the answer says of itself.
    pub(super) fn envelope(&self) -> Envelope {
        let error = self
            .error
            .and_then(|error| serde_json::from_str(error).ok());
        let ErrorObject { code, message } = error.unwrap_or_default();
        let own_message = self.message.and_then(text).map(Cow::into_owned);
        Envelope {
            status_code: self.status_code.and_then(integer),
            message: own_message.or_else(|| Some(message?.as_str()?.to_owned())),
            errors: self.errors.and_then(present).map(str::to_owned),
            error_code: code.and_then(|code| match code {
                Value::String(code) => Some(code),
                Value::Number(code) => Some(code.to_string()),
                _ => None,
            }),
        }
    }

    /// The page that the answer is; its bytes are those of `body`, which it was read from.
    ///
    /// # Errors
    ///
    /// Returns in which way it is no page.
    pub(super) fn page(self, body: &Bytes) -> Result<ListPage, InvalidAnswer> {
        let Some(Data::Array(rows)) = self.data else {
            return Err(InvalidAnswer::NoData);
        };
        if u32::try_from(body.len()).is_err() {
            return Err(InvalidAnswer::TooLarge(u32::MAX as usize));
        }
        let count = self.count.and_then(integer).ok_or(InvalidAnswer::NoCount)?;
        Ok(ListPage {
            body: body.clone(),
            count,
            rows: rows.into(),
        })
    }
}

/// Finds the rows of a page in its bytes, without copying or rebuilding them.
///
/// # Errors
///
/// Returns in which way the bytes are no page.
pub fn read_page(body: &Bytes) -> Result<ListPage, InvalidAnswer> {
    read(body)?.page(body)
}

impl Data {
    fn read(scanner: &mut Scanner<'_>) -> Result<Self, NotJson> {
        if scanner.peek()? != b'[' {
            scanner.value()?;
            return Ok(Self::Other);
        }
        let mut rows = Vec::new();
        scanner.elements(|scanner| {
            let Range { start, end } = scanner.span()?;
            // Of a body in which it would be wrong no page is made.
            let place = |at| u32::try_from(at).unwrap_or(u32::MAX);
            rows.push(Row {
                span: place(start)..place(end),
            });
            Ok(())
        })?;
        Ok(Self::Array(rows))
    }
}

/// Reads a member into its place, which must be empty: of two that are called alike nobody knows which is meant.
fn read_once<'a, T>(
    place: &mut Option<T>,
    scanner: &mut Scanner<'a>,
    read: impl FnOnce(&mut Scanner<'a>) -> Result<T, NotJson>,
) -> Result<(), NotJson> {
    if place.is_some() {
        return Err(scanner.here());
    }
    *place = Some(read(scanner)?);
    Ok(())
}

/// A value, but for null, which says as much as none.
fn present(value: &str) -> Option<&str> {
    (value != "null").then_some(value)
}

fn integer(value: &str) -> Option<u64> {
    serde_json::from_str(value).ok()
}

fn not_json(body: &[u8], at: usize) -> InvalidAnswer {
    let read = &body[..at.min(body.len())];
    let lines = read.iter().filter(|byte| **byte == b'\n').count();
    let of_line = read.rsplit(|byte| *byte == b'\n').next();
    InvalidAnswer::Json {
        line: lines + 1,
        column: of_line.map_or(0, <[u8]>::len) + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(body: &'static str) -> Result<ListPage, InvalidAnswer> {
        read_page(&Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn each_task_is_found_in_the_bytes_as_it_stands() {
        let body = r#"{"count":9007199254740993,"status_code":200,"message":"ok","data":[ {"task_id":"a","n":1e+22,"":-0.0} ,{"status":"failed","task_id":7,"dotted.key":null},null]}"#;
        let page = page(body).unwrap();
        let id = |place: usize| page.text_of(&page.rows[place], "task_id");
        let status = |place: usize| page.text_of(&page.rows[place], "status");
        let texts: Vec<&str> = page
            .rows
            .iter()
            .map(|task| &body[task.span.start as usize..task.span.end as usize])
            .collect();
        assert_eq!(
            texts,
            [
                r#"{"task_id":"a","n":1e+22,"":-0.0}"#,
                r#"{"status":"failed","task_id":7,"dotted.key":null}"#,
                "null"
            ]
        );
        assert_eq!(page.count, 9_007_199_254_740_993);
        assert_eq!(id(0).as_deref(), Some("a"));
        assert_eq!(id(1), None);
        assert_eq!(status(1).as_deref(), Some("failed"));
        assert_eq!((id(2), status(2)), (None, None));
    }

    #[test]
    fn what_is_no_page_is_told_apart() {
        let json = |body| matches!(page(body), Err(InvalidAnswer::Json { .. }));
        for body in [
            "",
            "{",
            r#"{"count":1,"data":[{}]"#,
            r#"{"count":1,"data":[]} trailing"#,
            "[]",
            "null",
            "<html>",
            "\u{feff}{\"count\":0,\"data\":[]}",
            r#"{"count":1,"count":2,"data":[]}"#,
        ] {
            assert!(json(body), "{body}");
        }
        for body in [
            r#"{"count":1}"#,
            r#"{"count":1,"data":null}"#,
            r#"{"count":1,"data":{}}"#,
            r#"{"count":1,"data":"[]"}"#,
            r#"{"count":1,"data":-1.5}"#,
            r#"{"data":{"a":[1]},"count":1}"#,
            r#"{"data":true}"#,
        ] {
            assert!(matches!(page(body), Err(InvalidAnswer::NoData)), "{body}");
        }
        for body in [
            r#"{"data":[]}"#,
            r#"{"count":null,"data":[]}"#,
            r#"{"count":"1","data":[]}"#,
            r#"{"count":1.5,"data":[]}"#,
            r#"{"count":-1,"data":[]}"#,
            r#"{"count":[[1]],"data":[]}"#,
        ] {
            assert!(matches!(page(body), Err(InvalidAnswer::NoCount)), "{body}");
        }
    }

    #[test]
    fn where_it_is_wrong_is_told_by_line_and_column() {
        for (body, place) in [
            (&b"<html>"[..], (1, 1)),
            (b"{\n \"count\": 01}", (2, 12)),
            (b"{\"count\":0,\n\n\"data\":[\"\xff\"]}", (3, 10)),
            (b"{\"other\":\"\xff\",\"count\":0,\"data\":[]}", (1, 11)),
            (b"{\"data\":[]}\n}", (2, 1)),
            (b"", (1, 1)),
        ] {
            let Err(InvalidAnswer::Json { line, column }) = read_page(&Bytes::from_static(body))
            else {
                panic!("{body:?} is JSON");
            };
            assert_eq!((line, column), place, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn an_envelope_of_wrong_types_is_read_as_far_as_it_goes() {
        let read = |body: &str| Some(read(body.as_bytes()).ok()?.envelope());
        assert_eq!(read("[1]"), None);
        assert_eq!(
            read(r#"{"status_code":"404","message":["x"],"data":1}"#),
            Some(Envelope::default())
        );
        assert_eq!(
            read(r#"{"status_code":206,"message":"m","errors":{"a":1}}"#),
            Some(Envelope {
                status_code: Some(206),
                message: Some("m".to_owned()),
                errors: Some(r#"{"a":1}"#.to_owned()),
                error_code: None,
            })
        );
        let dialect = |code: &str, message: &str| {
            Some(Envelope {
                error_code: Some(code.to_owned()),
                message: Some(message.to_owned()),
                ..Envelope::default()
            })
        };
        assert_eq!(
            read(r#"{"error":{"code":"rate_limit_exceeded","message":"m"}}"#),
            dialect("rate_limit_exceeded", "m")
        );
        assert_eq!(
            read(r#"{"error":{"code":429,"message":"m"},"message":"own"}"#),
            dialect("429", "own")
        );
        for nothing in [
            r#""Expired Auth Token""#,
            "null",
            "[]",
            r#"{"code":{}}"#,
            "7",
        ] {
            let body = format!(r#"{{"error":{nothing}}}"#);
            assert_eq!(read(&body), Some(Envelope::default()), "{body}");
        }
    }

    #[test]
    fn deep_nesting_is_no_stack_overflow() {
        let deep = format!(
            r#"{{"count":0,"data":[{}{}]}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        // Whether it is taken or refused, the process lives.
        let _ = read_page(&Bytes::from(deep)).is_ok();
    }
}
