//! The spaces of which anything is known. None outlives its pages, its refusals and the fills under way for long.

use std::{collections::HashMap, sync::Arc};

use tokio::time::Instant;

use super::PageStore;
use crate::{
    cache::{list::List, space::Space},
    domain::{CredentialId, ListKey, SpaceKey},
};

/// Spaces of which no page is stored, but a refusal is remembered; beyond it the refusals go.
pub(super) const MAX_PAGELESS_SPACES: usize = 16_384;
pub(super) const FIRST_SWEEP_AT: usize = 1024;
#[derive(Debug)]
pub(super) struct Spaces {
    pub(super) known: HashMap<SpaceKey, Arc<Space>>,
    /// With which a space begins that nothing is known of: the epoch in which everything was purged last.
    first_epoch: u64,
    /// Redis knows the epochs of spaces that were forgotten here. Else the highest of them is the first of those that come back: none returns
    /// to an epoch that it had left.
    are_shared: bool,
    sweep_at: usize,
}

impl Default for Spaces {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            first_epoch: 0,
            are_shared: false,
            sweep_at: FIRST_SWEEP_AT,
        }
    }
}

impl PageStore {
    /// What is known of a space, if anything is.
    pub(super) fn known(&self, key: &SpaceKey) -> Option<Arc<Space>> {
        self.spaces.lock().known.get(key).cloned()
    }

    /// A list of which something is stored or being fetched.
    pub(super) fn known_list(&self, key: &ListKey) -> Option<Arc<List>> {
        self.known(&key.space)?.known_list(&key.id)
    }

    /// The space of `key`; one of which nothing is known begins with `epoch`, or a later one.
    pub(super) fn space(&self, key: &SpaceKey, epoch: u64, now: Instant) -> Arc<Space> {
        let mut spaces = self.spaces.lock();
        if let Some(space) = spaces.known.get(key) {
            return space.clone();
        }
        spaces.sweep(now);
        let demand = self.demand(key.credential);
        let epoch = epoch.max(spaces.first_epoch);
        let space = Arc::new(Space::new(&key.space, epoch, demand));
        spaces.known.insert(key.clone(), space.clone());
        space
    }

    /// Other replicas know the epochs of spaces too, from now on.
    pub fn share_epochs(&self) {
        self.spaces.lock().are_shared = true;
    }

    pub(super) fn spaces_of(&self, credential: CredentialId) -> HashMap<SpaceKey, Arc<Space>> {
        let spaces = self.spaces.lock();
        let known = spaces.known.iter();
        known
            .filter(|(key, _)| key.credential == credential)
            .map(|(key, space)| (key.clone(), space.clone()))
            .collect()
    }

    /// Turns all pages stale: nobody watched which state of its list each shows.
    pub fn distrust_all(&self, now: Instant) {
        let known: Vec<_> = self.spaces.lock().known.values().cloned().collect();
        for space in known {
            move_on(&space, now);
        }
    }

    /// Turns all pages of `credential` stale, and forgets what was refused: until filled again they are stale fallbacks for errors and
    /// quota alone.
    pub fn distrust(&self, credential: CredentialId, now: Instant) {
        for space in self.spaces_of(credential).values() {
            move_on(space, now);
            space.forget_refusals();
        }
    }
}

fn move_on(space: &Space, now: Instant) {
    for list in space.lists() {
        list.move_on(now);
    }
}

impl Spaces {
    pub(super) fn epoch(&self, key: &SpaceKey) -> u64 {
        let known = self.known.get(key);
        known.map_or(self.first_epoch, |space| space.epoch())
    }

    fn retain(&mut self, is_kept: impl Fn(&Arc<Space>) -> bool) {
        let (first_epoch, are_shared) = (&mut self.first_epoch, self.are_shared);
        self.known.retain(|_, space| {
            let is_kept = is_kept(space);
            if !is_kept && !are_shared {
                *first_epoch = space.epoch().max(*first_epoch);
            }
            is_kept
        });
    }

    /// Notes that everything was purged; returns what is known.
    pub(super) fn purged(&mut self, epoch: u64) -> Vec<(SpaceKey, Arc<Space>)> {
        self.first_epoch = self.first_epoch.max(epoch);
        self.known.clone().into_iter().collect()
    }

    /// Forgets spaces of which nothing is left, each time their number has doubled.
    fn sweep(&mut self, now: Instant) {
        if self.known.len() < self.sweep_at {
            return;
        }
        let in_use = |space: &Arc<Space>| Arc::strong_count(space) > 1;
        self.retain(|space| in_use(space) || !space.is_idle(now));
        let pageless = self
            .known
            .values()
            .filter(|space| !in_use(space) && space.has_no_pages())
            .count();
        if pageless > MAX_PAGELESS_SPACES {
            self.retain(|space| in_use(space) || !space.has_no_pages());
        }
        self.sweep_at = (2 * self.known.len()).max(FIRST_SWEEP_AT);
    }
}
