//! The one place that sees the whole configuration, builds the parts and joins them.

use std::{fmt, io, sync::Arc};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

mod build;
mod online;
mod parts;
mod reload;
mod watch;

pub use self::{build::Prepared, online::Asked};
use self::{
    parts::Parts,
    reload::{Reloader, Reloads},
};
use crate::{
    api::{
        self, Data,
        admin::{Admin, AdminAuth, Draining, Reload, Reloaded},
        layers::observe::Observing,
    },
    config::{Config, Problems, value::ListenAddress},
    peer::{Peer, TrustedProxies},
    server::{Acceptor, Connection, Limits, Listener, Server, Shutdown, descriptors},
    service::{Pages, Snapshot},
    telemetry::{AccessLog, Log, history::History, metrics::Metrics, traces::Export},
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
    /// Ends the connection to Redis when dropped, and the task that ends it.
    sharing: Option<(DropGuard, JoinHandle<()>)>,
    /// Ends what no request waits for when dropped: compression of idle pages, the history.
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
        let warnings = prepared.warnings();
        let Prepared { config, built } = prepared;
        // Before anything else, so that later changes are noticed.
        let files = reload::digests(config.files());
        let (parts, traces) = Parts::new(&config, built);
        let (data, data_address) = bind(&config.server.listen).await?;
        let (admin, admin_address) = bind(&config.admin.listen).await?;
        // Not before the addresses are ours: another gateway may still be writing the file.
        let snapshot = start_snapshot(&config, &parts).await;
        let sharing = parts.share(config.cache.snapshot_file.as_deref()).await;
        let access_log = log.access_log(&config.telemetry);
        let log_losses = log.losses().cloned();
        let effective = Arc::new(ArcSwap::from_pointee(config.effective()));
        let running = snapshot.as_ref().map(|running| running.snapshot.clone());
        let reloader = Reloader::new(&parts, &config, log, effective.clone(), running);
        let reloads = reloader.start(files);
        let limits = limits(&config);
        let (data, converse) = serve_data(data, &config, limits, &parts, access_log);
        let draining = Draining::default();
        let history = History::new(parts.metrics.clone());
        let admin_state = Admin {
            pages: parts.pages.clone(),
            changes: parts.changes.clone(),
            policy: parts.policy.clone(),
            metrics: parts.metrics.clone(),
            history: history.clone(),
            log_losses,
            redis: parts.redis.clone(),
            draining: draining.clone(),
            effective_config: effective,
            reload: Arc::new(reloads.clone()),
            started: Instant::now(),
        };
        let auth = AdminAuth::new(parts.policy, config.auth.max_failures);
        let router = api::admin::router(admin_state, auth);
        let admin = serve_admin(admin, router, limits);
        announce(&config, &data_address, &admin_address);
        for warning in warnings {
            warn!(
                config.warning = warning,
                "the configuration is hardly meant like this"
            );
        }
        Ok(Self {
            data_address,
            admin_address,
            tidying: parts::tidy(&parts.pages, history),
            pages: parts.pages,
            metrics: parts.metrics,
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
        // Before the last snapshot: what an operator was told is purged is in none. Its idle connections are nobody's loss.
        self.admin.end().await;
        if let Some(Snapshotting { task, end, .. }) = self.snapshot {
            end.cancel();
            // It reports its own failures.
            let _ = task.await;
        }
        drop(self.tidying);
        if let Some((end, task)) = self.sharing {
            drop(end);
            let _ = task.await;
        }
        if let Some(traces) = self.traces {
            traces.end().await;
        }
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

async fn bind(address: &ListenAddress) -> Result<(Listener, ListenAddress), StartError> {
    let error = |source| StartError::Listen {
        address: address.clone(),
        source,
    };
    let listener = Listener::bind(address).await.map_err(error)?;
    let bound = listener.address().map_err(error)?;
    Ok((listener, bound))
}

fn announce(config: &Config, data: &ListenAddress, admin: &ListenAddress) {
    info!(
        server.listen = %data,
        admin.listen = %admin,
        upstream.origin = config.upstream.base_url().origin().ascii_serialization(),
        clients.count = config.clients.len(),
        "gateway is ready"
    );
}

/// Restores what the last process left, then keeps the file up to date.
async fn start_snapshot(config: &Config, parts: &Parts) -> Option<Snapshotting> {
    let path = config.cache.snapshot_file.clone()?;
    let snapshot = Snapshot::new(path, parts.credentials(), parts.pages.clone());
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
    config: &Config,
    limits: Limits,
    parts: &Parts,
    access_log: AccessLog,
) -> (Serving, Converse) {
    let proxies = config.server.proxy_protocol;
    let acceptor = Acceptor {
        proxies: proxies.then(|| TrustedProxies::configured(&config.server)),
        tls: parts.tls.clone(),
    };
    let shutdown = Shutdown::default();
    let data = Data {
        pages: parts.pages.clone(),
        changes: parts.changes.clone(),
        closing: shutdown.closed(),
    };
    let observing = Observing {
        metrics: parts.metrics.clone(),
        access_log,
        tracer: parts.tracer.clone(),
    };
    let policy = parts.policy.clone();
    let service = api::data_router(&data, policy, &config.server, &config.auth, observing);
    let metrics = Some(parts.metrics.clone());
    let server = Server::new(service, acceptor, limits, metrics, shutdown.clone());
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
