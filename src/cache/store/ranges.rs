//! Wide ranges: pages of so many rows that one call brings several that clients ask for.

use std::sync::Arc;

use tokio::time::Instant;

use super::PageStore;
use crate::{
    cache::{StoredPage, freshness::StaleIf, list::Filling},
    domain::{PageKey, PageQuery},
};

/// What a miss looks at does not grow with the pages of its list.
const MOST_LOOKED_AT: usize = 16;

impl PageStore {
    /// Notes that a page is being filled, until what it returns is dropped. Its list is remembered for as long.
    #[must_use]
    pub fn note_filling(&self, key: &PageKey, now: Instant) -> Filling {
        let space = self.space(&key.list.space, 0, now);
        space.list(&key.list.id).note_filling(key.query)
    }

    /// Whether more than one page of the list is of use, so that one call had better bring several: another page than `key` is stored and may
    /// still be shown, or is being filled. Not of a list that nothing can be cut from, nor for a page past its end.
    #[must_use]
    pub fn is_wide(&self, key: &PageKey, now: Instant) -> bool {
        let Some(list) = self.known_list(&key.list) else {
            return false;
        };
        let start = key.query.span().start;
        if list.known_count().is_some_and(|count| start >= count) {
            return false;
        }
        let others = list.other_pages(key.query, MOST_LOOKED_AT).into_iter();
        let mut of_use = others.filter_map(|query| {
            let key = PageKey {
                list: key.list.clone(),
                query,
            };
            let page = self.get(&key)?;
            page.stale_if(StaleIf::Error, now).is_some().then_some(page)
        });
        match of_use.next() {
            Some(page) => page.outline.is_plain,
            None => list.is_filling_other(key.query),
        }
    }

    /// Drops the pages that `range` holds the rows of: they would be refreshed by calls of their own.
    pub fn drop_covered(&self, range: &Arc<StoredPage>) {
        if !range.outline.is_plain || range.outline.rows == 0 || range.moved_at().is_some() {
            return;
        }
        let (key, span) = (&range.key, range.key.query.span());
        let is_covered = |query: &PageQuery| {
            let page = query.span();
            query.page_size < key.query.page_size
                && span.start <= page.start
                && page.end <= span.end
        };
        let covered = range.list.pages_touching(&span).into_iter();
        for query in covered.filter(is_covered) {
            let key = PageKey {
                list: key.list.clone(),
                query,
            };
            let _writing = self.writing.lock();
            let page = self.pages.get(&key);
            // One that was forced meanwhile is younger.
            if let Some(page) = page.filter(|page| page.received() <= range.received()) {
                range.request_rate.add(&page.request_rate);
                self.pages.invalidate(&key);
            }
        }
    }

    /// Notes that one call does not bring all of a range: for ten minutes its pages are asked for one by one.
    pub fn note_unfit(&self, range: &PageKey, now: Instant) {
        if let Some(space) = self.known(&range.list.space) {
            let mut failing = space.failing();
            failing.note_unfit(&range.list.id, range.query, now);
        }
    }

    /// Whether one call did not bring all of a range a while ago.
    #[must_use]
    pub fn is_unfit(&self, range: &PageKey, now: Instant) -> bool {
        let space = self.known(&range.list.space);
        space.is_some_and(|space| space.failing().is_unfit(&range.list.id, range.query, now))
    }
}
