//! What other replicas publish, and catching up with what was published while Redis was lost.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::Pages;
use crate::{
    domain::{ListId, ListKey},
    service::{SharedCache, shared_cache::Event},
    shared::{Nonce, Session, Subscriber, Unavailable},
};

impl Subscriber for Arc<Pages> {
    fn heard(&self, message: &[u8]) {
        let Some(shared_cache) = self.shared_cache.get() else {
            return;
        };
        let Some(event) = shared_cache.event(message) else {
            return;
        };
        match event {
            Event::Filled { page } => shared_cache.filled(&page),
            Event::Purged { purge } => {
                self.store.purge();
                shared_cache.redis().purged(purge);
            }
            Event::Dropped {
                space,
                epoch,
                refused,
            } => {
                if let Some(key) = shared_cache.space(&space) {
                    let now = Instant::now();
                    self.store
                        .invalidate_other_epochs(&key, epoch.0, refused, now);
                }
            }
            Event::Moved {
                space,
                list,
                generation,
            } => {
                let list = shared_cache.space(&space).zip(ListId::of_path(&list));
                if let Some((space, id)) = list {
                    let key = ListKey { space, id };
                    self.store.move_to(&key, generation.0, Instant::now());
                }
            }
            Event::Unwanted { fingerprint } => {
                let pages = self.clone();
                tokio::spawn(async move { pages.purge_spaces_called(&fingerprint).await });
            }
        }
    }

    fn beat(&self) {
        let pages = self.clone();
        let has_pending = self
            .shared_cache
            .get()
            .is_some_and(SharedCache::has_pending);
        if has_pending {
            tokio::spawn(async move {
                if let Some(shared_cache) = pages.shared_cache.get() {
                    shared_cache.send_pending_late().await;
                }
            });
        }
    }

    fn catch_up<'a>(
        &'a self,
        session: &'a Session,
    ) -> BoxFuture<'a, Result<Option<Nonce>, Unavailable>> {
        Box::pin(async move {
            let Some(shared_cache) = self.shared_cache.get() else {
                return Ok(None);
            };
            let purge = shared_cache.send_pending(session).await?;
            shared_cache.report_calls(session).await?;
            let is_purged = session
                .before
                .is_some_and(|before| before.purge != session.era.purge);
            if purge.is_some() || is_purged {
                self.store.purge();
                return Ok(purge);
            }
            let stored = self.store.marks();
            for (key, mark) in shared_cache.still(session, stored).await? {
                match mark {
                    Some(mark) => self.store.confirm(&key, mark, Instant::now()),
                    None => self.store.invalidate_space(&key.space),
                }
            }
            Ok(None)
        })
    }
}
