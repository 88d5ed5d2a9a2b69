//! A stored page: its bytes, the header fields that clients see, and what its age is judged from.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CACHE_CONTROL, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY},
};
use tokio::time::Instant;

use super::{
    coding::Variants,
    freshness::{Candidate, Freshness, Lifetimes},
    http_semantics::{fmt_http_date, parse_age, parse_http_date},
    space::{Space, Version},
};
use crate::domain::TaskPage;

/// The header of an answer, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    pub headers: &'a HeaderMap,
    pub received: Instant,
    /// The same moment on the wall clock, in Unix seconds.
    pub received_unix: i64,
    /// From asking to having the header.
    pub response_delay: Duration,
}

/// The upstream's fields that outlive an answer: freshness and validation need them, and a 304 updates them.
const KEPT: [HeaderName; 6] = [CACHE_CONTROL, EXPIRES, DATE, ETAG, LAST_MODIFIED, VARY];

/// A page as it is kept and served.
#[derive(Debug)]
pub struct StoredPage {
    pub content: Arc<Content>,
    pub freshness: Freshness,
    /// When it was generated: the upstream's own word, or the time of receipt.
    pub date: HeaderValue,
    pub last_modified: Option<HeaderValue>,
    /// The same in Unix seconds, for `If-Modified-Since`.
    pub last_modified_unix: Option<i64>,
    /// The upstream's own `Age`, for the answer that filled the page.
    pub upstream_age: Option<Duration>,
    kept: HeaderMap,
    pub(super) space: Arc<Space>,
    pub(super) version: Version,
}

/// What stays the same when a 304 renews a page.
#[derive(Debug)]
pub struct Content {
    pub page: TaskPage,
    /// Weak, always our own: a digest of the identity bytes, whichever coding goes out.
    pub etag: HeaderValue,
    pub variants: Variants,
}

impl Content {
    #[must_use]
    pub fn new(page: TaskPage) -> Self {
        Self {
            etag: etag(&page.body),
            page,
            variants: Variants::default(),
        }
    }
}

fn etag(body: &[u8]) -> HeaderValue {
    let digest = blake3::hash(body);
    HeaderValue::try_from(format!("W/\"{}\"", &digest.to_hex()[..32]))
        .expect("hex digits and quotes are visible ASCII")
}

impl StoredPage {
    /// A page as `answer` brought it.
    #[must_use]
    pub fn new(
        content: Arc<Content>,
        answer: &Received<'_>,
        lifetimes: &Lifetimes,
        jitter: f64,
        space: Arc<Space>,
        version: Version,
    ) -> Self {
        let kept = keep(answer.headers);
        let last_modified = kept.get(LAST_MODIFIED).cloned();
        let unix = |value: &HeaderValue| parse_http_date(value.as_bytes(), answer.received_unix);
        let date = kept
            .get(DATE)
            .filter(|value| unix(value).is_some())
            .cloned()
            .unwrap_or_else(|| {
                HeaderValue::try_from(fmt_http_date(answer.received_unix))
                    .expect("a date is visible ASCII")
            });
        Self {
            content,
            freshness: Freshness::new(answer, lifetimes, jitter),
            date,
            last_modified_unix: last_modified.as_ref().and_then(unix),
            last_modified,
            upstream_age: parse_age(answer.headers),
            kept,
            space,
            version,
        }
    }

    /// This page as a 304 renews it: its bytes, with the fields that `answer` brings (RFC 9111 section 4.3.4).
    #[must_use]
    pub fn renewed(
        &self,
        answer: &Received<'_>,
        lifetimes: &Lifetimes,
        jitter: f64,
        version: Version,
    ) -> Self {
        let mut headers = self.kept.clone();
        for name in KEPT {
            if answer.headers.contains_key(&name) {
                headers.remove(&name);
                for value in answer.headers.get_all(&name) {
                    headers.append(&name, value.clone());
                }
            }
        }
        // Without a Date of its own it was generated when it came, not when the page first did.
        if !answer.headers.contains_key(DATE) {
            headers.remove(DATE);
        }
        for age in answer.headers.get_all(http::header::AGE) {
            headers.append(http::header::AGE, age.clone());
        }
        let merged = Received {
            headers: &headers,
            ..*answer
        };
        Self::new(
            self.content.clone(),
            &merged,
            lifetimes,
            jitter,
            self.space.clone(),
            version,
        )
    }

    /// The upstream's own `ETag`, to ask by whether the page still holds.
    #[must_use]
    pub fn upstream_etag(&self) -> Option<&HeaderValue> {
        self.kept.get(ETAG)
    }

    /// What [`super::judge`] needs to know of it.
    #[must_use]
    pub fn candidate(&self, only_fresh: bool) -> Candidate<'_> {
        Candidate {
            freshness: &self.freshness,
            moved_at: self.moved_at(),
            only_fresh,
        }
    }

    /// When its list moved on, if it did since the page was filled.
    #[must_use]
    pub fn moved_at(&self) -> Option<Instant> {
        self.space.moved_since(self.version)
    }

    /// Whether it was dropped from the store, refused or purged, since it was filled.
    #[must_use]
    pub fn is_dropped(&self) -> bool {
        self.space.dropped_since(self.version)
    }

    /// The state of the list it was cut from.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.version.generation
    }

    /// Bytes it occupies, its variants included.
    #[must_use]
    pub fn weight(&self) -> usize {
        // The structs, the map's share and the allocator's; measured with 1 KB pages.
        const OVERHEAD: usize = 1024;
        OVERHEAD + self.content.page.heap_bytes() + self.content.variants.len()
    }

    #[must_use]
    pub fn has_validator(&self) -> bool {
        self.upstream_etag().is_some() || self.last_modified.is_some()
    }
}

fn keep(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in KEPT {
        for value in headers.get_all(&name) {
            kept.append(&name, value.clone());
        }
    }
    kept
}
