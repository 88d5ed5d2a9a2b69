//! What fills bring: pages, renewals and refusals.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use compact_str::CompactString;
use tokio::time::Instant;

use super::{Began, LARGEST_SHARE, PageStore};
use crate::{
    cache::{
        StoredPage,
        content::Content,
        freshness::{Received, initial_age, may_store, refusal_lifetime},
        list::Observation,
        outline::Outline,
        row_table::RowTable,
        space::Remembered,
    },
    domain::{ListPage, PageKey, PageQuery, Refusal, Span},
};

/// What became of a page that a fill brought.
#[derive(Clone, Debug)]
pub struct StoreOutcome {
    pub page: Arc<StoredPage>,
    pub stored: bool,
    /// Whether it may be stored, where there is room.
    pub is_storable: bool,
}

/// What to do with a page that a fill brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreDecision {
    Store,
    /// Only learn from it what holds of stored pages: no client wants it stored.
    ObserveOnly,
    /// Not even that: it was fetched with a token that has been replaced.
    Ignore,
}

impl PageStore {
    /// Stores the page that a fill brought, as far as it may be.
    pub fn put(
        &self,
        began: &Began,
        page: ListPage,
        answer: &Received<'_>,
        decision: StoreDecision,
    ) -> StoreOutcome {
        let age = self.age_of(answer);
        let (content, outline) = self.content(&began.key, page, answer.received, age);
        let shown = self.observe(began, content.count, &outline, answer.received, decision);
        let lifetimes = self
            .rules()
            .lifetimes_of(&began.key, content.table(), answer.received);
        let page = StoredPage::new(
            Arc::new(content),
            outline,
            answer,
            &lifetimes,
            self.jitter_factor(),
            shown,
            self.request_rate(&began.key, answer.received),
        );
        self.store_page(began, page, answer, decision)
    }

    /// What `page` holds, which was of `age` by `now`. Its rows have been the same for as long as stored pages of its list show.
    pub(super) fn content(
        &self,
        key: &PageKey,
        page: ListPage,
        now: Instant,
        age: Duration,
    ) -> (Content, Outline) {
        let collection = key.list.id.collection();
        let born = now.checked_sub(age).unwrap_or(now);
        let table = RowTable::read(&page, collection, born);
        let before = self.read_before(key);
        let table = table.continuing(before.iter().map(|page| page.content.table()));
        let outline = Outline::of(&page, &table, collection);
        (Content::new(page, table, now, age, &self.memory), outline)
    }

    /// Stored pages of the list that may hold rows of `key`, what was read last first. Rows move on by those that are inserted before them,
    /// and never back.
    fn read_before(&self, key: &PageKey) -> Vec<Arc<StoredPage>> {
        let Some(list) = self.known_list(&key.list) else {
            return Vec::new();
        };
        let Span { start, end } = key.query.span();
        let page_before = start.saturating_sub(u64::from(key.query.page_size));
        let touching = list.pages_touching(&(page_before..end));
        let parts = self.stored_of(&key.list, touching).into_iter();
        let mut pages: Vec<_> = parts.map(|part| part.page).collect();
        pages.sort_by_key(|page| Reverse(page.content.born));
        pages
    }

    fn age_of(&self, answer: &Received<'_>) -> Duration {
        initial_age(answer, &self.rules().lifetimes)
    }

    /// Renews `page` after a 304.
    pub fn renew(
        &self,
        began: &Began,
        page: &StoredPage,
        answer: &Received<'_>,
        decision: StoreDecision,
    ) -> StoreOutcome {
        let shown = self.observe(
            began,
            page.content.count,
            &page.outline,
            answer.received,
            decision,
        );
        let table = page.content.table();
        let lifetimes = self
            .rules()
            .lifetimes_of(&began.key, table, answer.received);
        let page = page.renewed(answer, &lifetimes, self.jitter_factor(), shown);
        self.store_page(began, page, answer, decision)
    }

    /// Remembers that the upstream refused. What holds for the space invalidates its pages: a revoked right is never hidden.
    pub fn refuse(
        &self,
        began: &Began,
        refusal: Refusal,
        answer: Option<&Received<'_>>,
        decision: StoreDecision,
        now: Instant,
    ) {
        if decision == StoreDecision::Ignore {
            return;
        }
        let rules = self.rules();
        let (space, key) = (&began.list.space, &began.key);
        // A purge forgets refusals too: an earlier one is not remembered after it.
        let overtaken = space.invalidated_since(began.version);
        let remembered = |configured| {
            let lifetime = match decision {
                StoreDecision::Store => refusal_lifetime(answer, &rules.lifetimes, configured),
                // Old pages go all the same: that they no longer hold is no part of the answer.
                StoreDecision::ObserveOnly | StoreDecision::Ignore => None,
            };
            lifetime.filter(|_| !overtaken).map(|lifetime| Remembered {
                refusal,
                until: now + lifetime,
                since: now,
                initial_age: answer.map_or(Duration::ZERO, |answer| {
                    initial_age(answer, &rules.lifetimes)
                }),
            })
        };
        match refusal {
            Refusal::SpaceNotFound | Refusal::SpaceAccessDenied => {
                // Of several fills that are refused at once the first is remembered, and the others invalidate it with the pages.
                let known = space.refused(now);
                self.invalidate(&key.list.space, space);
                if let Some(refusal) = remembered(rules.negative_ttl).or(known) {
                    space.refuse(refusal);
                }
            }
            Refusal::Rejected | Refusal::Failed | Refusal::Invalid => {
                if let Some(refusal) = remembered(rules.rejected_ttl) {
                    space.refuse_page(&key.list.id, key.query, refusal);
                }
            }
        }
    }

    /// Notes that the fill of a page, or of any of its space, failed for a reason of its own.
    pub fn note_failed(&self, began: &Began, whole_space: bool, now: Instant) {
        let mut failing = began.list.space.failing();
        if whole_space {
            failing.note_space(now);
        } else {
            failing.note_page(&began.key.list.id, began.key.query, now);
        }
    }

    /// Notes that a fill brought a page.
    pub fn note_good(&self, began: &Began) {
        let mut failing = began.list.space.failing();
        failing.note_good(&began.key.list.id, began.key.query);
    }

    /// Whether a page or its space failed when it was asked for the last time.
    #[must_use]
    pub fn is_failing(&self, key: &PageKey, now: Instant) -> bool {
        let space = self.known(&key.list.space);
        space.is_some_and(|space| space.failing().holds(&key.list.id, key.query, now))
    }

    /// The fill with the state that its page shows.
    fn observe(
        &self,
        began: &Began,
        count: u64,
        outline: &Outline,
        now: Instant,
        decision: StoreDecision,
    ) -> Began {
        if !self.is_coherent() || decision == StoreDecision::Ignore {
            return began.clone();
        }
        let key = &began.key;
        let before = self.get(key);
        let has_rows_of_before = before.is_some_and(|before| {
            before.content.count < count && before.outline.has_ends_of(outline)
        });
        let doubled = self.doubled_at_a_seam(began, outline);
        let seen = Observation {
            query: key.query,
            count,
            first_row: outline.first_row.as_deref(),
            has_rows_of_before,
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

    /// A row at an end of the page that the page beside it, of the state that the fill began in, holds too: one of them shows another state.
    fn doubled_at_a_seam(&self, began: &Began, outline: &Outline) -> Option<CompactString> {
        let PageQuery { page, page_size } = began.key.query;
        let beside = |page: Option<u32>| {
            let query = PageQuery {
                page: page?,
                page_size,
            };
            let list = began.key.list.clone();
            let page = self.get(&PageKey { list, query })?;
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

    pub(super) fn store_page(
        &self,
        began: &Began,
        page: StoredPage,
        answer: &Received<'_>,
        decision: StoreDecision,
    ) -> StoreOutcome {
        let allowed = may_store(answer.headers, &self.rules().lifetimes)
            && page.is_worth_keeping()
            && page.weight() <= self.max_bytes / LARGEST_SHARE;
        let page = Arc::new(page);
        let mut is_storable = false;
        let stored = {
            let _writing = self.writing.lock();
            if decision == StoreDecision::Ignore
                || began.list.space.invalidated_since(began.version)
            {
                false
            } else if !allowed {
                // What the upstream forbids to keep takes the place of what it allowed before.
                self.pages.invalidate(&began.key);
                false
            } else if decision == StoreDecision::ObserveOnly {
                false
            } else {
                is_storable = true;
                let (list, query) = (&began.list, began.key.query);
                list.space.allow(list.id(), query);
                list.add_page(query);
                self.insert(&page);
                // A full store may turn a page away that is asked for less than those it holds.
                self.pages.contains_key(&began.key)
            }
        };
        StoreOutcome {
            page,
            stored,
            is_storable,
        }
    }
}
