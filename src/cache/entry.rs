//! A stored page: its bytes, the header fields that clients see, and what its age is judged from.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CACHE_CONTROL, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY},
};
use tokio::time::Instant;

use super::{
    forms::{Forms, Packed},
    freshness::{Candidate, Freshness, Lifetimes, Verdict, judge},
    http_semantics::{Coding, RequestDirectives, fmt_http_date, parse_age, parse_http_date},
    link::link,
    list::{Began, List, Version},
    memory::BodyMemory,
    rendition::Rendition,
    stretch::Popularity,
    variants::Variants,
};
use crate::domain::{ListPage, PageKey, PageQuery, Row, SpaceFingerprint, View, ViewId};

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

/// A page asked for this lately is in use, however short it lives.
const ACTIVE_FOR: Duration = Duration::from_secs(60);

/// How many pages cut from an entry are kept with it: one of 100 tasks is cut to five of 20.
const MOST_CUTS: usize = 8;

/// A page as it is kept and served.
#[derive(Debug)]
pub struct StoredPage {
    /// What it is stored under, or the entry that it was cut from.
    pub(super) key: PageKey,
    pub content: Arc<Content>,
    freshness: Freshness,
    pub(super) popularity: Popularity,
    /// When the page was generated: the upstream's own word, or the time of receipt.
    pub date: HeaderValue,
    /// The state of the list it was cut from, as clients see it, where that was watched.
    pub list_generation: Option<HeaderValue>,
    /// Where the pages around it are.
    pub link: HeaderValue,
    pub last_modified: Option<HeaderValue>,
    /// The same in Unix seconds, for `If-Modified-Since`. Without it the condition is no condition: `Date` would stand in for it
    /// (RFC 9111 section 4.3.2), and be wrong for a page that changed twice within its second.
    pub last_modified_unix: Option<i64>,
    /// The upstream's own `Age`, for the answer that filled the page.
    pub upstream_age: Option<Duration>,
    /// When it was read from a snapshot: until it is filled anew it may only stand in.
    restored_at: Option<Instant>,
    kept: HeaderMap,
    pub(super) list: Arc<List>,
    pub(super) version: Version,
}

/// What stays the same when a 304 renews a page.
#[derive(Debug)]
pub struct Content {
    /// How many rows the list has, over all pages.
    pub count: u64,
    rows: Arc<[Row]>,
    /// When its age was nothing: what a 304 says later makes the bytes no younger.
    pub(super) born: Instant,
    whole: Rendition,
    /// What views show of it: by what each shows, not by its name, since a view that is configured anew is another one.
    views: Variants<ViewId, Arc<Rendition>>,
    /// Smaller pages cut from it; `None`: it cannot be cut.
    cuts: Variants<PageQuery, Option<Arc<Content>>>,
}

impl Content {
    /// What `page` brought, which was of `age` by `now`.
    #[must_use]
    pub fn new(page: ListPage, now: Instant, age: Duration, memory: &BodyMemory) -> Self {
        Self {
            born: now.checked_sub(age).unwrap_or(now),
            count: page.count,
            rows: page.rows,
            whole: Rendition::new(page.body, now, memory),
            views: Variants::new(View::MOST),
            cuts: Variants::new(MOST_CUTS),
        }
    }

    /// The page as it came, for work on it: where it is packed it is read back, and stays packed.
    #[must_use]
    pub fn page(&self) -> ListPage {
        ListPage {
            body: self.whole.forms.plain(),
            count: self.count,
            rows: self.rows.clone(),
        }
    }

    /// How long the page is as it came, packed or not.
    #[must_use]
    pub fn length(&self) -> usize {
        self.whole.forms.length()
    }

    /// How many rows this page holds.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// The page as it goes out.
    #[must_use]
    pub fn whole(&self) -> &Rendition {
        &self.whole
    }

    /// What `view` shows of the page, and whether that was made only now. It is made once and kept, as its coded variants are.
    #[must_use]
    pub fn seen_through(&self, view: &View, now: Instant) -> (Arc<Rendition>, bool) {
        self.views.get_or_make(&view.id(), || {
            let forms = &self.whole.forms;
            let shown = view.apply(&forms.plain());
            let shown = shown.expect("a page was read as JSON before it became one");
            Arc::new(Rendition::new(shown, now, forms.memory()))
        })
    }

    /// The same, if it was made already.
    #[must_use]
    pub fn seen_already(&self, view: &View) -> Option<Arc<Rendition>> {
        self.views.get(&view.id())
    }

    /// The page of `query` that `cut` cuts from this one, and whether that was made only now. It is made once and kept.
    pub(super) fn cut(
        &self,
        query: PageQuery,
        now: Instant,
        cut: impl FnOnce() -> Option<ListPage>,
    ) -> (Option<Arc<Self>>, bool) {
        self.cuts.get_or_make(&query, || {
            let age = now.saturating_duration_since(self.born);
            let memory = self.whole.forms.memory();
            Some(Arc::new(Self::new(cut()?, now, age, memory)))
        })
    }

    /// Whether the page of `query` was cut from this one already.
    pub(super) fn is_cut(&self, query: PageQuery) -> bool {
        self.cuts.get(&query).is_some()
    }

    /// Whether this is the content of `page`, or what that was cut from.
    pub(super) fn is_source_of(&self, page: &StoredPage) -> bool {
        let is_of = |content: &Self| std::ptr::eq(content, &*page.content);
        is_of(self) || self.cuts().any(|cut| is_of(&cut))
    }

    fn cuts(&self) -> impl Iterator<Item = Arc<Self>> {
        self.cuts.made().into_iter().flatten()
    }

    /// Whether its identity has gone, nobody having asked for it.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        !self.whole.forms.is_held(Coding::Identity)
    }

    /// As [`super::forms::Forms::pack`], the whole and what each view shows by itself.
    pub(super) fn pack(&self, now: Instant, cold_after: Duration) -> Packed {
        let whole = self.whole.forms.pack(now, cold_after);
        let views = self.views.made().into_iter();
        let views = views.map(|view| view.forms.pack(now, cold_after));
        let cuts = self.cuts().map(|cut| cut.pack(now, cold_after));
        views.chain(cuts).fold(whole, Packed::and)
    }

    /// Bytes it occupies, beside the struct itself.
    fn heap_bytes(&self) -> usize {
        // The structs and the allocator's share.
        const OVERHEAD: usize = 512;
        let views = self.views.made().into_iter();
        let views = views.map(|view| OVERHEAD + view.forms.weight());
        let cuts = self.cuts().map(|cut| OVERHEAD + cut.heap_bytes());
        let parts: usize = views.chain(cuts).sum();
        size_of_val(&*self.rows) + self.whole.forms.weight() + parts
    }
}

/// A page as a client sees it: all of it, or what a view shows.
#[derive(Debug)]
pub enum Shown<'a> {
    Whole(&'a StoredPage),
    Part(Arc<Rendition>),
}

impl Shown<'_> {
    #[must_use]
    pub fn etag(&self) -> &HeaderValue {
        match self {
            Self::Whole(page) => &page.content.whole.etag,
            Self::Part(part) => &part.etag,
        }
    }

    #[must_use]
    pub fn forms(&self) -> &Forms {
        match self {
            Self::Whole(page) => &page.content.whole.forms,
            Self::Part(part) => &part.forms,
        }
    }
}

impl StoredPage {
    /// What it is kept under.
    #[must_use]
    pub fn key(&self) -> &PageKey {
        &self.key
    }

    /// A page as `answer` brought it.
    #[must_use]
    pub fn new(
        content: Arc<Content>,
        answer: &Received<'_>,
        lifetimes: &Lifetimes,
        jitter: f64,
        began: Began,
        popularity: Popularity,
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
            date,
            list_generation: began.known_version().map(Version::field),
            link: link(began.key.query, content.count),
            key: began.key,
            freshness: Freshness::new(answer, lifetimes, jitter),
            popularity,
            last_modified_unix: last_modified.as_ref().and_then(unix),
            last_modified,
            content,
            upstream_age: parse_age(answer.headers),
            restored_at: None,
            kept,
            list: began.list,
            version: began.version,
        }
    }

    /// The page of `query` with `content`, which was cut from `parts`: with the date of the oldest, and not to be stored by itself.
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
            freshness: Freshness::of_parts(&freshness, now)?,
            popularity: Popularity::new(now),
            date: oldest.date.clone(),
            list_generation: Some(oldest.version.field()),
            link: link(query, content.count),
            content,
            last_modified: None,
            last_modified_unix: None,
            upstream_age: None,
            restored_at: None,
            kept: HeaderMap::new(),
            list: oldest.list.clone(),
            version: oldest.version,
        })
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

    /// How long it can be of use yet: shown as it is, or in place of an error.
    #[must_use]
    pub fn useful_for(&self, now: Instant) -> Duration {
        self.freshness(now).useful_for(now)
    }

    /// The upstream's fields that outlive an answer.
    #[must_use]
    pub fn kept(&self) -> &HeaderMap {
        &self.kept
    }

    /// Whether its rows may be shown as part of another page: still fresh, and known to be of the list's present state.
    #[must_use]
    pub fn can_be_cut(&self, now: Instant) -> bool {
        self.list_generation.is_some() && !self.fresh_for(now).is_zero()
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
            began,
            self.popularity.aged(answer.received),
        )
    }

    /// The upstream's own `ETag`, to ask by whether the page still holds.
    #[must_use]
    pub fn upstream_etag(&self) -> Option<&HeaderValue> {
        self.kept.get(ETAG)
    }

    /// Its freshness, stretched to what the quota allows.
    #[must_use]
    pub fn freshness(&self, now: Instant) -> Freshness {
        let demand = self.list.space.demand();
        if !demand.is_bounded() {
            return self.freshness;
        }
        let lifetime = demand.lifetime(self.popularity.weight(now));
        self.freshness.stretched(lifetime)
    }

    /// How long it may still be shown as it is.
    #[must_use]
    pub fn fresh_for(&self, now: Instant) -> Duration {
        let current = self.moved_at().is_none() && !self.is_dropped();
        let left = self.freshness(now).fresh_for(now).filter(|_| current);
        left.unwrap_or_default()
    }

    /// Notes that it was asked for, where that bears on how long it lives.
    pub fn note_asked(&self, now: Instant) {
        if self.list.space.demand().is_bounded() {
            self.popularity.note(now);
        }
    }

    /// Whether anybody has asked for it within its lifetime, so that it will have to be fetched again.
    pub(super) fn is_active(&self, now: Instant) -> bool {
        let unasked = now.saturating_duration_since(self.popularity.last_asked());
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
        // A right may have been revoked since, or the list moved: as if it had, the page is old.
        self.restored_at
            .or_else(|| self.list.moved_since(self.version))
    }

    /// Whether it was dropped from the store, refused or purged, since it was filled.
    #[must_use]
    pub fn is_dropped(&self) -> bool {
        self.list.space.dropped_since(self.version)
    }

    /// The state of the list it was cut from.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.version.generation
    }

    /// Bytes it occupies, its variants and views included.
    #[must_use]
    pub fn weight(&self) -> usize {
        // The structs, the map's share and the allocator's: `examples/memory.rs` measures it with 1 KB pages.
        const OVERHEAD: usize = 2560;
        OVERHEAD + self.content.heap_bytes()
    }

    /// Whether keeping it could ever be of use.
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

fn keep(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in KEPT {
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
    use crate::domain::FieldPath;

    fn content(body: &'static str) -> Content {
        let page = ListPage {
            body: Bytes::from_static(body.as_bytes()),
            count: 1,
            rows: Arc::default(),
        };
        let now = Instant::now();
        Content::new(page, now, Duration::ZERO, &BodyMemory::default())
    }

    fn view(name: &str) -> View {
        View::new(&[FieldPath::dotted(name).unwrap()])
    }

    #[test]
    fn what_a_view_shows_is_made_once() {
        let content = content(r#"{"count":1,"data":[{"a":1,"b":2}]}"#);
        let get = |name| content.seen_through(&view(name), Instant::now());
        let (first, is_new) = get("a");
        assert!(is_new);
        assert_eq!(first.forms.plain(), r#"{"count":1,"data":[{"a":1}]}"#);
        let (again, is_new) = get("a");
        assert!(!is_new && Arc::ptr_eq(&first, &again));

        let (other, is_new) = get("b");
        assert!(is_new);
        assert_ne!(first.etag, other.etag);
    }

    #[test]
    fn what_is_printed_holds_no_task() {
        let content = content(r#"{"count":1,"data":[{"a":"secret"}]}"#);
        let _ = content.seen_through(&view("a"), Instant::now());
        let printed = format!("{content:?}");
        assert!(printed.contains("etag") && !printed.contains("secret"));
    }

    #[test]
    fn what_is_kept_holds_no_buffer_of_the_connection() {
        let buffer = Bytes::from(vec![b'1'; 64 << 10]);
        let value = HeaderValue::from_maybe_shared(buffer.slice(..8)).unwrap();
        let answer = HeaderMap::from_iter([(DATE, value)]);
        let kept = keep(&answer);
        drop(answer);
        assert_eq!(kept[DATE], "11111111");
        assert!(buffer.is_unique());
    }
}
