//! A stored page: its bytes, the header fields that clients see, and what its age is judged from.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CACHE_CONTROL, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY},
};
use tokio::time::Instant;

use super::{
    content::Content,
    freshness::{Candidate, Freshness, Lifetimes, Received, StaleIf, Verdict, judge},
    http_semantics::{RequestDirectives, fmt_http_date, parse_age, parse_http_date},
    link::link,
    list::{Began, List, Version},
    outline::Outline,
    refresh_plan::RequestRate,
};
use crate::domain::{PageKey, PageQuery, SpaceFingerprint};

/// The upstream's fields that outlive an answer: freshness and validation need them, and a 304 updates them.
const STORED_HEADERS: [HeaderName; 6] = [CACHE_CONTROL, EXPIRES, DATE, ETAG, LAST_MODIFIED, VARY];

/// A page asked for this lately is in use, however short it lives.
const ACTIVE_FOR: Duration = Duration::from_secs(60);

/// A page as it is stored and served.
#[derive(Debug)]
pub struct StoredPage {
    /// What it is stored under, or the entry that it was cut from.
    pub(super) key: PageKey,
    pub content: Arc<Content>,
    freshness: Freshness,
    pub(super) request_rate: RequestRate,
    /// When the page was generated: the upstream's own word, or the time of receipt.
    pub date: HeaderValue,
    /// What the state of the list it was cut from is called, where that is known.
    pub list_generation: Option<HeaderValue>,
    /// Where the pages around it are.
    pub link: Option<HeaderValue>,
    pub last_modified: Option<HeaderValue>,
    /// The same in Unix seconds, for `If-Modified-Since`. Without it the condition is no condition: `Date` would be taken instead
    /// (RFC 9111 section 4.3.2), and be wrong for a page that changed twice within its second.
    pub last_modified_unix: Option<i64>,
    /// The upstream's own `Age`, for the answer that filled the page.
    pub upstream_age: Option<Duration>,
    /// When it was read from a snapshot: until it is filled again it is a stale fallback only.
    restored_at: Option<Instant>,
    stored_headers: HeaderMap,
    pub(super) outline: Outline,
    pub(super) list: Arc<List>,
    pub(super) version: Version,
}

impl StoredPage {
    /// What it is stored under.
    #[must_use]
    pub fn key(&self) -> &PageKey {
        &self.key
    }

    /// A page as `answer` brought it.
    #[must_use]
    pub fn new(
        content: Arc<Content>,
        outline: Outline,
        answer: &Received<'_>,
        lifetimes: &Lifetimes,
        jitter: f64,
        began: Began,
        request_rate: RequestRate,
    ) -> Self {
        let stored_headers = stored_headers(answer.headers);
        let last_modified = stored_headers.get(LAST_MODIFIED).cloned();
        let unix = |value: &HeaderValue| parse_http_date(value.as_bytes(), answer.received_unix);
        let date = stored_headers
            .get(DATE)
            .filter(|value| unix(value).is_some())
            .cloned()
            .unwrap_or_else(|| {
                HeaderValue::try_from(fmt_http_date(answer.received_unix))
                    .expect("a date is visible ASCII")
            });
        Self {
            date,
            list_generation: began.name.map(field),
            link: Some(link("", began.key.query, content.count)),
            key: began.key,
            freshness: Freshness::new(answer, lifetimes, jitter),
            request_rate,
            last_modified_unix: last_modified.as_ref().and_then(unix),
            last_modified,
            content,
            upstream_age: parse_age(answer.headers),
            restored_at: None,
            stored_headers,
            outline,
            list: began.list,
            version: began.version,
        }
    }

    /// The page of `query` with `content`, cut from `parts`: it has the date of the oldest, and is not stored by itself.
    pub(super) fn cut(
        query: PageQuery,
        content: Arc<Content>,
        parts: &[Arc<Self>],
        now: Instant,
    ) -> Option<Self> {
        let oldest = parts.iter().max_by_key(|part| part.age(now))?;
        let freshness: Vec<_> = parts.iter().map(|part| part.freshness(now)).collect();
        Some(Self {
            key: oldest.key.clone(),
            freshness: match &freshness[..] {
                // It may be shown whenever the entry may.
                [single] => single.fixed(),
                several => Freshness::of_parts(several, now)?,
            },
            request_rate: RequestRate::new(now),
            date: oldest.date.clone(),
            list_generation: oldest.list_generation.clone(),
            link: Some(link("", query, content.count)),
            content,
            last_modified: None,
            last_modified_unix: None,
            upstream_age: None,
            restored_at: oldest.restored_at,
            stored_headers: HeaderMap::new(),
            outline: Outline::default(),
            list: oldest.list.clone(),
            version: oldest.version,
        })
    }

    /// Where the pages around it are for who asks for it, as the page of `query`, by `parameters` too.
    #[must_use]
    pub fn link_by(&self, parameters: &str, query: PageQuery) -> HeaderValue {
        link(parameters, query, self.content.count)
    }

    /// The same as no page of a list.
    pub(super) fn alone(mut self, upstream_age: Option<Duration>) -> Self {
        self.link = None;
        self.list_generation = None;
        self.upstream_age = upstream_age;
        self
    }

    /// This page as read from a snapshot: `age` old, and no longer fresh whatever its lifetime says.
    #[must_use]
    pub fn restored(self, age: Duration, lifetime: Duration) -> Self {
        Self {
            restored_at: Some(self.freshness.received()),
            ..self.aged(age, lifetime)
        }
    }

    /// This page as another replica filled it: `age` old.
    #[must_use]
    pub fn aged(self, age: Duration, lifetime: Duration) -> Self {
        Self {
            freshness: self.freshness.aged(age, lifetime),
            ..self
        }
    }

    /// How long it is fresh from its birth, whatever the quota asks for.
    #[must_use]
    pub fn stated_lifetime(&self) -> Duration {
        self.freshness.lifetime()
    }

    /// How long it can be of use yet: fresh, or as a stale fallback.
    #[must_use]
    pub fn useful_for(&self, now: Instant) -> Duration {
        self.freshness(now).useful_for(now)
    }

    /// The upstream's fields that outlive an answer.
    #[must_use]
    pub fn stored_headers(&self) -> &HeaderMap {
        &self.stored_headers
    }

    /// Whether its rows may be shown as part of another page: still fresh, and so of the list's present state.
    #[must_use]
    pub fn can_be_cut(&self, now: Instant) -> bool {
        !self.fresh_for(now).is_zero()
    }

    /// Whether its rows may be shown as part of a stale fallback for `reason`.
    #[must_use]
    pub fn can_be_cut_stale(&self, reason: StaleIf, now: Instant) -> bool {
        !self.is_invalidated() && self.stale_if(reason, now).is_some()
    }

    /// Its `ttl` if it may be served as a stale fallback for `reason`.
    #[must_use]
    pub fn stale_if(&self, reason: StaleIf, now: Instant) -> Option<i64> {
        self.freshness(now).stale_if(reason, self.moved_at(), now)
    }

    /// This page as a 304 renews it: its bytes, with the fields that `answer` brings (RFC 9111 section 4.3.4).
    #[must_use]
    pub fn renewed(
        &self,
        answer: &Received<'_>,
        lifetimes: &Lifetimes,
        jitter: f64,
        began: Began,
    ) -> Self {
        let mut headers = self.stored_headers.clone();
        for name in STORED_HEADERS {
            if answer.headers.contains_key(&name) {
                headers.remove(&name);
                for value in answer.headers.get_all(&name) {
                    headers.append(&name, value.clone());
                }
            }
        }
        // A 304 without a Date was generated when it came, not when the page first did.
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
            self.outline.clone(),
            &merged,
            lifetimes,
            jitter,
            began,
            self.request_rate.aged(answer.received),
        )
    }

    /// The upstream's own `ETag`, for revalidation.
    #[must_use]
    pub fn upstream_etag(&self) -> Option<&HeaderValue> {
        self.stored_headers.get(ETAG)
    }

    /// Its freshness, fitted to what the quota allows.
    #[must_use]
    pub fn freshness(&self, now: Instant) -> Freshness {
        let demand = self.list.space.demand();
        if !demand.is_bounded() {
            return self.freshness;
        }
        let lifetime = demand.lifetime(self.request_rate.weight(now));
        self.freshness.fitted(lifetime)
    }

    /// How long it is still fresh.
    #[must_use]
    pub fn fresh_for(&self, now: Instant) -> Duration {
        let current = self.moved_at().is_none() && !self.is_invalidated();
        let left = self.freshness(now).fresh_for(now).filter(|_| current);
        left.unwrap_or_default()
    }

    /// Notes that it was asked for, where that bears on how long it lives.
    pub fn note_asked(&self, now: Instant) {
        if self.list.space.demand().is_bounded() {
            self.request_rate.note(now);
        }
    }

    /// Whether anybody has asked for it within its lifetime, so that it will have to be fetched again.
    pub(super) fn is_active(&self, now: Instant) -> bool {
        let unasked = now.saturating_duration_since(self.request_rate.last_asked());
        unasked <= self.freshness(now).lifetime().max(ACTIVE_FOR)
    }

    /// What [`super::judge`] needs to know of it.
    #[must_use]
    pub fn candidate<'a>(&self, freshness: &'a Freshness, only_fresh: bool) -> Candidate<'a> {
        Candidate {
            freshness,
            moved_at: self.moved_at(),
            only_fresh,
        }
    }

    /// Its age (RFC 9111 section 4.2.3).
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        self.freshness.age(now)
    }

    #[must_use]
    pub fn space_fingerprint(&self) -> &SpaceFingerprint {
        self.list.space.fingerprint()
    }

    /// When the upstream's answer came.
    #[must_use]
    pub fn received(&self) -> Instant {
        self.freshness.received()
    }

    /// When its list moved on, if it did since the page was filled.
    #[must_use]
    pub fn moved_at(&self) -> Option<Instant> {
        // A right may have been revoked since, or the list moved: the page is taken for stale.
        self.restored_at
            .or_else(|| self.list.moved_since(self.version))
    }

    /// Whether it was invalidated since it was filled: its space was refused or purged.
    #[must_use]
    pub fn is_invalidated(&self) -> bool {
        self.list.space.invalidated_since(self.version)
    }

    /// Whether it is known which state of its list it was cut from.
    pub(super) fn is_of_known_state(&self) -> bool {
        self.list_generation.is_some() && self.generation() > 0
    }

    /// Which state of the list it was cut from; 0: none that was ever in force.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.version.generation
    }

    /// Bytes it occupies, with its encodings, views and cuts.
    #[must_use]
    pub fn weight(&self) -> usize {
        // The structs, the map's share and the allocator's: `examples/memory.rs` measures it with 1 KB pages.
        const OVERHEAD: usize = 2560;
        // A list that few pages share, such as the tasks of a run.
        const LIST: usize = 1024;
        let list = if self.key.list.id.collection().is_of_a_run() {
            LIST
        } else {
            0
        };
        OVERHEAD + list + self.content.heap_bytes()
    }

    /// Whether storing it could ever be of use.
    #[must_use]
    pub fn is_worth_keeping(&self) -> bool {
        let has_validator = self.upstream_etag().is_some() || self.last_modified.is_some();
        self.freshness.is_worth_keeping(has_validator)
    }
}

/// Decides what to do about a request for `page`, as [`super::judge`] does, with its lifetime stretched to the quota.
#[must_use]
pub fn judge_page(
    page: Option<&StoredPage>,
    only_fresh: bool,
    request: &RequestDirectives,
    now: Instant,
) -> Verdict {
    let freshness = page.map(|page| page.freshness(now));
    let candidate = page
        .zip(freshness.as_ref())
        .map(|(page, freshness)| page.candidate(freshness, only_fresh));
    judge(candidate, request, now)
}

/// What a state is called, as clients see it.
fn field(name: u64) -> HeaderValue {
    HeaderValue::try_from(format!("{name:016x}")).expect("hex digits are ASCII")
}

fn stored_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in STORED_HEADERS {
        for value in headers.get_all(&name) {
            kept.append(&name, detached(value));
        }
    }
    kept
}

/// A copy: a value that came over a connection is a slice of what was read into it, and would hold all of that as long as the page
/// lives. Measured: 64 KB a page, more than the page itself.
fn detached(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).expect("it was a header value before")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn what_is_kept_holds_no_buffer_of_the_connection() {
        let buffer = Bytes::from(vec![b'1'; 64 << 10]);
        let value = HeaderValue::from_maybe_shared(buffer.slice(..8)).unwrap();
        let answer = HeaderMap::from_iter([(DATE, value)]);
        let kept = stored_headers(&answer);
        drop(answer);
        assert_eq!(kept[DATE], "11111111");
        assert!(buffer.is_unique());
    }
}
