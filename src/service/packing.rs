//! Packs the stored pages that nobody asks for, in the background: no request waits for it.

use std::{ops::ControlFlow, sync::Arc, thread, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::Tasks;
use crate::cache::{PageStore, forms::COLD_AFTER};

/// How often it looks for cold pages at most.
const EVERY: Duration = Duration::from_secs(1);

/// Packs the cold pages of `tasks` until `end`.
pub async fn keep_packing(tasks: Arc<Tasks>, end: CancellationToken) {
    let mut next = None;
    while end
        .run_until_cancelled(until_some_may_be_cold(tasks.store(), next))
        .await
        .is_some()
    {
        let (tasks, end) = (tasks.clone(), end.clone());
        let packing = tokio::task::spawn_blocking(move || pack(tasks.store(), &end));
        next = packing.await.unwrap_or_else(|panic| {
            error!(error = %panic, "packing of cold pages ended in a bug");
            None
        });
    }
}

/// Waits until `next`, or where nothing is held that could turn cold until something is.
async fn until_some_may_be_cold(store: &PageStore, next: Option<Instant>) {
    match next {
        Some(next) => tokio::time::sleep_until(next.max(Instant::now() + EVERY)).await,
        None => {
            store.stirred().await;
            tokio::time::sleep(COLD_AFTER).await;
        }
    }
}

fn pack(store: &PageStore, end: &CancellationToken) -> Option<Instant> {
    store.pack_cold(Instant::now(), |pause| {
        thread::sleep(pause);
        if end.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
}
