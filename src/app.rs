//! The one place that sees the whole configuration, builds the parts and joins them.

use std::{io, sync::Arc};

use arc_swap::ArcSwap;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::{
        self, Clients, Data, Issuers, LivePolicy, Policy,
        admin::{Admin, Draining},
        layers::observe::AccessLog,
    },
    cache::{PageStore, snapshot::Owners},
    config::{Config, Problems, value::ListenAddress},
    server::{self, Limits, Listener, Shutdown},
    service::{Snapshot, Tasks},
    telemetry::metrics::Metrics,
    upstream::{self, BuildError, Client, Credentials},
};

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the configuration cannot be used")]
    Config(#[from] Problems),
    #[error("the upstream client cannot be set up")]
    Upstream(#[from] BuildError),
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
    tasks: Arc<Tasks>,
    metrics: Arc<Metrics>,
    draining: Draining,
    config: Arc<Config>,
    data: Serving,
    admin: Serving,
    snapshot: Option<Snapshotting>,
}

/// The task that keeps the snapshot up to date.
#[derive(Debug)]
struct Snapshotting {
    task: JoinHandle<()>,
    end: CancellationToken,
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
    /// Returns what is wrong with a secret's file, the TLS set-up, or an address.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let metrics = Metrics::new(config.upstream.credentials.keys().map(String::as_str));
        let credentials = Credentials::load(&config.upstream)?;
        let issuers = Issuers::load(&config.auth, None)?;
        let clients = Clients::new(&config.clients, credentials, issuers);
        let policy: LivePolicy = Arc::new(ArcSwap::from_pointee(Policy::new(&config, clients)));
        let stack = upstream::stack(
            Client::new(&config.upstream)?,
            &config.upstream,
            &config.normalize,
            &metrics,
        );
        let tasks = Tasks::new(
            PageStore::new(&config.cache),
            stack,
            metrics.clone(),
            config.server.request_timeout,
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
        let snapshot = start_snapshot(&config, &tasks, policy.load().clients.credentials());
        let limits = Limits::new(&config.server);
        let data = serve_data(data, &config, limits, &tasks, &policy, &metrics);
        let router = api::admin::router(Admin {
            tasks: tasks.clone(),
            policy,
            metrics: metrics.clone(),
            draining: draining.clone(),
            effective_config: config.effective().into(),
        });
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
            tasks,
            metrics,
            draining,
            config,
            data,
            admin,
            snapshot,
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
    pub fn tasks(&self) -> &Arc<Tasks> {
        &self.tasks
    }

    /// Ends in order: readiness fails while the listener still accepts, then it closes, then requests in flight end.
    ///
    /// Returns whether nobody was cut off.
    pub async fn drain(self) -> bool {
        info!("draining");
        self.draining.begin();
        self.data.shutdown.closing.cancel();
        tokio::time::sleep(self.config.server.drain_delay).await;
        let complete = self.data.end().await;
        if let Some(Snapshotting { task, end }) = self.snapshot {
            end.cancel();
            // It reports its own failures.
            let _ = task.await;
        }
        // Last, so that probes and metrics are answered to the end. Its idle connections are nobody's loss.
        self.admin.end().await;
        info!(drain.complete = complete, "gateway has ended");
        complete
    }
}

impl Serving {
    async fn end(self) -> bool {
        self.shutdown.closing.cancel();
        self.shutdown.closed.cancel();
        self.task.await.unwrap_or(false)
    }
}

/// Restores what the last process left, then keeps the file up to date.
fn start_snapshot(
    config: &Config,
    tasks: &Arc<Tasks>,
    credentials: &Credentials,
) -> Option<Snapshotting> {
    let path = config.cache.snapshot_file.clone()?;
    let origin = config.upstream.base_url().as_str().as_bytes();
    let mut owners = Owners::default();
    for credential in credentials.all() {
        let [token, organization] = credential.secret();
        owners.add(
            credential.id,
            &credential.name,
            &[origin, token, organization],
        );
    }
    let snapshot = Snapshot::new(path, owners, tasks.clone());
    snapshot.restore();
    let end = CancellationToken::new();
    Some(Snapshotting {
        task: tokio::spawn(snapshot.keep_writing(end.clone())),
        end,
    })
}

fn serve_data(
    listener: Listener,
    config: &Config,
    limits: Limits,
    tasks: &Arc<Tasks>,
    policy: &LivePolicy,
    metrics: &Arc<Metrics>,
) -> Serving {
    let data = Data {
        tasks: tasks.clone(),
    };
    let access_log = if config.telemetry.access_log {
        AccessLog::On
    } else {
        AccessLog::Off
    };
    let service = api::data_service(
        data,
        policy.clone(),
        &config.server,
        &config.auth,
        access_log,
        metrics.clone(),
    );
    let shutdown = Shutdown::default();
    let serving = server::serve(
        listener,
        service,
        limits,
        Some(metrics.clone()),
        shutdown.clone(),
    );
    Serving {
        task: tokio::spawn(serving),
        shutdown,
    }
}

fn serve_admin(listener: Listener, router: axum::Router, limits: Limits) -> Serving {
    let shutdown = Shutdown::default();
    let limits = Limits {
        drain_timeout: std::time::Duration::from_secs(1),
        ..limits
    };
    let service = router.into_service();
    Serving {
        task: tokio::spawn(server::serve(
            listener,
            service,
            limits,
            None,
            shutdown.clone(),
        )),
        shutdown,
    }
}

fn listen_error(address: &ListenAddress) -> impl FnOnce(io::Error) -> StartError {
    let address = address.clone();
    move |source| StartError::Listen { address, source }
}
