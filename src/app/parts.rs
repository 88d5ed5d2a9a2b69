//! Parts that are built at start and by reloads.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    config::Config,
    service::{
        Pages, SharedCache,
        background::{compress_idle_pages, free_invalidated_pages},
    },
    shared::{Calls, RedisConnection},
    telemetry::metrics::Metrics,
    upstream::{self, Client, Credentials, LimitLayer, Upstream},
};

/// Shares pages and calls with the replicas behind `redis`, until the guard is dropped.
///
/// Waits for the first attempt to connect, so that a new replica starts with what the others have.
pub(super) async fn share(
    redis: Arc<RedisConnection>,
    pages: &Arc<Pages>,
    credentials: Arc<Credentials>,
) -> DropGuard {
    share_calls(&redis, &credentials);
    pages.share_pages(SharedCache::new(redis.clone(), credentials));
    let end = CancellationToken::new();
    let first = Arc::new(Notify::new());
    let subscriber = Arc::new(pages.clone());
    tokio::spawn(redis.maintain(subscriber, first.clone(), end.clone()));
    first.notified().await;
    end.drop_guard()
}

/// Compresses the idle pages of `pages` and frees the invalidated ones, until the guard is dropped.
pub(super) fn tidy(pages: &Arc<Pages>) -> DropGuard {
    let end = CancellationToken::new();
    tokio::spawn(compress_idle_pages(pages.clone(), end.clone()));
    tokio::spawn(free_invalidated_pages(pages.clone(), end.clone()));
    end.drop_guard()
}

/// Counts the calls of `credentials` across all replicas.
pub(super) fn share_calls(redis: &Arc<RedisConnection>, credentials: &Credentials) {
    for credential in credentials.all() {
        let origin = credentials.origin().as_str();
        let calls = Calls::new(redis.clone(), origin, &credential.name);
        credential.budget().share(calls);
    }
}

/// The upstream stack over `client` as `config` describes it, within the slots of `limit`.
pub(super) fn upstream(
    client: Client,
    config: &Config,
    limit: LimitLayer,
    metrics: &Arc<Metrics>,
) -> Upstream {
    upstream::stack(client, &config.upstream, &config.normalize, limit, metrics)
}
