//! What fills bring: pages, renewals and refusals.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Began, LARGEST_SHARE, PageStore};
use crate::{
    cache::{
        StoredPage,
        content::Content,
        freshness::{Received, initial_age, may_store, refusal_lifetime},
        list::{Move, Version},
        space::Remembered,
    },
    domain::{ListPage, Refusal},
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
        let version = self.observe(began, &page, answer.received, decision);
        let lifetimes = self.rules().lifetimes_of(&began.key, &page);
        let page = StoredPage::new(
            Arc::new(Content::new(
                page,
                answer.received,
                self.age_of(answer),
                &self.memory,
            )),
            answer,
            &lifetimes,
            self.jitter_factor(),
            began.at(version),
            self.request_rate(&began.key, answer.received),
        );
        self.store_page(began, page, answer, decision)
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
        let list_page = page.content.page();
        let version = self.observe(began, &list_page, answer.received, decision);
        let lifetimes = self.rules().lifetimes_of(&began.key, &list_page);
        let page = page.renewed(answer, &lifetimes, self.jitter_factor(), began.at(version));
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
            Refusal::Rejected | Refusal::Failed => {
                if let Some(refusal) = remembered(rules.rejected_ttl) {
                    space.refuse_page(&key.list.id, key.query, refusal);
                }
            }
        }
    }

    fn observe(
        &self,
        began: &Began,
        page: &ListPage,
        now: Instant,
        decision: StoreDecision,
    ) -> Version {
        if self.is_coherent() && decision != StoreDecision::Ignore {
            let next = |to: Move<'_>| next_generation(began.version.generation, to);
            began
                .list
                .observe(began.version, began.key.query, page, next, now)
        } else {
            began.version
        }
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

/// The generation that follows `before` when the list is seen to have moved: every replica that sees the same move gives it the same number.
pub(super) fn next_generation(before: u64, to: Move<'_>) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("unpod-gateway list generation");
    hasher.update(&before.to_le_bytes());
    match to {
        Move::Count(count) => hasher.update(b"count").update(&count.to_le_bytes()),
        Move::FirstRow(id) => hasher.update(b"first").update(id.as_bytes()),
    };
    let digest: [u8; blake3::OUT_LEN] = hasher.finalize().into();
    let (first, _) = digest.split_first_chunk().expect("a digest is longer");
    u64::from_le_bytes(*first)
}
