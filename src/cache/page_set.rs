//! Which pages of a list are stored, found by the places they cover: what a miss looks at does not grow with their number.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{PageQuery, Span};

/// Pages by their size: of each size those that touch a range lie side by side.
#[derive(Debug, Default)]
pub struct PageSet {
    by_size: BTreeMap<u32, BTreeSet<u32>>,
    count: usize,
}

impl PageSet {
    pub(super) fn insert(&mut self, query: PageQuery) {
        let of_size = self.by_size.entry(query.page_size).or_default();
        self.count += usize::from(of_size.insert(query.page));
    }

    pub(super) fn remove(&mut self, query: PageQuery) {
        let Some(of_size) = self.by_size.get_mut(&query.page_size) else {
            return;
        };
        self.count -= usize::from(of_size.remove(&query.page));
        if of_size.is_empty() {
            self.by_size.remove(&query.page_size);
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All pages, by size.
    pub fn iter(&self) -> impl Iterator<Item = PageQuery> {
        let by_size = self.by_size.iter();
        by_size.flat_map(|(size, pages)| pages.iter().map(|page| query(*page, *size)))
    }

    /// The pages that cover any place of `wanted`. Looks at these alone, and once at each size there is.
    pub fn touching(&self, wanted: &Span) -> impl Iterator<Item = PageQuery> {
        let by_size = self.by_size.iter().filter(|_| !wanted.is_empty());
        by_size.flat_map(move |(size, pages)| {
            let page_of = |place: u64| {
                let page = place / u64::from(*size) + 1;
                u32::try_from(page).unwrap_or(u32::MAX)
            };
            let touching = pages.range(page_of(wanted.start)..=page_of(wanted.end - 1));
            touching.map(|page| query(*page, *size))
        })
    }
}

fn query(page: u32, page_size: u32) -> PageQuery {
    PageQuery { page, page_size }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(queries: impl IntoIterator<Item = PageQuery>) -> PageSet {
        let mut set = PageSet::default();
        queries.into_iter().for_each(|query| set.insert(query));
        set
    }

    #[test]
    fn what_a_miss_looks_at_does_not_grow_with_the_pages_of_its_space() {
        for pages in [100, 90_000] {
            let set = set((1..=pages).map(|page| query(page, 20)));
            assert_eq!(set.len(), pages as usize);
            for (page, page_size, seen) in [(1, 100, 5), (7, 50, 3), (1, 20, 1), (3, 1, 1)] {
                let wanted = query(page, page_size).span();
                let seen_of_all = set.touching(&wanted).count();
                assert_eq!(seen_of_all, seen, "{wanted:?} among {pages}");
            }
        }
    }

    #[test]
    fn a_page_counts_once_and_is_gone_once_removed() {
        let mut set = set([query(1, 20), query(2, 20), query(1, 20), query(1, 50)]);
        assert_eq!(set.len(), 3);
        set.remove(query(1, 20));
        set.remove(query(1, 20));
        set.remove(query(9, 9));
        let left: Vec<_> = set.iter().collect();
        assert_eq!(left, [query(2, 20), query(1, 50)]);
        left.into_iter().for_each(|query| set.remove(query));
        assert!(set.is_empty() && set.by_size.is_empty());
    }

    proptest! {
        #[test]
        fn those_that_touch_a_range_are_found_and_no_others(
            pages in prop::collection::btree_set((1_u32..30, 1_u32..30), 0..60),
            start in 0_u64..200,
            length in 0_u64..100,
        ) {
            let queries = || pages.iter().map(|(page, size)| query(*page, *size));
            let wanted = start..start + length;
            let touches = |query: &PageQuery| {
                let span = query.span();
                span.start.max(wanted.start) < span.end.min(wanted.end)
            };
            let mut found: Vec<_> = set(queries()).touching(&wanted).collect();
            let mut expected: Vec<_> = queries().filter(touches).collect();
            found.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
