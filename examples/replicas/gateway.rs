//! A gateway that is started again and again, and asked how it is.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use parking_lot::Mutex;
use unpod_gateway::simulator::gateway;

use crate::{
    client::{Answer, Connection},
    process::{Addresses, Process},
};

/// The client that reads.
pub(crate) const READER: &str = "replicas-reader";
/// The client that may refresh, too.
pub(crate) const REFRESHER: &str = "replicas-refresher";
/// What a gateway says of Redis.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct RedisHealth {
    pub(crate) is_up: bool,
    /// Operations that failed since its start.
    pub(crate) errors: u64,
}

/// A gateway that is started again and again.
pub(crate) struct Gateway {
    config: PathBuf,
    log: PathBuf,
    process: tokio::sync::Mutex<Option<Process>>,
    addresses: Mutex<Option<Addresses>>,
}

impl Gateway {
    pub(crate) fn new(directory: &Path, name: &str, config: &str) -> Self {
        let path = directory.join(format!("{name}.toml"));
        std::fs::write(&path, config).expect("the run's directory is ours");
        Self {
            config: path,
            log: directory.join(format!("{name}.log")),
            process: tokio::sync::Mutex::default(),
            addresses: Mutex::default(),
        }
    }

    /// Where it listens, while it is ready.
    pub(crate) fn addresses(&self) -> Option<Addresses> {
        *self.addresses.lock()
    }

    /// Starts it, and waits until it is ready.
    pub(crate) async fn start(&self) {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.expect("the run's directory is ours");
        let process = Process::start(&self.config, log).await;
        let process = process.unwrap_or_else(|| panic!("no gateway starts: see {:?}", self.log));
        *self.addresses.lock() = Some(process.addresses);
        *self.process.lock().await = Some(process);
    }

    /// Ends it by a signal, and waits for its end.
    ///
    /// # Errors
    ///
    /// Says that it did not end, or not well.
    pub(crate) async fn end(&self, signal: &str) -> Result<(), String> {
        let Some(process) = self.process.lock().await.take() else {
            return Ok(());
        };
        *self.addresses.lock() = None;
        process.end(signal).await
    }

    /// Sends a request to the admin listener; `None` while it does not run.
    pub(crate) async fn operate(&self, method: &str, path: &str) -> Option<Result<Answer, String>> {
        let admin = self.addresses()?.admin;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1");
        let request = request
            .body(Empty::<Bytes>::new())
            .expect("a path makes a request");
        Some(Connection::new(admin).ask(request).await)
    }

    /// What it says of Redis; `None` while it does not run.
    pub(crate) async fn redis(&self) -> Option<RedisHealth> {
        let answer = self.operate("GET", "/metrics").await?.ok()?;
        let metrics = String::from_utf8_lossy(&answer.body);
        let errors = metrics
            .lines()
            .filter(|line| line.starts_with("gateway_redis_errors_total{"));
        let errors = errors.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        Some(RedisHealth {
            is_up: metrics.lines().any(|line| line == "gateway_redis_up 1"),
            errors: errors.sum(),
        })
    }
}

/// The configuration of a gateway, with settings of the lane's own.
pub(crate) fn config(base_url: &str, redis: SocketAddr, replicas: usize, lane: &str) -> String {
    let base = format!(
        r#"
        server.listen = "127.0.0.1:0"
        server.drain_delay = "300ms"
        server.workers = 2
        admin.listen = "127.0.0.1:0"
        telemetry.format = "json"
        telemetry.access_log = false
        upstream.connect_timeout = "500ms"
        upstream.timeout = "3s"
        upstream.circuit.open_for = "1s"
        cache.redis.url = "redis://{redis}"
        cache.redis.replicas = {replicas}
        cache.redis.timeout = "1s"
        "#
    );
    [
        &gateway::upstream(base_url),
        &base,
        lane,
        &gateway::client(READER, READER, "spaces = ['*']"),
        &gateway::client(REFRESHER, REFRESHER, "spaces = ['*']\nmay_refresh = true"),
    ]
    .concat()
}
