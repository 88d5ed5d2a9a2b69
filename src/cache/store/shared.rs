//! What replicas share of the store: the state of a space, and pages.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Began, PageStore, StoreDecision, StoreOutcome};
use crate::{
    cache::{
        Received, StoredPage,
        list::{Adopted, ListHead, Mark},
        snapshot::SavedPage,
    },
    domain::{ListKey, ListPage, PageKey, SpaceKey, SpaceToken},
};

impl PageStore {
    /// Adopts the state of a list that all replicas share: pages invalidated elsewhere are invalidated here, pages of a list that moved are stale.
    ///
    /// `asked` is from before the state was read. Returns the fill with that state; `None` where it may be out of date already.
    #[must_use]
    pub fn adopt(&self, asked: &Began, mark: Mark, head: &ListHead, now: Instant) -> Option<Began> {
        let list = &asked.list;
        let adopted = match list.adopt(asked.version, mark, head, now) {
            Adopted::MustInvalidate => {
                self.invalidate(&asked.key.list.space, &list.space);
                list.adopt(list.version(), mark, head, now)
            }
            adopted => adopted,
        };
        match adopted {
            Adopted::Done(version) => Some(asked.at(version, None)),
            Adopted::MustInvalidate | Adopted::Overtaken => None,
        }
    }

    /// Invalidates the pages of a space that are not of `epoch`; `refused`: because the upstream refused the space.
    pub fn invalidate_other_epochs(&self, key: &SpaceKey, epoch: u64, refused: bool, now: Instant) {
        let Some(space) = self.known(key) else {
            return;
        };
        if space.mark().is_some_and(|mark| mark.epoch == epoch) {
            return;
        }
        if refused {
            self.invalidate_refused(key, now);
        } else {
            self.invalidate(key, &space);
        }
    }

    /// Invalidates the pages of a space that the upstream refused, and keeps the refusal.
    pub fn invalidate_refused(&self, key: &SpaceKey, now: Instant) {
        let Some(space) = self.known(key) else {
            return;
        };
        let known = space.refused(now);
        self.invalidate(key, &space);
        if let Some(known) = known {
            space.refuse(known);
        }
    }

    /// Turns the pages of a list stale that are of another generation than that called `name`.
    pub fn move_to(&self, key: &ListKey, name: u64, now: Instant) {
        if let Some(list) = self.known_list(key) {
            list.move_to(name, now);
        }
    }

    /// Every list of which pages are stored, those of a space one after another, what all replicas know its state by, and what its
    /// generation is called here.
    #[must_use]
    pub fn marks(&self) -> Vec<(ListKey, Option<Mark>, Option<u64>)> {
        let spaces = self.spaces.lock();
        let lists = spaces.known.iter().flat_map(|(key, space)| {
            let lists = space.lists().into_iter();
            lists.map(|list| (key.clone(), list))
        });
        lists
            .filter(|(_, list)| list.page_count() > 0)
            .map(|(space, list)| {
                let id = list.id().clone();
                let key = ListKey { space, id };
                (key, list.mark(), list.name_of(list.version()))
            })
            .collect()
    }

    /// Adopts `mark`, whose epoch is that of the pages stored here.
    pub fn confirm(&self, key: &ListKey, mark: Mark, now: Instant) {
        if let Some(list) = self.known_list(key) {
            list.confirm(mark, now);
        }
    }

    /// The spaces of which anything is known and that are `meant`.
    #[must_use]
    pub fn spaces_where(&self, meant: impl Fn(&SpaceToken) -> bool) -> Vec<SpaceToken> {
        let spaces = self.spaces.lock();
        let known = spaces.known.keys().map(|key| &key.space);
        let meant: HashSet<_> = known.filter(|space| meant(space)).cloned().collect();
        meant.into_iter().collect()
    }

    /// Invalidates what is stored of a space.
    pub fn invalidate_space(&self, key: &SpaceKey) {
        if let Some(space) = self.known(key) {
            self.invalidate(key, &space);
        }
    }

    /// Whether anything is known of a space.
    #[must_use]
    pub fn knows(&self, key: &SpaceKey) -> bool {
        self.known(key).is_some()
    }

    /// Stores a page that another replica filled, `age` ago, if it shows the state of the list that is in force here and is better than what
    /// is stored.
    pub fn take_shared(
        &self,
        began: &Began,
        saved: &SavedPage,
        page: ListPage,
        age: Duration,
        now: Instant,
        now_unix: i64,
    ) -> Option<StoreOutcome> {
        // This replica may have seen the list move, and the others not have heard of it yet.
        let name = began.state_name()?;
        if saved.mark.is_none_or(|mark| mark.generation != name) {
            return None;
        }
        let began = &began.at(began.version, self.is_coherent().then_some(name));
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        let answer = Received {
            headers: &saved.headers,
            received: now,
            // Where the upstream sent no `Date`, it is that of the first receipt.
            received_unix: now_unix.saturating_sub(seconds),
            response_delay: Duration::ZERO,
        };
        let request_rate = self.request_rate(&began.key, now);
        let page = self.page_again(began, page, &answer, age, request_rate);
        let page = page.aged(age, saved.lifetime);
        // The fresh one, or the younger: their ages are by two clocks.
        let is_no_better = |stored: &Arc<StoredPage>| {
            let is_fresh = |page: &StoredPage| !page.fresh_for(now).is_zero();
            let is_current = stored.moved_at().is_none();
            match (is_fresh(stored), is_fresh(&page)) {
                (true, false) => true,
                (false, true) => false,
                (true, true) | (false, false) => is_current && stored.age(now) <= age,
            }
        };
        if let Some(stored) = self.get(&saved.key).filter(is_no_better) {
            return Some(StoreOutcome {
                page: stored,
                stored: true,
                is_storable: true,
            });
        }
        Some(self.store_page(began, page, &answer, StoreDecision::Store))
    }

    /// A page for the other replicas, if it is one of the state in force that they share. `now_unix_ms` is of the clock they share.
    #[must_use]
    pub fn share(
        &self,
        key: &PageKey,
        page: &StoredPage,
        now: Instant,
        now_unix_ms: u64,
    ) -> Option<Shared> {
        let is_current = page.moved_at().is_none() && !page.is_invalidated();
        let before = page.list.mark().filter(|_| is_current)?;
        let age = u64::try_from(page.age(now).as_millis()).unwrap_or(u64::MAX);
        let generation = page.list.name_of(page.version)?;
        let mark = Mark {
            generation,
            ..before
        };
        Some(Shared {
            page: SavedPage {
                key: key.clone(),
                born_unix_ms: now_unix_ms.saturating_sub(age),
                lifetime: page.stated_lifetime(),
                headers: page.stored_headers().clone(),
                body: page.content.page().body,
                epoch: page.version.epoch,
                mark: Some(mark),
            },
            before,
            mark,
            head: page.list.head(),
            useful_for: page.useful_for(now),
        })
    }
}

/// A page on its way to the other replicas.
#[derive(Debug)]
pub struct Shared {
    pub page: SavedPage,
    /// The state they knew when this replica asked last.
    pub before: Mark,
    /// The state the page shows: another generation where its fill saw the list move.
    pub mark: Mark,
    pub head: ListHead,
    /// How long anybody could use it.
    pub useful_for: Duration,
}
