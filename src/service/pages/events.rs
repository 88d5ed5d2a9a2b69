//! What other replicas log, and what is told to Redis when it is back.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::Pages;
use crate::{
    domain::{ListId, ListKey},
    service::{SharedCache, shared_cache::Event},
    shared::{Backlog, Session, Subscriber, Unavailable},
};

impl Pages {
    fn hear(self: &Arc<Self>, shared_cache: &SharedCache, event: Event) {
        let now = Instant::now();
        match event {
            Event::Filled { page } => shared_cache.filled(&page),
            Event::Purged { epoch } => {
                self.store.hear_purge(epoch);
                shared_cache.heard_purge(epoch);
                self.tell_invalidated();
            }
            Event::Dropped {
                space,
                epoch,
                refused,
            } => {
                let keys = shared_cache.spaces(&space);
                for key in &keys {
                    self.store.hear_drop(key, epoch, refused, now);
                }
                if !keys.is_empty() {
                    self.tell_invalidated();
                }
                // Clients may invent spaces, which are refused: what is remembered is bounded, and of those there is nothing to tell.
                if !keys.is_empty() || !refused {
                    shared_cache.heard_drop(&space, epoch, refused);
                }
            }
            Event::Moved {
                space,
                epoch,
                list,
                state,
            } => {
                let Some(id) = ListId::of_path(&list) else {
                    return;
                };
                for space in shared_cache.spaces(&space) {
                    let id = id.clone();
                    let key = ListKey { space, id };
                    self.store.hear_list(&key, epoch, &state, now);
                }
            }
            Event::Unwanted {
                fingerprint,
                before,
            } => {
                shared_cache.heard_unwanted(&fingerprint, before);
                let pages = self.clone();
                let purge = async move { pages.purge_spaces_called(&fingerprint, before).await };
                tokio::spawn(purge);
            }
        }
    }

    /// Goes by what this replica has told: it is in force when its caller goes on, though the log says it again.
    pub(super) fn hear_all(
        self: &Arc<Self>,
        shared_cache: &SharedCache,
        told: impl IntoIterator<Item = Event>,
    ) {
        for event in told {
            self.hear(shared_cache, event);
        }
    }
}

impl Subscriber for Arc<Pages> {
    fn heard(&self, entry: &[u8]) {
        if let Some(shared_cache) = self.shared_cache.get()
            && let Some(event) = Event::read(entry)
        {
            self.hear(shared_cache, event);
        }
    }

    fn beat(&self) {
        let pages = self.clone();
        tokio::spawn(async move {
            if let Some(shared_cache) = pages.shared_cache.get() {
                let sent = shared_cache.send_pending().await;
                pages.hear_all(shared_cache, sent);
                shared_cache.assert_everything().await;
            }
        });
    }

    fn catch_up<'a>(
        &'a self,
        session: &'a Session,
        backlog: Backlog,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        Box::pin(async move {
            let Some(shared_cache) = self.shared_cache.get() else {
                return Ok(());
            };
            shared_cache.load_scripts(session).await?;
            let told = shared_cache.assert_drops(session, backlog).await?;
            self.hear_all(shared_cache, told);
            shared_cache.report_calls(session).await?;
            // Once, when nothing more can fail.
            if backlog == Backlog::Trimmed {
                self.store.distrust_all(Instant::now());
            }
            Ok(())
        })
    }
}
