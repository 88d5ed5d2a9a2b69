//! The one place that sees the whole configuration, builds the parts and joins them.

use std::{fmt, io, sync::Arc};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

mod build;
mod parts;
mod reload;
mod watch;

pub use self::build::Prepared;
use self::reload::{Reloader, Reloads};
use crate::{
    api::{
        self, Clients, Data, LivePolicy, Policy,
        admin::{Admin, AdminAuth, Draining, Reload, Reloaded},
        layers::observe::Observing,
    },
    cache::PageStore,
    config::{Config, Problems, value::ListenAddress},
    peer::{Peer, TrustedProxies},
    server::{Acceptor, Connection, Limits, Listener, Server, Shutdown, Tls, descriptors},
    service::{Pages, Snapshot},
    shared::RedisConnection,
    telemetry::{
        Log,
        metrics::Metrics,
        traces::{Collector, Export, Tracer},
    },
    upstream::{Credentials, LimitLayer},
};

/// Connections of operators and probes.
const ADMIN_CONNECTIONS: usize = 100;

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the configuration cannot be used")]
    Config(#[from] Problems),
    #[error("cannot listen on {address}")]
    Listen {
        address: ListenAddress,
        #[source]
        source: io::Error,
    },
}

/// A running gateway: both listeners bound and served.
#[derive(Debug)]
pub struct Gateway {
    data_address: ListenAddress,
    admin_address: ListenAddress,
    pages: Arc<Pages>,
    metrics: Arc<Metrics>,
    draining: Draining,
    config: Arc<Config>,
    data: Serving,
    converse: Converse,
    admin: Serving,
    snapshot: Option<Snapshotting>,
    /// Ends the connection to Redis when dropped.
    sharing: Option<DropGuard>,
    /// Ends the compression of idle pages when dropped.
    tidying: DropGuard,
    traces: Option<Export>,
    reloads: Reloads,
}

/// The task that keeps the snapshot up to date.
#[derive(Debug)]
struct Snapshotting {
    snapshot: Arc<Snapshot>,
    task: JoinHandle<()>,
    end: CancellationToken,
}

/// Serves a connection as the data listener does.
#[derive(Clone)]
struct Converse(Arc<ServeOne>);

type ServeOne = dyn Fn(Box<dyn Connection>, Peer) -> BoxFuture<'static, ()> + Send + Sync;

impl fmt::Debug for Converse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Converse")
    }
}

#[derive(Debug)]
struct Serving {
    task: JoinHandle<bool>,
    shutdown: Shutdown,
}

impl Gateway {
    /// Builds every part, binds both listeners and begins to serve.
    ///
    /// # Errors
    ///
    /// Returns everything wrong with the configuration, or the address that cannot be had.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_logging(config, Log::default()).await
    }

    /// As [`Gateway::start`], where a reload may change what goes to `log`.
    ///
    /// # Errors
    ///
    /// As [`Gateway::start`].
    pub async fn start_logging(config: Config, log: Log) -> Result<Self, StartError> {
        Self::start_prepared(Prepared::new(config.into())?, log).await
    }

    /// Binds both listeners and begins to serve; a reload may change what goes to `log`.
    ///
    /// # Errors
    ///
    /// Returns the address that cannot be had.
    pub async fn start_prepared(prepared: Prepared, log: Log) -> Result<Self, StartError> {
        let Prepared { config, built } = prepared;
        // Before anything else: what changes from here on is a change.
        let files = reload::digests(config.files());
        let tls = built.tls.map(Tls::new);
        let metrics = Metrics::new();
        let redis = config.cache.redis.is_configured();
        let redis =
            redis.then(|| RedisConnection::new(config.cache.redis.clone(), metrics.clone()));
        let (credentials, issuers) = (built.credentials, built.issuers);
        let clients = Clients::new(&config.clients, &config.views, credentials, issuers, None);
        if let Some(redis) = &redis {
            clients.share_limits(redis);
        }
        let credentials = clients.credentials().clone();
        let limit = LimitLayer::new(config.upstream.max_concurrency, config.upstream.max_queue);
        let upstream = parts::upstream(built.client, &config, limit.clone(), &metrics);
        let policy = Policy::new(&config, clients, Arc::new(upstream));
        let policy: LivePolicy = Arc::new(ArcSwap::from_pointee(policy));
        let collector_headers = built.collector.as_ref().map(Collector::headers);
        let exporting = built.collector;
        let exporting = exporting.map(|collector| Tracer::exporting_to(collector, metrics.clone()));
        let (tracer, traces) = exporting.unzip();
        let pages = Pages::new(
            PageStore::new(&config.cache),
            metrics.clone(),
            config.server.request_timeout,
            config.server.max_waiting(),
        );
        let draining = Draining::default();
        let data = Listener::bind(&config.server.listen)
            .await
            .map_err(listen_error(&config.server.listen))?;
        let admin = Listener::bind(&config.admin.listen)
            .await
            .map_err(listen_error(&config.admin.listen))?;
        let data_address = data
            .address()
            .map_err(listen_error(&config.server.listen))?;
        let admin_address = admin
            .address()
            .map_err(listen_error(&config.admin.listen))?;
        // Not before the addresses are ours: another gateway may still be writing the file.
        let snapshot = start_snapshot(&config, &pages, credentials.clone()).await;
        let sharing = match &redis {
            Some(redis) => Some(parts::share(redis.clone(), &pages, credentials).await),
            None => None,
        };
        let log_losses = log.losses().cloned();
        let effective = Arc::new(ArcSwap::from_pointee(config.effective()));
        let observing = Observing {
            metrics: metrics.clone(),
            access_log: log.access_log(&config.telemetry),
            tracer,
        };
        let reloader = Reloader {
            policy: policy.clone(),
            pages: pages.clone(),
            snapshot: snapshot.as_ref().map(|running| running.snapshot.clone()),
            metrics: metrics.clone(),
            limit: limit.clone(),
            redis: redis.clone(),
            tls: tls.clone(),
            collector_headers,
            log,
            effective: effective.clone(),
            started: config.clone(),
            in_force: Config::clone(&config),
        };
        let reloads = reloader.start(files);
        let acceptor = Acceptor {
            proxies: config
                .server
                .proxy_protocol
                .then(|| TrustedProxies::configured(&config.server)),
            tls,
        };
        let limits = limits(&config);
        let (data, converse) =
            serve_data(data, acceptor, &config, limits, &pages, &policy, observing);
        let auth = AdminAuth::new(policy.clone(), config.auth.max_failures);
        let admin_state = Admin {
            pages: pages.clone(),
            policy,
            metrics: metrics.clone(),
            limit,
            log_losses,
            redis,
            draining: draining.clone(),
            effective_config: effective,
            reload: Arc::new(reloads.clone()),
            started: Instant::now(),
        };
        let router = api::admin::router(admin_state, auth);
        let admin = serve_admin(admin, router, limits);
        info!(
            server.listen = %data_address,
            admin.listen = %admin_address,
            upstream.origin = config.upstream.base_url().origin().ascii_serialization(),
            clients.count = config.clients.len(),
            "gateway is ready"
        );
        if config.clients.is_empty() {
            warn!("no client is configured: every request will be refused; add [[clients]]");
        }
        Ok(Self {
            data_address,
            admin_address,
            tidying: parts::tidy(&pages),
            pages,
            metrics,
            draining,
            config,
            data,
            converse,
            admin,
            snapshot,
            sharing,
            traces,
            reloads,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn data_address(&self) -> &ListenAddress {
        &self.data_address
    }

    /// Where operators connect.
    #[must_use]
    pub fn admin_address(&self) -> &ListenAddress {
        &self.admin_address
    }

    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    #[must_use]
    pub fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    /// Serves a connection from `peer` that came by no listener, such as one in memory, until it ends.
    pub fn converse(&self, io: Box<dyn Connection>, peer: Peer) -> BoxFuture<'static, ()> {
        (self.converse.0)(io, peer)
    }

    /// Reads the configuration anew and puts it in force, as `POST /reload` does. `who` asked is told to the log.
    ///
    /// # Errors
    ///
    /// Returns everything wrong with the new configuration; the old one stays in force.
    pub async fn reload(&self, who: &'static str) -> Result<Reloaded, Problems> {
        self.reloads.reload(who.to_owned()).await
    }

    /// Ends in order: readiness fails while the listener still accepts, then it closes, then requests in flight end.
    ///
    /// Returns whether nobody was cut off.
    pub async fn drain(self) -> bool {
        info!("draining");
        self.draining.begin();
        self.data.shutdown.begin();
        tokio::time::sleep(self.config.server.drain_delay).await;
        let complete = self.data.end().await;
        if let Some(Snapshotting { task, end, .. }) = self.snapshot {
            end.cancel();
            // It reports its own failures.
            let _ = task.await;
        }
        drop(self.tidying);
        drop(self.sharing);
        if let Some(traces) = self.traces {
            traces.end().await;
        }
        // Last, so that probes and metrics are answered to the end. Its idle connections are nobody's loss.
        self.admin.end().await;
        info!(drain.complete = complete, "gateway has ended");
        complete
    }
}

impl Serving {
    async fn end(self) -> bool {
        self.shutdown.complete();
        self.task.await.unwrap_or(false)
    }
}

/// Restores what the last process left, then keeps the file up to date.
async fn start_snapshot(
    config: &Config,
    pages: &Arc<Pages>,
    credentials: Arc<Credentials>,
) -> Option<Snapshotting> {
    let path = config.cache.snapshot_file.clone()?;
    let snapshot = Snapshot::new(path, credentials, pages.clone());
    snapshot.restore().await;
    let end = CancellationToken::new();
    Some(Snapshotting {
        task: tokio::spawn(snapshot.clone().keep_writing(end.clone())),
        snapshot,
        end,
    })
}

/// The limits of the data listener: as configured, and as many connections as there are descriptors for.
fn limits(config: &Config) -> Limits {
    let limits = Limits::new(&config.server);
    let files = descriptors::raise_limit();
    let others = ADMIN_CONNECTIONS + 2 * config.upstream.max_concurrency;
    let wanted = limits.max_connections;
    let max_connections = descriptors::connections_within(files, others, wanted);
    if max_connections < wanted {
        warn!(
            server.max_connections = wanted,
            limit.open_files = files,
            server.connections = max_connections,
            "fewer connections than server.max_connections fit into the limit of open files; raise it (ulimit -n, LimitNOFILE)"
        );
    }
    Limits {
        max_connections,
        ..limits
    }
}

fn serve_data(
    listener: Listener,
    acceptor: Acceptor,
    config: &Config,
    limits: Limits,
    pages: &Arc<Pages>,
    policy: &LivePolicy,
    observing: Observing,
) -> (Serving, Converse) {
    let data = Data {
        pages: pages.clone(),
    };
    let metrics = observing.metrics.clone();
    let service = api::data_router(
        &data,
        policy.clone(),
        &config.server,
        &config.auth,
        observing,
    );
    let shutdown = Shutdown::default();
    let server = Server::new(service, acceptor, limits, Some(metrics), shutdown.clone());
    let serving = Serving {
        task: tokio::spawn(server.clone().serve(listener)),
        shutdown,
    };
    let converse = Converse(Arc::new(move |io, peer| {
        Box::pin(server.clone().connection(io, peer))
    }));
    (serving, converse)
}

fn serve_admin(listener: Listener, router: axum::Router, limits: Limits) -> Serving {
    let shutdown = Shutdown::default();
    let limits = Limits {
        max_connections: ADMIN_CONNECTIONS,
        drain_timeout: std::time::Duration::from_secs(1),
        ..limits
    };
    let service = router.into_service();
    let server = Server::new(service, Acceptor::default(), limits, None, shutdown.clone());
    Serving {
        task: tokio::spawn(server.serve(listener)),
        shutdown,
    }
}

fn listen_error(address: &ListenAddress) -> impl FnOnce(io::Error) -> StartError {
    let address = address.clone();
    move |source| StartError::Listen { address, source }
}
