//! The stored pages and what replicas share: taking up another's state of a space, and pages on their way to the others and back.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Began, Keep, Kept, PageStore};
use crate::{
    cache::{
        Received, StoredPage,
        list::{Adopted, ListHead, Mark},
        snapshot::SavedPage,
    },
    domain::{ListKey, ListPage, PageKey, SpaceKey, SpaceToken},
};

impl PageStore {
    /// Goes by the state of a list that all replicas share: what was dropped elsewhere is dropped, what moved on is stale.
    ///
    /// `asked` is from before it was asked for. Returns what begins with that state; `None` where it may be out of date already.
    #[must_use]
    pub fn adopt(&self, asked: &Began, mark: Mark, head: &ListHead, now: Instant) -> Option<Began> {
        let list = &asked.list;
        let adopted = match list.adopt(asked.version, mark, head, now) {
            Adopted::MustDrop => {
                self.drop_pages(&asked.key.list.space, &list.space);
                list.adopt(list.version(), mark, head, now)
            }
            adopted => adopted,
        };
        match adopted {
            Adopted::Done(version) => Some(asked.at(version)),
            Adopted::MustDrop | Adopted::Overtaken => None,
        }
    }

    /// Drops the pages of a space as far as they are of another epoch than `epoch`; `refused`: since the upstream refused it.
    pub fn drop_other_epochs(&self, key: &SpaceKey, epoch: u64, refused: bool, now: Instant) {
        let Some(space) = self.known(key) else {
            return;
        };
        if space.mark().is_some_and(|mark| mark.epoch == epoch) {
            return;
        }
        if refused {
            self.drop_refused(key, now);
        } else {
            self.drop_pages(key, &space);
        }
    }

    /// Drops the pages of a space that the upstream refused, and remembers on.
    pub fn drop_refused(&self, key: &SpaceKey, now: Instant) {
        let Some(space) = self.known(key) else {
            return;
        };
        let known = space.refused(now);
        self.drop_pages(key, &space);
        if let Some(known) = known {
            space.refuse(known);
        }
    }

    /// Turns the pages of a list stale as far as they are of another generation.
    pub fn move_to(&self, key: &ListKey, generation: u64, now: Instant) {
        if let Some(list) = self.known_list(key) {
            list.move_to(generation, now);
        }
    }

    /// Every list of which pages are stored, those of a space one after another, what all replicas know its state by, and its
    /// generation here.
    #[must_use]
    pub fn marks(&self) -> Vec<(ListKey, Option<Mark>, u64)> {
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
                (key, list.mark(), list.version().generation)
            })
            .collect()
    }

    /// Goes by `mark`, whose epoch names what is stored of a list here.
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

    /// Drops what is stored of a space.
    pub fn drop_space(&self, key: &SpaceKey) {
        if let Some(space) = self.known(key) {
            self.drop_pages(key, &space);
        }
    }

    /// Whether anything is known of a space.
    #[must_use]
    pub fn knows(&self, key: &SpaceKey) -> bool {
        self.known(key).is_some()
    }

    /// Takes in a page that another replica filled, `age` ago, if it is of the state of the space in force here; one that is no better
    /// than what is stored changes nothing.
    pub fn take_shared(
        &self,
        began: &Began,
        saved: &SavedPage,
        page: ListPage,
        age: Duration,
        now: Instant,
        now_unix: i64,
    ) -> Option<Kept> {
        // This replica may have seen the list move, and the others not have heard of it yet.
        let generation = began.version.generation;
        if saved.mark.is_none_or(|mark| mark.generation != generation) {
            return None;
        }
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        let answer = Received {
            headers: &saved.headers,
            received: now,
            // Where the upstream told no date, it is that of the first receipt.
            received_unix: now_unix.saturating_sub(seconds),
            response_delay: Duration::ZERO,
        };
        let popularity = self.popularity(&began.key, now);
        let page = self.page_again(began, page, &answer, age, popularity);
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
            return Some(Kept {
                page: stored,
                stored: true,
                may_be_kept: true,
            });
        }
        Some(self.keep(began, page, &answer, Keep::Yes))
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
        let is_current = page.moved_at().is_none() && !page.is_dropped();
        let before = page.list.mark().filter(|_| is_current)?;
        let age = u64::try_from(page.age(now).as_millis()).unwrap_or(u64::MAX);
        let mark = Mark {
            generation: page.generation(),
            ..before
        };
        Some(Shared {
            page: SavedPage {
                key: key.clone(),
                born_unix_ms: now_unix_ms.saturating_sub(age),
                lifetime: page.stated_lifetime(),
                headers: page.kept().clone(),
                body: page.content.page().body,
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
