//! The wire form of a page of tasks: where `count`, `status_code`, `message` and the tasks lie in the upstream's bytes.

use std::{fmt, ops::Range};

use bytes::Bytes;
use compact_str::CompactString;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::InvalidAnswer;
use crate::domain::{Task, TaskPage};

/// What an answer says of itself, page or not. Values of a wrong type count as absent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Envelope {
    pub status_code: Option<u64>,
    pub message: Option<String>,
    /// The raw JSON of `errors`: what an inner service answered. For rules only; never shown or logged.
    pub errors: Option<String>,
}

/// An answer's JSON as it lies in its bytes.
#[derive(Deserialize)]
pub(super) struct Reading<'a> {
    #[serde(borrow)]
    status_code: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    errors: Option<&'a RawValue>,
    #[serde(borrow)]
    count: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<Data<'a>>,
}

/// The value of `data`. Its elements are told apart while it is skipped: a page is too long to be gone through for each.
enum Data<'a> {
    Array(Vec<&'a RawValue>),
    Other,
}

#[derive(Deserialize)]
struct TaskHead<'a> {
    #[serde(borrow)]
    task_id: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
}

/// Reads `body` as a JSON object, once.
///
/// # Errors
///
/// Returns where it is none.
pub(super) fn read(body: &[u8]) -> Result<Reading<'_>, InvalidAnswer> {
    serde_json::from_slice(body).map_err(|error| not_json(&error))
}

impl Reading<'_> {
    /// What the answer says of itself.
    pub(super) fn envelope(&self) -> Envelope {
        Envelope {
            status_code: self.status_code.and_then(value),
            message: self.message.and_then(value),
            errors: self.errors.map(|errors| errors.get().to_owned()),
        }
    }

    /// The page that the answer is; its bytes are those of `body`, which it was read from.
    ///
    /// # Errors
    ///
    /// Returns in which way it is no page.
    pub(super) fn page(&self, body: &Bytes) -> Result<TaskPage, InvalidAnswer> {
        let Some(Data::Array(elements)) = &self.data else {
            return Err(InvalidAnswer::NoData);
        };
        let count = self
            .count
            .and_then(value::<u64>)
            .ok_or(InvalidAnswer::NoCount)?;
        let tasks = elements
            .iter()
            .map(|element| read_task(body, element))
            .collect::<Option<_>>()
            .ok_or(InvalidAnswer::TooLarge(u32::MAX as usize))?;
        Ok(TaskPage {
            body: body.clone(),
            count,
            tasks,
        })
    }
}

/// Finds the tasks of a page in its bytes, without copying or rebuilding them.
///
/// # Errors
///
/// Returns in which way the bytes are no page.
pub fn read_page(body: &Bytes) -> Result<TaskPage, InvalidAnswer> {
    read(body)?.page(body)
}

impl<'de: 'a, 'a> Deserialize<'de> for Data<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Data<'de>, A::Error> {
        let mut found = Vec::new();
        while let Some(element) = elements.next_element()? {
            found.push(element);
        }
        Ok(Data::Array(found))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Data<'de>, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Data::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Data<'de>, E> {
        Ok(Data::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Data<'de>, E> {
        Ok(Data::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Data<'de>, E> {
        Ok(Data::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Data<'de>, E> {
        Ok(Data::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Data<'de>, E> {
        Ok(Data::Other)
    }
}

fn read_task(body: &[u8], element: &RawValue) -> Option<Task> {
    let head = value::<TaskHead<'_>>(element);
    let text = |raw: Option<&RawValue>| raw.and_then(value::<String>).map(CompactString::from);
    Some(Task {
        span: place(body, element.get().as_bytes())?,
        id: text(head.as_ref().and_then(|head| head.task_id)),
        status: text(head.as_ref().and_then(|head| head.status)),
    })
}

/// Where `part`, a slice of `body`, begins and ends in it.
fn place(body: &[u8], part: &[u8]) -> Option<Range<u32>> {
    let start = part.as_ptr().addr() - body.as_ptr().addr();
    let start = u32::try_from(start).ok()?;
    let length = u32::try_from(part.len()).ok()?;
    Some(start..start.checked_add(length)?)
}

fn value<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

fn not_json(error: &serde_json::Error) -> InvalidAnswer {
    InvalidAnswer::Json {
        line: error.line(),
        column: error.column(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(body: &'static str) -> Result<TaskPage, InvalidAnswer> {
        read_page(&Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn each_task_is_found_in_the_bytes_as_it_stands() {
        let body = r#"{"count":9007199254740993,"status_code":200,"message":"ok","data":[ {"task_id":"a","n":1e+22,"":-0.0} ,{"status":"failed","task_id":7,"dotted.key":null},null]}"#;
        let page = page(body).unwrap();
        let texts: Vec<&str> = page
            .tasks
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
        assert_eq!(page.tasks[0].id.as_deref(), Some("a"));
        assert_eq!(page.tasks[1].id, None);
        assert_eq!(page.tasks[1].status.as_deref(), Some("failed"));
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
            })
        );
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
