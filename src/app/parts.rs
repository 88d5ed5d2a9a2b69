//! Parts that are built at start and by reloads.

use std::{path::Path, sync::Arc};

use arc_swap::ArcSwap;
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::build::Built;
use crate::{
    api::{Clients, LivePolicy, Policy},
    cache::PageStore,
    config::Config,
    server::Tls,
    service::{
        Changes, Pages, SharedCache,
        background::{compress_idle_pages, free_invalidated_pages},
    },
    shared::{Calls, RedisConnection},
    telemetry::{
        history::History,
        metrics::Metrics,
        traces::{Collector, CollectorHeaders, Export, Tracer},
    },
    upstream::{self, Client, Credentials, Upstream},
};

/// The parts that serve, without listeners.
pub(super) struct Parts {
    pub(super) metrics: Arc<Metrics>,
    pub(super) redis: Option<Arc<RedisConnection>>,
    pub(super) policy: LivePolicy,
    pub(super) pages: Arc<Pages>,
    pub(super) changes: Arc<Changes>,
    pub(super) tls: Option<Tls>,
    pub(super) tracer: Option<Tracer>,
    pub(super) collector_headers: Option<CollectorHeaders>,
}

impl Parts {
    /// Joins what was built; the second value exports traces, where they are configured.
    pub(super) fn new(config: &Config, built: Built) -> (Self, Option<Export>) {
        let metrics = Metrics::new();
        let redis = config.cache.redis.is_configured();
        let redis =
            redis.then(|| RedisConnection::new(config.cache.redis.clone(), metrics.clone()));
        let (credentials, issuers) = (built.credentials, built.issuers);
        let clients = Clients::new(&config.clients, &config.views, credentials, issuers, None);
        if let Some(redis) = &redis {
            clients.share_limits(redis);
        }
        let upstream = upstream(built.client, config, &metrics);
        let policy = Policy::new(config, clients, Arc::new(upstream), built.certificate_ends);
        let collector_headers = built.collector.as_ref().map(Collector::headers);
        let exporting = |collector| Tracer::exporting_to(collector, metrics.clone());
        let (tracer, traces) = built.collector.map(exporting).unzip();
        let pages = Pages::new(
            PageStore::new(&config.cache),
            metrics.clone(),
            config.server.request_timeout,
            config.server.max_waiting(),
        );
        let changes = Changes::new(&pages, &config.changes, &config.cache, metrics.clone());
        let parts = Self {
            changes,
            metrics,
            redis,
            policy: Arc::new(ArcSwap::from_pointee(policy)),
            pages,
            tls: built.tls.map(Tls::new),
            tracer,
            collector_headers,
        };
        parts.pages.set_credentials(parts.credentials());
        (parts, traces)
    }

    pub(super) fn credentials(&self) -> Arc<Credentials> {
        self.policy.load().clients.credentials().clone()
    }

    /// Shares pages and calls with the other replicas, where Redis is configured, until the guard is dropped; the task then says good-bye to
    /// the others.
    ///
    /// Waits for the first attempt to connect, so that a new replica starts with what the others have.
    /// Purges that the last process could not tell of are beside `snapshot`.
    pub(super) async fn share(
        &self,
        snapshot: Option<&Path>,
    ) -> Option<(DropGuard, JoinHandle<()>)> {
        let redis = self.redis.clone()?;
        let credentials = self.credentials();
        share_calls(&redis, &credentials);
        let mut shared_cache = SharedCache::new(redis.clone(), credentials);
        if let Some(snapshot) = snapshot {
            shared_cache.keep_pending(snapshot);
        }
        self.pages.share_pages(shared_cache);
        let end = CancellationToken::new();
        let first = Arc::new(Notify::new());
        let subscriber = Arc::new(self.pages.clone());
        let task = tokio::spawn(redis.maintain(subscriber, first.clone(), end.clone()));
        first.notified().await;
        Some((end.drop_guard(), task))
    }
}

/// Compresses the idle pages of `pages`, frees the invalidated ones and records `history`, until the guard is dropped.
pub(super) fn tidy(pages: &Arc<Pages>, history: Arc<History>) -> DropGuard {
    let end = CancellationToken::new();
    tokio::spawn(compress_idle_pages(pages.clone(), end.clone()));
    tokio::spawn(free_invalidated_pages(pages.clone(), end.clone()));
    tokio::spawn(history.keep_recording(end.clone()));
    end.drop_guard()
}

/// Counts the calls of `credentials` across all replicas.
pub(super) fn share_calls(redis: &Arc<RedisConnection>, credentials: &Credentials) {
    for credential in credentials.all() {
        let [origin, token, _] = credential.current_secrets();
        let calls = Calls::new(redis.clone(), origin, token);
        credential.budget().share(calls);
    }
}

/// The upstream stack over `client` as `config` describes it.
pub(super) fn upstream(client: Client, config: &Config, metrics: &Arc<Metrics>) -> Upstream {
    upstream::stack(client, &config.upstream, &config.normalize, metrics)
}
