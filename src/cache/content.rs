//! What a page holds: its rows, and everything that is made of them and kept with it.

use std::{ops::Range, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    encodings::IdleCompression, http_semantics::ContentCoding, memory::BodyMemory,
    representation::Representation, row_table::RowTable, variants::Variants,
};
use crate::domain::{ListPage, PageQuery, Row, View, ViewId};

/// How many pages cut from an entry are kept with it: one of 100 tasks is cut to ten of 10.
const MOST_CUTS: usize = 12;

/// What stays the same when a 304 renews a page.
#[derive(Debug)]
pub struct Content {
    /// How many rows the list has, over all pages.
    pub count: u64,
    rows: Arc<[Row]>,
    table: RowTable,
    /// When its age was nothing: what a 304 says later makes the bytes no younger.
    pub(super) born: Instant,
    whole: Arc<Representation>,
    /// What views show of it: by what each shows, not by its name, since a view that is configured again is another one.
    views: Variants<ViewId, Arc<Representation>>,
    /// Smaller pages cut from it; `None`: it cannot be cut.
    cuts: Variants<PageQuery, Option<Arc<Content>>>,
}

impl Content {
    /// What `page` brought, which was of `age` by `now`; `table` tells of its rows.
    #[must_use]
    pub fn new(
        page: ListPage,
        table: RowTable,
        now: Instant,
        age: Duration,
        memory: &BodyMemory,
    ) -> Self {
        Self {
            born: now.checked_sub(age).unwrap_or(now),
            count: page.count,
            rows: page.rows.clone(),
            table,
            whole: Arc::new(Representation::of(page, now, memory)),
            views: Variants::new(View::MOST),
            cuts: Variants::new(MOST_CUTS),
        }
    }

    /// The page as it came, for work on it: where it is compressed it stays so.
    #[must_use]
    pub fn page(&self) -> ListPage {
        ListPage {
            gzip: None,
            body: self.whole.encodings.plain(),
            count: self.count,
            rows: self.rows.clone(),
        }
    }

    /// How long the page is as it came, compressed or not.
    #[must_use]
    pub fn length(&self) -> usize {
        self.whole.encodings.length()
    }

    /// How long a page of these rows is, in the same envelope.
    pub(super) fn length_of(&self, rows: &Range<usize>) -> usize {
        let extent = |rows: &[Row]| match (rows.first(), rows.last()) {
            (Some(first), Some(last)) => (last.span.end - first.span.start) as usize,
            _ => 0,
        };
        let kept = self.rows.get(rows.clone()).map_or(0, extent);
        self.length() - extent(&self.rows) + kept
    }

    /// How many rows this page holds.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// What is known of its rows without its bytes.
    #[must_use]
    pub fn table(&self) -> &RowTable {
        &self.table
    }

    /// The page as it goes out.
    #[must_use]
    pub fn whole(&self) -> &Arc<Representation> {
        &self.whole
    }

    /// What `view` shows of the page, and whether that was made only now. It is made once and kept, as its encodings are.
    #[must_use]
    pub fn make_view(&self, view: &View, now: Instant) -> (Arc<Representation>, bool) {
        self.views
            .get_or_make(&view.id(), || Arc::new(self.seen_through(view, now)))
    }

    /// The same, made anew and not kept.
    #[must_use]
    pub fn seen_through(&self, view: &View, now: Instant) -> Representation {
        let encodings = &self.whole.encodings;
        let shown = view.apply(&encodings.plain());
        let shown = shown.expect("a page was read as JSON before it became one");
        Representation::new(shown, now, encodings.memory())
    }

    /// The same, if it was made already.
    #[must_use]
    pub fn made_view(&self, view: &View) -> Option<Arc<Representation>> {
        self.views.get(&view.id())
    }

    /// The page of `query` that `cut` cuts from this one, and whether that was made only now. It is made once and kept.
    pub(super) fn cut(
        &self,
        query: PageQuery,
        now: Instant,
        cut: impl FnOnce() -> Option<(ListPage, RowTable)>,
    ) -> (Option<Arc<Self>>, bool) {
        self.cuts.get_or_make(&query, || {
            let age = now.saturating_duration_since(self.born);
            let memory = self.whole.encodings.memory();
            let (page, table) = cut()?;
            Some(Arc::new(Self::new(page, table, now, age, memory)))
        })
    }

    /// Whether the page of `query` was cut from this one already.
    pub(super) fn is_cut(&self, query: PageQuery) -> bool {
        self.cuts.get(&query).is_some()
    }

    /// Whether this is `other`, or what that was cut from.
    pub(super) fn is_source_of(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.cuts().any(|cut| std::ptr::eq(&*cut, other))
    }

    fn cuts(&self) -> impl Iterator<Item = Arc<Self>> {
        self.cuts.made().into_iter().flatten()
    }

    /// Whether only compressed bodies are left, since nobody asked for the plain one.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        !self.whole.encodings.is_available(ContentCoding::Identity)
    }

    /// As [`super::encodings::Encodings::compress_idle`], the whole and what each view shows by itself.
    pub(super) fn compress_idle(&self, now: Instant, idle_after: Duration) -> IdleCompression {
        let whole = self.whole.encodings.compress_idle(now, idle_after);
        let views = self.views.made().into_iter();
        let views = views.map(|view| view.encodings.compress_idle(now, idle_after));
        let cuts = self.cuts().map(|cut| cut.compress_idle(now, idle_after));
        views.chain(cuts).fold(whole, IdleCompression::and)
    }

    /// Bytes it occupies, beside the struct itself.
    pub(super) fn heap_bytes(&self) -> usize {
        // The structs and the allocator's share.
        const OVERHEAD: usize = 512;

        let views = self.views.made().into_iter();
        let views = views.map(|view| OVERHEAD + view.encodings.weight());
        let cuts = self.cuts().map(|cut| OVERHEAD + cut.heap_bytes());
        let parts: usize = views.chain(cuts).sum();
        let rows = size_of_val(&*self.rows) + self.table.heap_bytes();
        rows + self.whole.encodings.weight() + parts
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::FieldPath;

    fn content(body: &'static str) -> Content {
        let page = ListPage {
            gzip: None,
            body: Bytes::from_static(body.as_bytes()),
            count: 1,
            rows: Arc::default(),
        };
        let now = Instant::now();
        let table = RowTable::default();
        Content::new(page, table, now, Duration::ZERO, &BodyMemory::default())
    }

    fn view(name: &str) -> View {
        View::new(&[FieldPath::dotted(name).unwrap()])
    }

    #[test]
    fn what_a_view_shows_is_made_once() {
        let content = content(r#"{"count":1,"data":[{"a":1,"b":2}]}"#);
        let get = |name| content.make_view(&view(name), Instant::now());
        let (first, is_new) = get("a");
        assert!(is_new);
        assert_eq!(first.encodings.plain(), r#"{"count":1,"data":[{"a":1}]}"#);
        let (again, is_new) = get("a");
        assert!(!is_new && Arc::ptr_eq(&first, &again));

        let (other, is_new) = get("b");
        assert!(is_new);
        assert_ne!(first.etag, other.etag);
    }

    #[test]
    fn what_is_printed_holds_no_task() {
        let content = content(r#"{"count":1,"data":[{"a":"secret"}]}"#);
        let _ = content.make_view(&view("a"), Instant::now());
        let printed = format!("{content:?}");
        assert!(printed.contains("etag") && !printed.contains("secret"));
    }
}
