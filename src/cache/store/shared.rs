//! What replicas share of the store: the state of a space, and pages.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Began, Extent, PageStore, StoreDecision, StoreOutcome};
use crate::{
    cache::{Received, StoredPage, list::SharedList, snapshot::SavedPage},
    domain::{ListKey, ListPage, PageKey, SpaceKey, SpaceToken},
};

impl PageStore {
    /// Goes by what all replicas know of a list of the space's `epoch`.
    pub fn hear_list(&self, key: &ListKey, epoch: u64, told: &SharedList, now: Instant) {
        let list = self.known_list(key).filter(|_| self.is_coherent());
        if let Some(list) = list.filter(|list| list.space.epoch() == epoch) {
            list.hear(told, now);
        }
    }

    /// What is known of the space and the list of a page.
    #[must_use]
    pub fn known_numbers(&self, key: &PageKey) -> (u64, u64) {
        let list = self.known_list(&key.list);
        let generation = list.map_or(0, |list| list.shared_generation());
        (self.epoch(&key.list.space), generation)
    }

    /// The spaces of which anything is known and that are `meant`, by their tokens and epochs.
    #[must_use]
    pub fn spaces_where(&self, meant: impl Fn(&SpaceToken, u64) -> bool) -> Vec<SpaceToken> {
        let spaces = self.spaces.lock();
        let known = spaces.known.iter();
        let meant = known.filter(|(key, space)| meant(&key.space, space.epoch()));
        let meant: HashSet<_> = meant.map(|(key, _)| key.space.clone()).collect();
        meant.into_iter().collect()
    }

    /// Every space of which anything is known.
    #[must_use]
    pub fn known_spaces(&self) -> Vec<SpaceKey> {
        self.spaces.lock().known.keys().cloned().collect()
    }

    /// Whether anything is known of a space.
    #[must_use]
    pub fn knows(&self, key: &SpaceKey) -> bool {
        self.known(key).is_some()
    }

    /// Notes that a page is taken over of the list's state called `name`, if that is in force here: this replica may have seen the list move,
    /// and the others not have heard of it yet.
    #[must_use]
    pub fn begin_shared(&self, key: PageKey, name: u64, now: Instant) -> Option<Began> {
        let began = self.begin(key, now);
        if !self.is_coherent() {
            return Some(began);
        }
        let is_in_force = began.state_name() == Some(name);
        is_in_force.then(|| began.at(began.version, Some(name)))
    }

    /// Stores a page that another replica filled, `age` ago, if it is better than what is stored.
    pub fn take_shared(
        &self,
        began: &Began,
        saved: &SavedPage,
        page: ListPage,
        age: Duration,
        now: Instant,
        now_unix: i64,
    ) -> StoreOutcome {
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
            return StoreOutcome {
                page: stored,
                stored: true,
                is_storable: true,
                extent: Extent::Whole,
            };
        }
        self.store_page(began, page, &answer, StoreDecision::Store)
    }

    /// What a fill tells the other replicas, if it shows the state in force. `now_unix_ms` is of the clock they share.
    #[must_use]
    pub fn share(
        &self,
        key: &PageKey,
        page: &StoredPage,
        now: Instant,
        now_unix_ms: u64,
    ) -> Option<Shared> {
        let list = page.list.to_share(page.version)?;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (age, fresh_for) = (ms(page.age(now)), ms(page.fresh_for(now)));
        Some(Shared {
            page: SavedPage {
                key: key.clone(),
                born_unix_ms: now_unix_ms.saturating_sub(age),
                lifetime: page.stated_lifetime(),
                headers: page.stored_headers().clone(),
                body: page.content.page().body,
                epoch: page.version.epoch,
            },
            list,
            fresh_until_ms: now_unix_ms.saturating_add(fresh_for),
            useful_for: page.useful_for(now),
        })
    }
}

/// A page on its way to the other replicas, and what its fill saw of its list.
#[derive(Debug)]
pub struct Shared {
    pub page: SavedPage,
    /// The state it shows, and the newest generation that the others know of.
    pub list: SharedList,
    /// By the clock that all share.
    pub fresh_until_ms: u64,
    /// How long anybody could use it.
    pub useful_for: Duration,
}
