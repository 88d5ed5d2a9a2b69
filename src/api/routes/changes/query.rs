//! What a request for changes asks for.

use std::time::Duration;

use axum::extract::FromRequestParts;
use http::{HeaderMap, request::Parts};
use url::form_urlencoded;

use super::accept::{Format, format};
use crate::{
    api::{ApiError, context::RequestContext, query::shown},
    config::routes::UnknownParameters,
    domain::{FieldPath, View},
    service::changes::TaskEvents,
};

const LAST_EVENT_ID: &str = "last-event-id";
const MOST_EVENTS: usize = 500;
const DEFAULT_EVENTS: usize = 100;
const LONGEST_WAIT: u64 = 30;
const MOST_FIELDS: usize = 32;
const LONGEST_FIELDS: usize = 1024;

const AFTER: (&str, &str) = ("after", "`now`, `start`, or a cursor of this space");
const TYPES: (&str, &str) = (
    "types",
    "task.created, task.updated, space.synced, space.delayed, space.reset or space.gone, joined by commas",
);
const FIELDS: (&str, &str) = (
    "fields",
    "1 to 32 dotted paths joined by commas, of at most 1 KiB",
);
const LIMIT: (&str, &str) = ("limit", "a decimal number from 1 to 500");
const WAIT: (&str, &str) = ("wait", "a decimal number of seconds from 0 to 30");

/// Which events are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Types {
    pub(super) tasks: TaskEvents,
    pub(super) synced: bool,
    pub(super) delayed: bool,
}

impl Types {
    /// An answer says by itself that all was read; a stream has to.
    fn default_of(format: Format) -> Self {
        Self {
            tasks: TaskEvents::ALL,
            synced: format == Format::EventStream,
            delayed: true,
        }
    }

    fn parse(value: &str) -> Option<Self> {
        let mut types = Self {
            tasks: TaskEvents {
                created: false,
                updated: false,
            },
            synced: false,
            delayed: false,
        };
        for name in value.split(',') {
            match name {
                "task.created" => types.tasks.created = true,
                "task.updated" => types.tasks.updated = true,
                "space.synced" => types.synced = true,
                "space.delayed" => types.delayed = true,
                // Always told: without them a client would go on as if nothing were.
                "space.reset" | "space.gone" => {}
                _ => return None,
            }
        }
        Some(types)
    }
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub(super) format: Format,
    /// `None`: from now on, as a stream may.
    pub(super) after: Option<String>,
    pub(super) types: Types,
    pub(super) fields: Option<View>,
    pub(super) limit: usize,
    pub(super) wait: Duration,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let route = &RequestContext::of(&parts.extensions).policy.route;
        let query = parts.uri.query().unwrap_or_default();
        parse(query, &parts.headers, route.unknown_parameters)
    }
}

/// Whether a request is held for long: then it counts as a stream, and not as a request in flight.
pub(in crate::api) fn is_held(query: &str, headers: &HeaderMap) -> bool {
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    let waits =
        parameters.any(|(name, value)| name == WAIT.0 && value.bytes().any(|digit| digit != b'0'));
    waits || format(headers) == Format::EventStream
}

fn parse(query: &str, headers: &HeaderMap, unknown: UnknownParameters) -> Result<Asked, ApiError> {
    let format = format(headers);
    let (mut after, mut types, mut fields, mut limit, mut wait) = (None, None, None, None, None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "after" => once(&mut after, AFTER, Some(value.into_owned()))?,
            "types" => once(&mut types, TYPES, Types::parse(&value))?,
            "fields" => once(&mut fields, FIELDS, parse_fields(&value))?,
            "limit" => once(&mut limit, LIMIT, number(&value, 1, MOST_EVENTS as u64))?,
            "wait" => once(&mut wait, WAIT, number(&value, 0, LONGEST_WAIT))?,
            _ if unknown == UnknownParameters::Ignore => {}
            name => {
                return Err(ApiError::UnknownParameter {
                    name: shown(name),
                    known: "`after`, `types`, `fields`, `limit` and `wait` are",
                });
            }
        }
    }
    let last_event = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty());
    if let Some(id) = last_event {
        after = Some(id.to_str().map_err(|_| bad_cursor())?.to_owned());
    }
    if after.is_none() && format == Format::Json {
        return Err(bad_cursor());
    }
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    Ok(Asked {
        format,
        after,
        types: types.unwrap_or(Types::default_of(format)),
        fields,
        limit: limit.unwrap_or(DEFAULT_EVENTS),
        wait: Duration::from_secs(wait.unwrap_or(0)),
    })
}

/// What a cursor that is none is answered with.
pub(super) fn bad_cursor() -> ApiError {
    invalid(AFTER)
}

fn invalid((name, expected): (&'static str, &'static str)) -> ApiError {
    ApiError::InvalidValue { name, expected }
}

fn once<T>(
    place: &mut Option<T>,
    parameter: (&'static str, &'static str),
    value: Option<T>,
) -> Result<(), ApiError> {
    let value = value.filter(|_| place.is_none());
    *place = Some(value.ok_or_else(|| invalid(parameter))?);
    Ok(())
}

fn number(text: &str, least: u64, most: u64) -> Option<u64> {
    let is_plain = !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
    let number = is_plain.then(|| text.parse().ok()).flatten()?;
    (least..=most).contains(&number).then_some(number)
}

fn parse_fields(text: &str) -> Option<View> {
    if text.len() > LONGEST_FIELDS {
        return None;
    }
    let paths: Result<Vec<_>, _> = text.split(',').map(FieldPath::dotted).collect();
    let paths = paths.ok().filter(|paths| paths.len() <= MOST_FIELDS)?;
    Some(View::new(&paths))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn refused(query: &str) -> Option<String> {
        let asked = parse(query, &HeaderMap::new(), UnknownParameters::Reject);
        asked.err().map(|error| match error {
            ApiError::InvalidValue { name, .. } => name.to_owned(),
            ApiError::UnknownParameter { name, .. } => format!("unknown {name}"),
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let many = vec!["a"; 33].join(",");
        let long = "a".repeat(1025);
        for (query, name) in [
            ("", "after"),
            ("after=now&after=now", "after"),
            ("after=now&limit=0", "limit"),
            ("after=now&limit=501", "limit"),
            ("after=now&limit=", "limit"),
            ("after=now&limit=+1", "limit"),
            ("after=now&wait=31", "wait"),
            ("after=now&wait=-1", "wait"),
            ("after=now&wait=1.5", "wait"),
            ("after=now&types=", "types"),
            ("after=now&types=task.created,", "types"),
            ("after=now&types=task.deleted", "types"),
            ("after=now&fields=", "fields"),
            ("after=now&fields=a,,b", "fields"),
            ("after=now&fields=a..b", "fields"),
            (&format!("after=now&fields={many}"), "fields"),
            (&format!("after=now&fields={long}"), "fields"),
            ("after=now&page=1", "unknown page"),
        ] {
            assert_eq!(refused(query).as_deref(), Some(name), "{query}");
        }
        for query in [
            "after=now",
            "after=start&limit=500&wait=30&types=task.created,space.synced&fields=a,b.c",
            "after=now&limit=001&wait=0",
        ] {
            assert_eq!(refused(query), None, "{query}");
        }
        let ignored = parse(
            "after=now&page=1",
            &HeaderMap::new(),
            UnknownParameters::Ignore,
        );
        assert!(ignored.is_ok());
    }

    #[test]
    fn the_last_event_wins_and_a_stream_needs_no_beginning() {
        let mut headers = HeaderMap::new();
        headers.insert(LAST_EVENT_ID, HeaderValue::from_static("abc"));
        let asked = parse("after=now", &headers, UnknownParameters::Reject).unwrap();
        assert_eq!(asked.after.as_deref(), Some("abc"));
        assert!(!asked.types.synced);
        headers.insert(LAST_EVENT_ID, HeaderValue::from_static(""));
        headers.insert("accept", HeaderValue::from_static("text/event-stream"));
        let asked = parse("", &headers, UnknownParameters::Reject).unwrap();
        assert_eq!(asked.after, None);
        assert!(asked.types.synced);
    }

    #[test]
    fn what_waits_is_told_by_its_query_or_its_format() {
        let none = HeaderMap::new();
        for (query, held) in [
            ("after=now", false),
            ("after=now&wait=0", false),
            ("after=now&wait=000", false),
            ("after=now&wait=1", true),
            ("wa%69t=30", true),
        ] {
            assert_eq!(is_held(query, &none), held, "{query}");
        }
    }
}
