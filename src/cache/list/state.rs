//! The state of a list, and what a page says about it: a pure function of what is known, the page and the time.

use std::time::Duration;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::domain::PageQuery;

/// How long a list is unsettled after it was seen to change there and back within a lifetime.
const UNSETTLED_FOR: Duration = Duration::from_secs(60);

/// How a list begins and how long it is, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListHead {
    pub count: Option<u64>,
    pub first_row: Option<CompactString>,
}

/// What a page says about its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation<'a> {
    pub query: PageQuery,
    pub count: u64,
    pub first_row: Option<&'a str>,
    /// The same rows were stored with a lower count. The upstream reads rows first and `count` by a second query, so these may be of before.
    pub has_rows_of_before: bool,
    /// A row that a neighbouring page of the state in force holds too.
    pub doubled: Option<&'a str>,
}

impl<'a> Observation<'a> {
    /// The first row of the list, which only page 1 tells.
    fn head(&self) -> Option<&'a str> {
        self.first_row.filter(|_| self.query.page == 1)
    }
}

/// What a page comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Whether the list has moved: what was stored of it is stale.
    pub moved: bool,
    /// Whether the page is of the state that is in force from now on.
    pub is_current: bool,
}

impl Verdict {
    fn stays(is_current: bool) -> Self {
        Self {
            moved: false,
            is_current,
        }
    }
}

/// What is known of a list's state, and how it came about.
#[derive(Clone, Debug, Default)]
pub(super) struct ListState {
    pub(super) head: ListHead,
    /// The row by which the newest move was seen, where the count did not tell.
    pub(super) marker: Option<CompactString>,
    /// The state before the newest move.
    before: ListHead,
    /// When the list was last seen to change, there or back.
    changed_at: Option<Instant>,
    /// Whether the last page came from a replica of the upstream that lags behind.
    lags: bool,
    unsettled_until: Option<Instant>,
}

impl ListHead {
    fn allows(&self, seen: &Observation<'_>) -> bool {
        let other_first = match (&self.first_row, seen.head()) {
            (Some(known), Some(seen)) => known != seen,
            (None, _) | (_, None) => false,
        };
        self.count == Some(seen.count) && !other_first
    }

    fn learn(&mut self, seen: &Observation<'_>) {
        self.count = Some(seen.count);
        if let Some(first) = seen.head() {
            self.first_row = Some(first.into());
        }
    }
}

impl ListState {
    /// Takes note of a page. `is_overtaken`: the list moved after the page was asked for, so it moves nothing.
    ///
    /// The list has moved if its count changed, or the first row of its first page, or if the page doubles a row of its neighbour. A change
    /// that is undone within `lifetime` is no second move: workers behind the upstream differ by a moment.
    pub(super) fn observe(
        &mut self,
        seen: &Observation<'_>,
        is_overtaken: bool,
        lifetime: Duration,
        now: Instant,
    ) -> Verdict {
        let is_same = self.head.allows(seen);
        if is_overtaken {
            let is_current = is_same && !seen.has_rows_of_before;
            if is_current {
                self.head.learn(seen);
            }
            return Verdict::stays(is_current);
        }
        let is_unsettled = self.unsettled_until.is_some_and(|until| now < until);
        let is_known = self.head.count.is_some();
        // A second one at once comes of an upstream that doubles rows, or of rows of before.
        let doubles = seen.doubled.is_some()
            && !(is_unsettled || self.marker.is_some() && self.changed_within(lifetime, now));
        if !is_known || is_same && !doubles {
            self.note_lag(false, lifetime, now);
            self.head.learn(seen);
            return Verdict::stays(true);
        }
        if !is_same && self.is_undone(seen, is_unsettled, lifetime, now) {
            self.note_lag(true, lifetime, now);
            return Verdict::stays(true);
        }
        self.move_on(seen, now);
        Verdict {
            moved: true,
            // The list is longer, but these rows were read before it was.
            is_current: !seen.has_rows_of_before,
        }
    }

    /// Whether the page shows an earlier state, of a list that has just left it or is unsettled.
    fn is_undone(
        &self,
        seen: &Observation<'_>,
        is_unsettled: bool,
        lifetime: Duration,
        now: Instant,
    ) -> bool {
        // The upstream deletes nothing: the shorter list is the older.
        let (count, longest) = (Some(seen.count), self.head.count.max(self.before.count));
        let is_earlier = self.before.allows(seen) || count < longest;
        is_earlier && self.changed_within(lifetime, now) || is_unsettled && count <= longest
    }

    /// Whether the list may have had `count` rows a moment ago, as it has now or had before its newest move.
    pub(super) fn may_have_ended(&self, count: u64, lifetime: Duration, now: Instant) -> bool {
        let is_unsettled = self.unsettled_until.is_some_and(|until| now < until);
        let may_be_before = is_unsettled || self.changed_within(lifetime, now);
        self.head.count == Some(count) || may_be_before && self.before.count == Some(count)
    }

    fn changed_within(&self, lifetime: Duration, now: Instant) -> bool {
        let changed = self.changed_at;
        changed.is_some_and(|at| now.saturating_duration_since(at) <= lifetime)
    }

    fn note_lag(&mut self, lags: bool, lifetime: Duration, now: Instant) {
        if self.lags != lags {
            self.lags = lags;
            if self.changed_within(lifetime, now) {
                self.unsettled_until = Some(now + UNSETTLED_FOR);
            }
            self.changed_at = Some(now);
        }
    }

    fn move_on(&mut self, seen: &Observation<'_>, now: Instant) {
        let known = self.head.first_row.as_deref();
        // Where the count moved and the first row did not, its row may be of before: the next page 1 tells, and moves nothing.
        let first_row = seen.head().filter(|first| known != Some(first));
        let by_row = seen.doubled.or(first_row);
        let by_row = by_row.filter(|_| self.head.count == Some(seen.count));
        self.marker = by_row.map(CompactString::from);
        let head = ListHead {
            count: Some(seen.count),
            first_row: first_row.map(CompactString::from),
        };
        self.before = std::mem::replace(&mut self.head, head);
        self.lags = false;
        self.changed_at = Some(now);
    }

    /// Takes over what another replica knows of the same state.
    pub(super) fn adopt(&mut self, head: &ListHead) {
        self.head.count = self.head.count.or(head.count);
        if self.head.first_row.is_none() {
            self.head.first_row.clone_from(&head.first_row);
        }
    }
}

#[cfg(test)]
mod tests;
