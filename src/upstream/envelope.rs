//! The wire form of a page of rows: where `count`, `status_code`, `message` and the rows lie in the upstream's bytes.

use std::str;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::InvalidAnswer;
use crate::domain::{
    ListPage, Row,
    json::{elements, offset},
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

/// An answer's JSON as it lies in its bytes. Of two members that are called alike nobody knows which is meant: that is an error.
#[derive(Default, Deserialize)]
pub(super) struct Reading<'a> {
    #[serde(borrow)]
    status_code: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    errors: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    count: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// Reads `body` as a JSON object.
///
/// # Errors
///
/// Returns where it is none.
pub(super) fn read(body: &[u8]) -> Result<Reading<'_>, InvalidAnswer> {
    let text = str::from_utf8(body).map_err(|error| not_json(body, error.valid_up_to()))?;
    let object = text.trim_ascii_start();
    // serde would take the elements of an array for the members.
    if !object.starts_with('{') {
        return Err(not_json(body, text.len() - object.len()));
    }
    serde_json::from_str(text).map_err(|error| InvalidAnswer::Json {
        line: error.line(),
        column: error.column(),
    })
}

impl Reading<'_> {
    /// What the answer says of itself.
    pub(super) fn envelope(&self) -> Envelope {
        // serde would take the elements of an array for the members.
        let is_object = |error: &&RawValue| error.get().starts_with('{');
        let error = self.error.filter(is_object).and_then(value);
        let ErrorObject { code, message } = error.unwrap_or_default();
        let own_message = self.message.and_then(value);
        Envelope {
            status_code: self.status_code.and_then(value),
            message: own_message.or_else(|| Some(message?.as_str()?.to_owned())),
            errors: self.errors.map(|errors| errors.get().to_owned()),
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
        let rows = self.data.and_then(|data| elements(data.get()).ok());
        let rows = rows.ok_or(InvalidAnswer::NoData)?;
        if u32::try_from(body.len()).is_err() {
            return Err(InvalidAnswer::TooLarge(u32::MAX as usize));
        }
        let count = self.count.and_then(value).ok_or(InvalidAnswer::NoCount)?;
        Ok(ListPage {
            gzip: None,
            body: body.clone(),
            count,
            rows: rows.into_iter().map(|row| row_of(body, row)).collect(),
        })
    }
}

/// Where `row` lies in `body`.
fn row_of(body: &[u8], row: &str) -> Row {
    let start = offset(body, row);
    // Of a body in which it would be wrong no page is made.
    let place = |at| u32::try_from(at).unwrap_or(u32::MAX);
    Row {
        span: place(start)..place(start + row.len()),
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

/// A value of the type that is wanted; one of another says as much as none.
fn value<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
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
            r#"["rate_limit_exceeded","m"]"#,
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
