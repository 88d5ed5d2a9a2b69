//! What a page that a fill brought says about its list, beside what is stored of it.

use compact_str::CompactString;
use tokio::time::Instant;

use super::{Began, PageStore, StoreDecision};
use crate::{
    cache::{assemble::Part, list::Observation, outline::Outline, row_table::RowTable},
    domain::{PageQuery, Span},
};

impl PageStore {
    /// The fill with the state that its page shows. `page` is `None` where nobody can tell which rows of the list it has.
    pub(super) fn observe(
        &self,
        began: &Began,
        count: u64,
        page: Option<(&RowTable, &Outline)>,
        now: Instant,
        decision: StoreDecision,
    ) -> Began {
        if !self.is_coherent() || decision == StoreDecision::Ignore {
            return began.clone();
        }
        let key = &began.key;
        let nothing = Outline::default();
        let outline = page.map_or(&nothing, |(_, outline)| outline);
        let doubled = self.doubled_at_a_seam(began, outline);
        let seen = Observation {
            query: key.query,
            count,
            first_row: outline.first_row.as_deref(),
            has_rows_of_before: page
                .is_some_and(|(rows, _)| self.has_rows_of_before(began, rows, count)),
            doubled: doubled.as_deref(),
        };
        let credential = key.list.space.credential;
        let (version, name) = began.list.observe(
            began.version,
            &seen,
            self.lifetime(credential),
            now,
            &self.names(credential),
        );
        began.at(version, name)
    }

    /// Whether `rows` were read before the list grew to `count`.
    ///
    /// A stored page of the shorter list tells: it has the same rows in the same places; or it ends where this one begins, and its last row has
    /// not come down here.
    fn has_rows_of_before(&self, began: &Began, rows: &RowTable, count: u64) -> bool {
        let (key, list) = (&began.key, &began.list);
        // Nothing is compared while the list stays as it is.
        if list.known_count().is_none_or(|known| known >= count) {
            return false;
        }
        let own = Placed::of(rows, key.query);
        let from = key.query.span().start.saturating_sub(1);
        let beside = list.pages_touching(&(from..own.span().end.max(from + 1)));
        let mut before_us = None;
        for Part { query, page } in self.stored_of(&key.list, beside) {
            if page.content.count >= count {
                continue;
            }
            let other = Placed::of(page.content.table(), query);
            if let Some(is_same) = own.is_same_as(&other) {
                if is_same {
                    return true;
                }
            } else if other.span().end == own.span().start && page.version == began.version {
                before_us = Some(own.follows_moved(&other, count - page.content.count));
            }
        }
        before_us.is_some_and(|has_moved| !has_moved)
    }

    /// A row at an end of the page that the page beside it, of the state that the fill began in, holds too: one of them shows another state.
    fn doubled_at_a_seam(&self, began: &Began, outline: &Outline) -> Option<CompactString> {
        let PageQuery { page, page_size } = began.key.query;
        let beside = |page: Option<u32>| {
            let query = PageQuery {
                page: page?,
                page_size,
            };
            let page = self.get(&began.key.at(query))?;
            (page.version == began.version).then(|| page.outline.clone())
        };
        let double = |before: &Outline, after: &Outline| {
            // Behind a page that is not full no other begins.
            let is_full = before.rows == page_size as usize;
            let row = before.last_row.clone().filter(|_| is_full)?;
            (after.first_row.as_ref() == Some(&row)).then_some(row)
        };
        let before = beside(page.checked_sub(1)).and_then(|before| double(&before, outline));
        before.or_else(|| double(outline, &beside(page.checked_add(1))?))
    }
}

/// The rows of a page, in their places.
struct Placed<'a> {
    rows: &'a RowTable,
    start: u64,
}

impl<'a> Placed<'a> {
    fn of(rows: &'a RowTable, query: PageQuery) -> Self {
        let start = query.span().start;
        Self { rows, start }
    }

    fn span(&self) -> Span {
        self.start..self.start + self.rows.len() as u64
    }

    fn id_at(&self, place: u64) -> Option<&'a str> {
        let at = usize::try_from(place.checked_sub(self.start)?).ok()?;
        self.rows.get(at)?.id
    }

    /// Whether both have the same rows where they overlap, by the ends of that; `None`: they do not.
    fn is_same_as(&self, other: &Self) -> Option<bool> {
        let (own, other_span) = (self.span(), other.span());
        let start = own.start.max(other_span.start);
        let end = own.end.min(other_span.end);
        let is_same = |place| {
            let id = self.id_at(place);
            id.is_some() && id == other.id_at(place)
        };
        (start < end).then(|| is_same(start) && is_same(end - 1))
    }

    /// Whether it begins with the row that has come down from `before` by `grown` rows.
    fn follows_moved(&self, before: &Self, grown: u64) -> bool {
        let came_from = self.start.checked_sub(grown);
        let row = came_from.and_then(|place| before.id_at(place));
        // It came from further up than is known.
        row.is_none() || row == self.id_at(self.start)
    }
}
