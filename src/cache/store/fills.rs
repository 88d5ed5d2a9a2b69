//! What fills bring: pages, renewals and refusals.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Began, LARGEST_SHARE, PageStore};
use crate::{
    cache::{
        StoredPage,
        content::Content,
        freshness::{Received, initial_age, may_store, refusal_lifetime},
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
    /// The rows that it was filled for: all of them, or as many as the upstream gives.
    pub extent: Extent,
}

/// Whether a page has the rows that it was filled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Whole,
    /// The upstream gives fewer at once. Those of page 1 are stored as the smaller page that they are; of others nobody can tell where they lie.
    Limited,
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
        let limit = self.note_rows(began, &page, answer.received);
        let (began, kept) = match limit {
            None => (began.clone(), decision),
            Some(page_size) if began.key.query.page == 1 => {
                let query = PageQuery { page: 1, page_size };
                (began.of_page(query), decision)
            }
            Some(_) => (began.clone(), StoreDecision::Ignore),
        };
        let began = &began;
        let age = self.age_of(answer);
        let (content, outline) = self.content(&began.key, page, answer.received, age);
        // Of fewer rows than asked for nobody knows where they lie, but of the first.
        let is_placed = limit.is_none() || began.key.query.page == 1;
        let seen = is_placed.then_some((content.table(), &outline));
        let shown = self.observe(began, content.count, seen, answer.received, decision);
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
        StoreOutcome {
            extent: limit.map_or(Extent::Whole, |_| Extent::Limited),
            ..self.store_page(began, page, answer, kept)
        }
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
            Some((page.content.table(), &page.outline)),
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
            extent: Extent::Whole,
        }
    }
}
