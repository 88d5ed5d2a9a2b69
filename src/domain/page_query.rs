use std::{fmt, ops::Range};

/// Which page of a list, and how long its pages are. Both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageQuery {
    pub page: u32,
    pub page_size: u32,
}

/// Places in a list, counted from 0.
pub type Span = Range<u64>;

impl PageQuery {
    pub const MAX_PAGE: u32 = 1_000_000;
    pub const DEFAULT_PAGE: u32 = 1;
    pub const DEFAULT_PAGE_SIZE: u32 = 20;

    /// `None` for a page that no list has.
    #[must_use]
    pub fn new(page: u32, page_size: u32) -> Option<Self> {
        let exists = (1..=Self::MAX_PAGE).contains(&page) && page_size > 0;
        exists.then_some(Self { page, page_size })
    }

    /// The places this page covers, whether or not the list is that long.
    #[must_use]
    pub fn span(&self) -> Span {
        let size = u64::from(self.page_size);
        let start = u64::from(self.page.saturating_sub(1)) * size;
        start..start + size
    }

    /// The page of `size` rows that holds all of this one; `None` where it would take two.
    #[must_use]
    pub fn within(&self, size: u32) -> Option<Self> {
        let (span, size_u64) = (self.span(), u64::from(size));
        let page = span.start.checked_div(size_u64)?;
        let holds_all = span.end <= (page + 1) * size_u64;
        Self::new(u32::try_from(page + 1).ok()?, size).filter(|_| holds_all)
    }

    /// How many pages of this size a list of `count` has; an empty list has one, which is empty.
    #[must_use]
    pub fn last_page(&self, count: u64) -> u64 {
        count.div_ceil(u64::from(self.page_size)).max(1)
    }
}

/// The canonical query string, both members always there.
impl fmt::Display for PageQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page={}&page_size={}", self.page, self.page_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_page_before_the_first_and_none_without_a_size() {
        let most = PageQuery::MAX_PAGE;
        for (page, page_size, exists) in [
            (1, 1, true),
            (most, u32::MAX, true),
            (0, 20, false),
            (most + 1, 20, false),
            (1, 0, false),
        ] {
            let query = PageQuery::new(page, page_size);
            assert_eq!(query.is_some(), exists, "{page} of {page_size}");
        }
    }

    #[test]
    fn a_page_lies_within_a_larger_one_or_spans_two() {
        let query = |page, page_size| PageQuery { page, page_size };
        for (wanted, size, within) in [
            (query(1, 20), 100, Some(query(1, 100))),
            (query(5, 20), 100, Some(query(1, 100))),
            (query(6, 20), 100, Some(query(2, 100))),
            (query(2, 100), 100, Some(query(2, 100))),
            (query(14, 7), 100, Some(query(1, 100))),
            (query(15, 7), 100, None),
            (query(1, 101), 100, None),
            (query(1, 20), 0, None),
            (query(PageQuery::MAX_PAGE, 1), 100, Some(query(10_000, 100))),
        ] {
            assert_eq!(wanted.within(size), within, "{wanted} within {size}");
        }
    }

    #[test]
    fn pages_cover_the_list_without_gap_or_overlap() {
        let page = |page| PageQuery {
            page,
            page_size: 20,
        };
        assert_eq!(page(1).span(), 0..20);
        assert_eq!(page(2).span(), 20..40);
        for (count, last) in [(0, 1), (1, 1), (20, 1), (21, 2), (57, 3)] {
            assert_eq!(page(1).last_page(count), last, "{count}");
        }
    }
}
