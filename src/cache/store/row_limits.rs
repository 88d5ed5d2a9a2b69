//! What is known of the most rows that the upstream gives, by credential and collection.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Began, PageStore};
use crate::{
    cache::row_limit::{RowLimit, Rows},
    domain::{CredentialId, ListKey, ListPage, PageKey, PageQuery},
};

#[derive(Debug, Default)]
pub(super) struct RowLimits {
    known: Mutex<HashMap<(CredentialId, &'static str), RowLimit>>,
    /// Whether any is known: without it nobody waits for the others.
    some: AtomicBool,
}

impl RowLimits {
    fn of(&self, list: &ListKey, now: Instant) -> Option<u32> {
        if !self.some.load(Ordering::Acquire) {
            return None;
        }
        let known = self.known.lock();
        known.get(&place(list))?.of(list, now)
    }

    fn note(&self, list: &ListKey, seen: &Rows, now: Instant) -> Option<u32> {
        if seen.limited_to().is_none() && !self.some.load(Ordering::Acquire) {
            return None;
        }
        let mut known = self.known.lock();
        let met = known.entry(place(list)).or_default().note(list, seen, now);
        known.retain(|_, limit| !limit.is_empty());
        self.some.store(!known.is_empty(), Ordering::Release);
        met
    }
}

fn place(list: &ListKey) -> (CredentialId, &'static str) {
    (list.space.credential, list.id.collection().name)
}

impl PageStore {
    /// The most rows that a call of the list brings, as far as is known; `None`: as many as it asks for.
    #[must_use]
    pub fn row_limit(&self, list: &ListKey, now: Instant) -> Option<u32> {
        self.row_limits.of(list, now)
    }

    /// The page of at most `limit` rows to fetch next for the page under `key`, which is put together from such; `None` where all are there.
    /// `since`: only those count that came later.
    #[must_use]
    pub fn missing_part(
        &self,
        key: &PageKey,
        limit: u32,
        since: Option<Instant>,
        now: Instant,
    ) -> Option<PageQuery> {
        let (span, size) = (key.query.span(), u64::from(limit));
        let list = self.known_list(&key.list);
        // The first part tells where the list ends, and that it ends before this page.
        let count = list.and_then(|list| list.known_count());
        let places = span.start..span.end.min(count.unwrap_or(0)).max(span.start + 1);
        let is_there = |part: &PageQuery| {
            let page = self.get(&key.at(*part));
            page.is_some_and(|page| {
                page.can_be_cut(now)
                    && now.saturating_duration_since(page.received()) < self.part_lifetime()
                    && since.is_none_or(|since| page.received() >= since)
            })
        };
        let numbers = places.start / size + 1..=(places.end - 1) / size + 1;
        let parts = numbers.filter_map(|page| PageQuery::new(u32::try_from(page).ok()?, limit));
        parts.into_iter().find(|part| !is_there(part))
    }

    /// How old a part may be, so that all parts of a page are of about the same time.
    #[must_use]
    pub fn part_lifetime(&self) -> Duration {
        self.rules().lifetimes.ttl
    }

    /// Takes note of how many rows a page has. Returns the limit that it met.
    pub(super) fn note_rows(&self, began: &Began, page: &ListPage, now: Instant) -> Option<u32> {
        if !self.assembles() {
            return None;
        }
        let (query, rows) = (began.key.query, page.rows.len() as u64);
        let lifetime = self.lifetime(began.key.list.space.credential);
        let seen = Rows {
            query,
            rows,
            count: page.count,
            were_all: began
                .list
                .may_have_ended(query.span().start + rows, lifetime, now),
        };
        self.row_limits.note(&began.key.list, &seen, now)
    }
}
