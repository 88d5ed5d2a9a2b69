//! A gateway in a process of its own, which is this program again.

use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    time::timeout,
};
use unpod_gateway::simulator::world;

use crate::{
    client::{Answer, Connection},
    redis_server::send,
};

/// The client that reads.
pub(crate) const READER: &str = "replicas-reader";
/// The client that may refresh, too.
pub(crate) const REFRESHER: &str = "replicas-refresher";
/// How long a start or an end may take on a busy machine; `drain_timeout` is 20 s.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a running gateway listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
}

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
    child: tokio::sync::Mutex<Option<Child>>,
    addresses: Mutex<Option<Addresses>>,
}

impl Gateway {
    pub(crate) fn new(directory: &Path, name: &str, config: &str) -> Self {
        let path = directory.join(format!("{name}.toml"));
        std::fs::write(&path, config).expect("the run's directory is ours");
        Self {
            config: path,
            log: directory.join(format!("{name}.log")),
            child: tokio::sync::Mutex::default(),
            addresses: Mutex::default(),
        }
    }

    /// Where it listens, while it is ready.
    pub(crate) fn addresses(&self) -> Option<Addresses> {
        *self.addresses.lock()
    }

    /// Starts it, and waits until it is ready.
    pub(crate) async fn start(&self) {
        let program = std::env::current_exe().expect("this program is a file");
        let mut command = Command::new(program);
        command
            .args(["serve", "--config"])
            .arg(&self.config)
            .env_clear();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .expect("this program runs");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let log = File::options().create(true).append(true).open(&self.log);
        let mut log = log.expect("the run's directory is ours");
        let ready = timeout(PATIENCE, ready(&mut lines, &mut log)).await;
        let ready = ready.ok().flatten();
        let ready = ready.unwrap_or_else(|| panic!("no gateway starts: see {:?}", self.log));
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let _ = writeln!(log, "{line}");
            }
        });
        *self.child.lock().await = Some(child);
        *self.addresses.lock() = Some(ready);
    }

    /// Ends it by a signal, and waits for its end.
    ///
    /// # Errors
    ///
    /// Says that it did not end, or not well.
    pub(crate) async fn end(&self, signal: &str) -> Result<(), String> {
        let Some(mut child) = self.child.lock().await.take() else {
            return Ok(());
        };
        *self.addresses.lock() = None;
        send(&child, signal);
        match timeout(PATIENCE, child.wait()).await {
            Ok(Ok(status)) if signal == "-KILL" || status.success() => Ok(()),
            Ok(end) => Err(format!("{signal} ends it with {end:?}")),
            Err(_) => Err(format!("{signal} does not end it")),
        }
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

/// Reads the log up to the line that names the addresses.
async fn ready(lines: &mut Lines<BufReader<ChildStderr>>, log: &mut File) -> Option<Addresses> {
    loop {
        let line = lines.next_line().await.ok()??;
        let _ = writeln!(log, "{line}");
        if line.contains("gateway is ready") {
            let ready: serde_json::Value = serde_json::from_str(&line).ok()?;
            let address = |name: &str| ready[name].as_str()?.parse().ok();
            return Some(Addresses {
                data: address("server.listen")?,
                admin: address("admin.listen")?,
            });
        }
    }
}

/// The configuration of a gateway, with settings of the lane's own.
pub(crate) fn config(base_url: &str, redis: SocketAddr, replicas: usize, lane: &str) -> String {
    let client = |key: &str, rest: &str| {
        let digest: String = Sha256::digest(key)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!(
            "[[clients]]\nname = \"{key}\"\nkey_sha256 = [\"{digest}\"]\nspaces = [\"*\"]\n{rest}\n"
        )
    };
    let base = format!(
        r#"
        server.listen = "127.0.0.1:0"
        server.drain_delay = "300ms"
        server.workers = 2
        admin.listen = "127.0.0.1:0"
        telemetry.format = "json"
        telemetry.access_log = false
        upstream.base_url = "{base_url}"
        upstream.connect_timeout = "500ms"
        upstream.timeout = "3s"
        upstream.circuit.open_for = "1s"
        upstream.credentials.default.token = "{token}"
        upstream.credentials.default.org_handle = "{organization}"
        cache.redis.url = "redis://{redis}"
        cache.redis.replicas = {replicas}
        cache.redis.timeout = "1s"
        "#,
        token = world::ACME_TOKEN,
        organization = world::ACME,
    );
    [
        &base,
        lane,
        &client(READER, ""),
        &client(REFRESHER, "may_refresh = true"),
    ]
    .concat()
}
