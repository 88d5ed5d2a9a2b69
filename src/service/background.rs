//! Work that no request waits for: compresses idle pages, and frees invalidated ones.

use std::{ops::ControlFlow, sync::Arc, thread, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::Pages;
use crate::cache::{PageStore, store::IDLE_AFTER_IF_CROWDED};

/// How often it looks for idle pages at most.
const EVERY: Duration = Duration::from_secs(1);

/// Compresses the idle pages of `pages` until `end`.
pub async fn compress_idle_pages(pages: Arc<Pages>, end: CancellationToken) {
    let mut next = None;
    while end
        .run_until_cancelled(until_some_may_be_idle(pages.store(), next))
        .await
        .is_some()
    {
        let (pages, end) = (pages.clone(), end.clone());
        let compressing = tokio::task::spawn_blocking(move || compress(pages.store(), &end));
        next = compressing.await.unwrap_or_else(|panic| {
            error!(error = %panic, "compression of idle pages ended in a bug");
            None
        });
    }
}

/// Frees the invalidated pages of `pages` until `end`: where there were many, they are left to it.
pub async fn free_invalidated_pages(pages: Arc<Pages>, end: CancellationToken) {
    while end
        .run_until_cancelled(pages.store().has_unfreed())
        .await
        .is_some()
    {
        let pages = pages.clone();
        let freed = tokio::task::spawn_blocking(move || pages.store().free_invalidated());
        if let Err(panic) = freed.await {
            error!(error = %panic, "freeing of invalidated pages ended in a bug");
        }
    }
}

/// Waits until `next` or until the store is crowded, and where nothing could turn idle until something can.
async fn until_some_may_be_idle(store: &PageStore, next: Option<Instant>) {
    match next {
        Some(next) => {
            let next = next.max(Instant::now() + EVERY);
            while Instant::now() < next {
                let look = Instant::now() + IDLE_AFTER_IF_CROWDED;
                tokio::time::sleep_until(next.min(look)).await;
                if store.is_crowded() {
                    break;
                }
            }
        }
        None => {
            store.changed().await;
            tokio::time::sleep(IDLE_AFTER_IF_CROWDED).await;
        }
    }
}

fn compress(store: &PageStore, end: &CancellationToken) -> Option<Instant> {
    store.compress_idle(Instant::now(), |pause| {
        thread::sleep(pause);
        if end.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;

    use super::*;
    use crate::{
        cache::{
            Received, StoredPage,
            store::{IDLE_AFTER, StoreDecision},
        },
        config::Config,
        domain::{
            CredentialId, ListId, ListKey, ListPage, PageKey, PageQuery, SpaceKey, SpaceToken,
        },
        telemetry::metrics::Metrics,
    };

    /// With `[cache]` as `lines` change it.
    fn pages(lines: &str) -> Arc<Pages> {
        let text = format!(
            "[upstream]\nbase_url = 'https://unpod.example'\n\
             [upstream.credentials.default]\ntoken = 'abc'\n[cache]\n{lines}"
        );
        let config = Config::from_toml(&text).unwrap();
        let store = PageStore::new(&config.cache);
        Pages::new(store, Metrics::new(), Duration::from_secs(1), 1)
    }

    fn put(pages: &Pages, page: u32) -> Arc<StoredPage> {
        let key = PageKey {
            list: ListKey {
                space: SpaceKey {
                    credential: CredentialId(0),
                    space: SpaceToken::new("SPACE").unwrap(),
                },
                id: ListId::TASKS,
            },
            query: PageQuery {
                page,
                page_size: 20,
            },
        };
        let answer = Received {
            headers: &HeaderMap::new(),
            received: Instant::now(),
            received_unix: 0,
            response_delay: Duration::ZERO,
        };
        let page = ListPage {
            gzip: None,
            body: Bytes::from(vec![b'x'; 40 << 10]),
            count: 5,
            rows: Arc::default(),
        };
        let began = pages.store().begin(key, Instant::now());
        pages
            .store()
            .put(&began, page, &answer, StoreDecision::Store)
            .page
    }

    #[tokio::test(start_paused = true)]
    async fn pages_are_packed_once_they_are_cold_until_the_end() {
        let pages = pages("");
        let end = CancellationToken::new();
        let compressing = tokio::spawn(compress_idle_pages(pages.clone(), end.clone()));
        // Before there is any page, and after one was compressed.
        for number in 1..=2 {
            tokio::time::sleep(100 * IDLE_AFTER).await;
            let page = put(&pages, number);
            tokio::time::sleep(IDLE_AFTER - EVERY).await;
            assert!(!page.content.is_compressed(), "{number}");
            tokio::time::sleep(3 * EVERY).await;
            assert!(page.content.is_compressed(), "{number}");
        }
        end.cancel();
        compressing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_pages_to_turn_cold_sees_room_become_scarce() {
        let pages = pages("max_bytes = '200KiB'");
        let end = CancellationToken::new();
        let compressing = tokio::spawn(compress_idle_pages(pages.clone(), end.clone()));
        let first = put(&pages, 1);
        tokio::time::sleep(2 * IDLE_AFTER_IF_CROWDED).await;
        put(&pages, 2);
        put(&pages, 3);
        tokio::time::sleep(2 * IDLE_AFTER_IF_CROWDED).await;
        assert!(first.content.is_compressed());
        assert!(first.received().elapsed() < IDLE_AFTER);
        end.cancel();
        compressing.await.unwrap();
    }
}
