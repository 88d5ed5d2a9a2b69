//! Dropping pages: at once nobody is shown them any more, however many there are; what they take is freed by and by.

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::PageStore;
use crate::{
    cache::{page_set::PageSet, space::Space},
    domain::{ListKey, PageKey, SpaceKey, SpaceToken},
};

/// So many pages are freed by who dropped them, within some 100 µs.
const FEW: usize = 64;
/// And as many before other pages may be stored.
const AT_ONCE: usize = 64;

/// Pages that were dropped and still take room.
#[derive(Debug, Default)]
pub(super) struct Unfreed {
    pages: Mutex<Vec<(ListKey, PageSet)>>,
    /// One at a time: who frees what is left waits for what another has in hand.
    freeing: Mutex<()>,
    some: Notify,
}

impl PageStore {
    /// Drops all pages of `space`, of every credential. Fills under way will not be stored.
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
            self.drop_pages(key, space);
        }
    }

    /// Drops everything, and leaves it to [`Self::free_dropped`] to free it.
    pub fn purge(&self) {
        let known: Vec<_> = self.spaces.lock().known.clone().into_iter().collect();
        for (key, space) in known {
            for (list, dropped) in self.unlist(&key, &space) {
                self.free_later(list, dropped);
            }
        }
    }

    pub(super) fn drop_pages(&self, key: &SpaceKey, space: &Space) {
        for (list, dropped) in self.unlist(key, space) {
            if dropped.len() <= FEW {
                self.free(&list, &dropped);
            } else {
                self.free_later(list, dropped);
            }
        }
    }

    /// From now on nobody is shown what it returns.
    fn unlist(&self, key: &SpaceKey, space: &Space) -> Vec<(ListKey, PageSet)> {
        self.dropped.notify_one();
        let _writing = self.writing.lock();
        let dropped = space.drop_pages().into_iter();
        let of_space = |(id, pages)| {
            let space = key.clone();
            (ListKey { space, id }, pages)
        };
        dropped.map(of_space).collect()
    }

    fn free_later(&self, list: ListKey, dropped: PageSet) {
        if !dropped.is_empty() {
            self.unfreed.pages.lock().push((list, dropped));
            self.unfreed.some.notify_one();
        }
    }

    /// Resolves when there are dropped pages to be freed.
    pub async fn has_unfreed(&self) {
        self.unfreed.some.notified().await;
    }

    /// Frees all pages that were dropped. For a thread for blocking work: it looks at each of them.
    pub fn free_dropped(&self) {
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
                // What was filled anew since stays.
                if self.pages.get(&key).is_some_and(|page| page.is_dropped()) {
                    self.pages.invalidate(&key);
                }
            }
        }
    }
}
