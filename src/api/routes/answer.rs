//! The answer for a page that was found, whatever route it was asked for by.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use http_body_util::Full;

use crate::{
    api::{Data, Policy, body::Guarded, layers::observe::VARY},
    cache::{
        CacheStatus,
        encodings::{EncodedBody, Encodings, WhenBusy},
        http_semantics::{ContentCoding, accepts_identity, negotiate, not_modified},
        representation::Representation,
    },
    domain::View,
    service::Served,
};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const LIST_GENERATION: HeaderName = HeaderName::from_static("x-list-generation");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const ASK_EACH_TIME: HeaderValue = HeaderValue::from_static("private, no-cache");
/// As many headers as an answer has, those of the layers included.
const MOST_HEADERS: usize = 20;

/// What a client sees of a page.
#[derive(Debug)]
pub enum Shown {
    Whole,
    /// What its view shows, which is kept with the page.
    Viewed(Arc<View>),
    /// What it asked for itself.
    Fields(View),
}

impl Shown {
    /// What a client sees that has `view` and asks for `fields`.
    #[must_use]
    pub fn of(view: Option<Arc<View>>, fields: Option<View>) -> Self {
        match (view, fields) {
            (None, None) => Self::Whole,
            (Some(view), None) => Self::Viewed(view),
            (None, Some(fields)) => Self::Fields(fields),
            (Some(view), Some(fields)) => Self::Fields(view.intersection(&fields)),
        }
    }

    async fn representation(self, data: &Data, served: &Served) -> Arc<Representation> {
        match self {
            Self::Whole => served.page.content.whole().clone(),
            Self::Viewed(view) => data.pages.representation(served, &view).await,
            // Boxed: few ask for it.
            Self::Fields(view) => Box::pin(data.pages.seen_through(served, view)).await,
        }
    }
}

/// The answer for a page that was found: 304 where the client has it already.
pub async fn respond(
    data: &Data,
    policy: &Policy,
    shown: Shown,
    served: &Served,
    request: &Parts,
) -> Response {
    let representation = shown.representation(data, served).await;
    let mut response = Response::new(Body::empty());
    // Room for all of them: a map that grows is allocated and hashed again.
    *response.headers_mut() = HeaderMap::with_capacity(MOST_HEADERS);
    let headers = response.headers_mut();
    describe(policy, served, headers);
    headers.insert(header::ETAG, representation.etag.clone());
    let Some((coding, busy)) = coding(&request.headers, served, &representation) else {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    };
    headers.insert(header::CONTENT_TYPE, JSON);
    let known = || representation.encodings.length_in(coding);
    let coding = match (request.method == Method::HEAD).then(known).flatten() {
        // Nothing is made to be thrown away.
        Some(length) => {
            headers.insert(header::CONTENT_LENGTH, length.into());
            coding
        }
        // The length is left to hyper, which writes it without an allocation.
        None => {
            let encodings = &representation.encodings;
            let encoded = body(data, served, encodings, (coding, busy)).await;
            // It counts as memory until it has left.
            let body = Guarded::new(Full::new(encoded.bytes), encoded.counted);
            *response.body_mut() = Body::new(body);
            encoded.coding
        }
    };
    if coding != ContentCoding::Identity {
        response.headers_mut().insert(
            header::CONTENT_ENCODING,
            HeaderValue::from_static(coding.as_str()),
        );
    }
    response
}

/// The content coding to answer in, and what to do where too many bodies wait to be compressed; `None` where the client has the page
/// already.
///
/// A client that waited for the fill, or would wait behind many others, gets the plain body if it accepts that.
fn coding(
    request: &HeaderMap,
    served: &Served,
    representation: &Representation,
) -> Option<(ContentCoding, WhenBusy)> {
    let etag = representation.etag.to_str().unwrap_or_default();
    if not_modified(request, etag, served.page.last_modified_unix, unix_now) {
        return None;
    }
    let accepted = negotiate(request, representation.encodings.codings());
    if representation.encodings.is_available(accepted) {
        return Some((accepted, WhenBusy::Identity));
    }
    let from_store = matches!(served.status, CacheStatus::Hit { .. });
    Some(match (from_store, accepts_identity(request)) {
        (_, false) => (accepted, WhenBusy::Wait),
        (true, true) => (accepted, WhenBusy::Identity),
        (false, true) => (ContentCoding::Identity, WhenBusy::Identity),
    })
}

async fn body(
    data: &Data,
    served: &Served,
    encodings: &Encodings,
    (coding, busy): (ContentCoding, WhenBusy),
) -> EncodedBody {
    if let Some(encoded) = encodings.take(coding, served.at) {
        return encoded;
    }
    let made = encodings.get_unless(busy, coding, served.at).await;
    data.pages.store().reweigh(&served.page);
    made
}

/// Every field that 200 and 304 share, but for the entity tag.
fn describe(policy: &Policy, served: &Served, headers: &mut HeaderMap) {
    let page = &served.page;
    headers.insert(header::DATE, page.date.clone());
    headers.insert(header::VARY, VARY);
    if let Some(last_modified) = &page.last_modified {
        headers.insert(header::LAST_MODIFIED, last_modified.clone());
    }
    headers.insert(CACHE_STATUS, served.status.header_value());
    let age = match served.status {
        // A stored answer tells its age.
        CacheStatus::Hit { .. } => Some(served.age()),
        // One that was just filled tells what the upstream told, if anything.
        CacheStatus::Forward { .. } | CacheStatus::NotForwarded(_) => page.upstream_age,
    };
    if let Some(age) = age {
        headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
    }
    let may_keep = cache_control(policy.client_max_age, age, || client_rest(served));
    headers.insert(header::CACHE_CONTROL, may_keep);
    if let Some(link) = &page.link {
        headers.insert(header::LINK, link.clone());
    }
    if let Some(generation) = &page.list_generation
        && policy.coherent_pages
    {
        headers.insert(LIST_GENERATION, generation.clone());
    }
}

/// How long a client may reuse the answer: what is left of the page, and nothing of one that the upstream lets nobody keep.
fn client_rest(served: &Served) -> Duration {
    match served.status {
        CacheStatus::Hit { .. } | CacheStatus::Forward { stored: true, .. } => {
            served.page.fresh_for(served.at)
        }
        CacheStatus::Forward { .. } | CacheStatus::NotForwarded(_) => Duration::ZERO,
    }
}

/// `age` is what the answer's `Age` says: a client subtracts it from `max-age` (RFC 9111 section 4.2).
fn cache_control(
    client_max_age: Duration,
    age: Option<Duration>,
    rest: impl FnOnce() -> Duration,
) -> HeaderValue {
    if client_max_age.is_zero() {
        return ASK_EACH_TIME;
    }
    match client_max_age.min(rest()).as_secs() {
        0 => ASK_EACH_TIME,
        rest => {
            let max_age = age.unwrap_or_default().as_secs().saturating_add(rest);
            HeaderValue::try_from(format!("private, max-age={max_age}"))
                .expect("words and digits are visible ASCII")
        }
    }
}

fn unix_now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 9111 section 4.2: fresh while max-age is greater than Age.
    #[test]
    fn clients_may_keep_an_answer_for_what_is_left_of_it_at_most() {
        let seconds = Duration::from_secs;
        for (most, age, rest, expected) in [
            (0, Some(0), 29, "private, no-cache"),
            (10, None, 29, "private, max-age=10"),
            (10, Some(0), 29, "private, max-age=10"),
            (10, Some(20), 10, "private, max-age=30"),
            (10, Some(20), 9, "private, max-age=29"),
            (10, Some(29), 1, "private, max-age=30"),
            (60, Some(1), 29, "private, max-age=30"),
            (60, Some(90_000), 29, "private, max-age=90029"),
            (
                10,
                Some(u64::MAX),
                29,
                "private, max-age=18446744073709551615",
            ),
            (60, None, 0, "private, no-cache"),
            (60, Some(30), 0, "private, no-cache"),
            (60, Some(3600), 0, "private, no-cache"),
        ] {
            let shown = cache_control(seconds(most), age.map(seconds), || seconds(rest));
            assert_eq!(shown, expected, "{most} {age:?} {rest}");
        }
        let less_than_a_second = || Duration::from_millis(999);
        let shown = cache_control(seconds(10), None, less_than_a_second);
        assert_eq!(shown, "private, no-cache");
    }
}
