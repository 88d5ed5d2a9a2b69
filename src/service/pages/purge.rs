//! Purging: here, and on every replica.

use std::sync::Arc;

use super::Pages;
use crate::{cache::PageStore, domain::SpaceToken, off_runtime::on_a_thread, service::SharedCache};

impl Pages {
    /// Drops all pages of `space`, of every credential, on every replica. For a task that nobody ends before it.
    pub async fn purge_space(self: &Arc<Self>, space: &SpaceToken) {
        let of_space = space.clone();
        self.purge_here(move |store: &PageStore| store.purge_space(&of_space))
            .await;
        if let Some(shared_cache) = self.shared_cache.get() {
            let dropped = shared_cache.drop_space(space).await;
            self.hear_all(shared_cache, dropped);
        }
    }

    /// Drops all pages of the space that prints as `fingerprint`, on every replica. `false` where nobody knows of one. As
    /// [`Self::purge_space`].
    pub async fn purge_fingerprint(self: &Arc<Self>, fingerprint: &str) -> bool {
        let is_known = self.purge_spaces_called(fingerprint, u64::MAX).await;
        let Some(shared_cache) = self.shared_cache.get().filter(|_| !is_known) else {
            return is_known;
        };
        // Another replica may know of it.
        shared_cache.drop_fingerprint(fingerprint).await.is_ok()
    }

    /// Drops everything, on every replica. As [`Self::purge_space`].
    pub async fn purge(self: &Arc<Self>) {
        self.purge_here(PageStore::purge).await;
        if let Some(shared_cache) = self.shared_cache.get() {
            let purged = shared_cache.drop_everything().await;
            self.hear_all(shared_cache, purged);
        }
    }

    /// Drops the spaces of this fingerprint that are of an earlier epoch. Whether there was any.
    pub(super) async fn purge_spaces_called(
        self: &Arc<Self>,
        fingerprint: &str,
        before: u64,
    ) -> bool {
        let (pages, fingerprint) = (self.clone(), fingerprint.to_owned());
        let called = move || {
            let is_meant =
                |space: &SpaceToken, epoch| epoch < before && space.to_string() == fingerprint;
            pages.store.spaces_where(is_meant)
        };
        let known = on_a_thread(called).await;
        for space in &known {
            self.purge_space(space).await;
        }
        !known.is_empty()
    }

    /// How many purges the other replicas have not been told of, since Redis is lost.
    #[must_use]
    pub fn pending_purges(&self) -> usize {
        let shared_cache = self.shared_cache.get();
        shared_cache.map_or(0, SharedCache::pending_drops)
    }

    /// Drops pages of this replica and frees what they take: there may be many.
    async fn purge_here(self: &Arc<Self>, invalidate: impl FnOnce(&PageStore) + Send + 'static) {
        let pages = self.clone();
        on_a_thread(move || {
            invalidate(&pages.store);
            pages.tell_invalidated();
            pages.store.free_invalidated();
        })
        .await;
    }
}
