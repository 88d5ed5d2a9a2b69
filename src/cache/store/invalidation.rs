//! Invalidates pages: from then on nobody is served them, however many there are; their memory is freed in the background.

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::PageStore;
use crate::{
    cache::{page_set::PageSet, space::Space},
    domain::{CredentialId, ListKey, PageKey, SpaceKey, SpaceToken},
};

/// Up to so many pages are freed at once, within some 100 µs.
const FEW: usize = 64;
/// So many are freed before other pages may be stored.
const AT_ONCE: usize = 64;

/// Pages that were invalidated and still occupy memory.
#[derive(Debug, Default)]
pub(super) struct Unfreed {
    pages: Mutex<Vec<(ListKey, PageSet)>>,
    /// One at a time, so that all are freed when it returns.
    freeing: Mutex<()>,
    some: Notify,
}

impl PageStore {
    /// Invalidates all pages of `space`, of every credential. Fills under way will not be stored.
    pub fn purge_space(&self, space: &SpaceToken) {
        let known: Vec<_> = self
            .spaces
            .lock()
            .known
            .iter()
            .filter(|(key, _)| key.space == *space)
            .map(|(key, space)| (key.clone(), space.clone()))
            .collect();
        for (key, space) in &known {
            self.invalidate(key, space);
        }
    }

    /// Invalidates everything, and leaves it to [`Self::free_invalidated`] to free it.
    pub fn purge(&self) {
        self.purge_before(u64::MAX, 0);
    }

    /// Invalidates what is of an epoch before `epoch`.
    pub fn hear_purge(&self, epoch: u64) {
        self.purge_before(epoch, epoch);
    }

    fn purge_before(&self, before: u64, epoch: u64) {
        let known: Vec<_> = self.spaces.lock().purged(epoch);
        for (key, space) in known {
            if space.epoch() < before {
                for (list, pages) in self.mark_invalid(&key, &space, epoch) {
                    self.free_later(list, pages);
                }
            }
        }
    }

    /// Invalidates what is of an epoch of a space before `epoch`; `refused`: because the upstream refused the space, which is remembered on.
    pub fn hear_drop(&self, key: &SpaceKey, epoch: u64, refused: bool, now: Instant) {
        let Some(space) = self.known(key).filter(|space| space.epoch() < epoch) else {
            return;
        };
        let known = space.refused(now).filter(|_| refused);
        self.invalidate_to(key, &space, epoch);
        if let Some(known) = known {
            space.refuse(known);
        }
    }

    /// Invalidates all pages of `credential` and forgets it.
    pub fn invalidate_credential(&self, credential: CredentialId) {
        for (key, space) in self.spaces_of(credential) {
            self.invalidate(&key, &space);
        }
        self.demands.lock().remove(&credential);
    }

    pub(super) fn invalidate(&self, key: &SpaceKey, space: &Space) {
        self.invalidate_to(key, space, 0);
    }

    fn invalidate_to(&self, key: &SpaceKey, space: &Space, epoch: u64) {
        for (list, pages) in self.mark_invalid(key, space, epoch) {
            if pages.len() <= FEW {
                self.free(&list, &pages);
            } else {
                self.free_later(list, pages);
            }
        }
    }

    /// From now on nobody is served the pages that it returns.
    fn mark_invalid(&self, key: &SpaceKey, space: &Space, epoch: u64) -> Vec<(ListKey, PageSet)> {
        self.invalidated.notify_one();
        let _writing = self.writing.lock();
        let pages = space.invalidate(epoch).into_iter();
        let of_space = |(id, pages)| {
            let space = key.clone();
            (ListKey { space, id }, pages)
        };
        pages.map(of_space).collect()
    }

    fn free_later(&self, list: ListKey, pages: PageSet) {
        if !pages.is_empty() {
            self.unfreed.pages.lock().push((list, pages));
            self.unfreed.some.notify_one();
        }
    }

    /// Resolves when there are invalidated pages to free.
    pub async fn has_unfreed(&self) {
        self.unfreed.some.notified().await;
    }

    /// Frees all pages that were invalidated. For a thread for blocking work: it looks at each of them.
    pub fn free_invalidated(&self) {
        let _freeing = self.unfreed.freeing.lock();
        loop {
            // Not in the condition, where the lock would be held for the body.
            let Some((list, pages)) = self.unfreed.pages.lock().pop() else {
                return;
            };
            self.free(&list, &pages);
        }
    }

    fn free(&self, list: &ListKey, pages: &PageSet) {
        let mut pages = pages.iter().peekable();
        while pages.peek().is_some() {
            let _writing = self.writing.lock();
            for query in pages.by_ref().take(AT_ONCE) {
                let key = PageKey {
                    list: list.clone(),
                    query,
                };
                // A page filled since then stays.
                if self
                    .pages
                    .get(&key)
                    .is_some_and(|page| page.is_invalidated())
                {
                    self.pages.invalidate(&key);
                }
            }
        }
    }
}
