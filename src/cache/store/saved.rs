//! The stored pages on their way to a snapshot and back.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Began, PageStore, StoreDecision};
use crate::{
    cache::{Received, StoredPage, refresh_plan::RequestRate, snapshot::SavedPage},
    domain::ListPage,
};

/// What a snapshot holds of a page beside its body and its header, and more.
const REST_OF_A_PAGE: usize = 1024;

impl PageStore {
    /// The most bytes that a snapshot of this store has.
    #[must_use]
    pub fn longest_snapshot(&self) -> u64 {
        // A header may take twice its length in JSON; a store of the least size still has its frames.
        2 * self.max_bytes as u64 + (1 << 20)
    }

    /// Resolves when pages were invalidated: a copy of them elsewhere is out of date.
    pub async fn invalidated(&self) {
        self.invalidated.notified().await;
    }

    /// The stored pages, for a snapshot.
    ///
    /// Its reader has them all uncompressed: as many as the store may hold so, those in use first.
    pub fn saved(&self, now: Instant, now_unix_ms: u64) -> impl Iterator<Item = SavedPage> {
        let mut pages: Vec<_> = self.pages.iter().collect();
        pages.sort_by_key(|(_, page)| page.content.is_compressed());
        let mut room = self.max_bytes;
        pages.into_iter().filter_map(move |(key, page)| {
            if page.list.space.invalidated_since(page.version) {
                return None;
            }
            let header = page.stored_headers().iter();
            let header: usize = header
                .map(|(name, value)| name.as_str().len() + value.len())
                .sum();
            room = room.checked_sub(page.content.length() + header + REST_OF_A_PAGE)?;
            let age = u64::try_from(page.age(now).as_millis()).unwrap_or(u64::MAX);
            Some(SavedPage {
                key: (*key).clone(),
                born_unix_ms: now_unix_ms.saturating_sub(age),
                lifetime: page.freshness(now).lifetime(),
                headers: page.stored_headers().clone(),
                body: page.content.page().body,
                epoch: page.version.epoch,
            })
        })
    }

    /// Stores a page of a snapshot, of which `page` was read.
    pub fn restore(&self, saved: &SavedPage, page: ListPage, now: Instant, now_unix_ms: u64) {
        // Other replicas may share it.
        let space = self.space(&saved.key.list.space, saved.epoch, now);
        // The file may have been written while the space was dropped.
        if saved.epoch < space.epoch() {
            return;
        }
        self.hear_drop(&saved.key.list.space, saved.epoch, false, now);
        let began = self.begin(saved.key.clone(), now);
        let began = began.at(began.version.of_no_generation(), None);
        let answer = Received {
            headers: &saved.headers,
            received: now,
            received_unix: i64::try_from(now_unix_ms / 1000).unwrap_or(i64::MAX),
            response_delay: Duration::ZERO,
        };
        let age = Duration::from_millis(now_unix_ms.saturating_sub(saved.born_unix_ms));
        let page = self.page_again(&began, page, &answer, age, RequestRate::new(now));
        let page = page.restored(age, saved.lifetime);
        self.store_page(&began, page, &answer, StoreDecision::Store);
    }

    /// A page of `age` that was stored before, here or elsewhere; its age and lifetime are still to be set.
    pub(super) fn page_again(
        &self,
        began: &Began,
        page: ListPage,
        answer: &Received<'_>,
        age: Duration,
        request_rate: RequestRate,
    ) -> StoredPage {
        let (content, outline) = self.content(&began.key, page, answer.received, age);
        let lifetimes = self
            .rules()
            .lifetimes_of(&began.key, content.table(), answer.received);
        StoredPage::new(
            Arc::new(content),
            outline,
            answer,
            &lifetimes,
            1.0,
            began.clone(),
            request_rate,
        )
    }
}
