//! Redis servers of the run's own: a primary and its copy.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use redis::{FromRedisValue, RedisResult};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use unpod_gateway::simulator::SplitMix64;

use crate::{process::send, proxy::Proxy};

/// How long a command, a start or the first copy may take.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A running server; dropping it kills it.
pub(crate) struct RedisServer {
    server: Child,
    directory: PathBuf,
    pub(crate) port: u16,
}

impl RedisServer {
    /// Starts one on a free port with the data that its directory holds.
    pub(crate) async fn start(directory: PathBuf) -> Self {
        std::fs::create_dir_all(&directory).expect("the run's directory is ours");
        // Another process may take the port in between.
        for _ in 0..10 {
            let port = free_port();
            let mut redis = Self {
                server: serve(&directory, port),
                directory: directory.clone(),
                port,
            };
            if redis.answers().await {
                return redis;
            }
        }
        panic!("no redis-server would start");
    }

    async fn answers(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && self.server.try_wait().is_ok_and(|end| end.is_none()) {
            if self.run::<String>("PING").await.is_ok() {
                return true;
            }
            sleep(POLL).await;
        }
        false
    }

    /// Kills it and starts it again; its port changes.
    pub(crate) async fn restart(&mut self, data: Data) {
        self.kill().await;
        if data == Data::None {
            // There is none where it never saved.
            let _ = std::fs::remove_file(self.directory.join("dump.rdb"));
        }
        *self = Self::start(self.directory.clone()).await;
    }

    pub(crate) async fn kill(&mut self) {
        self.server.kill().await.expect("it is ours to kill");
    }

    pub(crate) fn signal(&self, signal: &str) {
        send(&self.server, signal);
    }

    /// Copies what another holds, and goes on copying.
    pub(crate) async fn follow(&self, primary: &Self) {
        let started = self
            .run::<()>(&format!("REPLICAOF 127.0.0.1 {}", primary.port))
            .await;
        started.expect("a server may become a copy");
        let until = Instant::now() + PATIENCE;
        while !self.is_linked().await {
            assert!(Instant::now() < until, "the copy is not linked");
            sleep(POLL).await;
        }
    }

    async fn is_linked(&self) -> bool {
        let info = self.run::<String>("INFO replication").await;
        info.is_ok_and(|info| info.contains("master_link_status:up"))
    }

    /// Runs a command, given as words.
    pub(crate) async fn run<T: FromRedisValue>(&self, command: &str) -> RedisResult<T> {
        self.run_words(&command.split(' ').collect::<Vec<_>>())
            .await
    }

    pub(crate) async fn run_words<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let running = async {
            let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
            let mut connection = client.get_multiplexed_async_connection().await?;
            let mut command = redis::cmd(words[0]);
            words[1..].iter().for_each(|word| {
                command.arg(*word);
            });
            command.query_async(&mut connection).await
        };
        let ended = timeout(PATIENCE, running).await;
        ended.unwrap_or_else(|_| Err((redis::ErrorKind::Io, "no answer").into()))
    }
}

/// What a server that starts again still has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Data {
    None,
    /// What it had when it last saved.
    Saved,
}

/// The servers of a lane; the proxies lead to the primary.
pub(crate) struct Servers {
    pub(crate) primary: RedisServer,
    copy: RedisServer,
}

impl Servers {
    pub(crate) async fn start(directory: PathBuf) -> Self {
        let servers = Self {
            primary: RedisServer::start(directory.join("redis-0")).await,
            copy: RedisServer::start(directory.join("redis-1")).await,
        };
        servers.copy.follow(&servers.primary).await;
        servers
    }

    fn lead(&self, proxies: &[Proxy]) {
        for proxy in proxies {
            proxy.lead_to(self.primary.port);
        }
    }

    pub(crate) async fn restart(&mut self, data: Data, proxies: &[Proxy]) {
        self.primary.restart(data).await;
        self.lead(proxies);
        self.copy.follow(&self.primary).await;
    }

    /// From here on the copy lacks what is written.
    pub(crate) async fn promote(&self) {
        let promoted = self.copy.run::<()>("REPLICAOF NO ONE").await;
        promoted.expect("a copy can be promoted");
    }

    /// Leads to the promoted copy; the old primary becomes an empty copy of it.
    pub(crate) async fn fail_over(&mut self, proxies: &[Proxy]) {
        std::mem::swap(&mut self.primary, &mut self.copy);
        self.copy.kill().await;
        self.lead(proxies);
        self.copy.restart(Data::None).await;
        self.copy.follow(&self.primary).await;
    }

    /// Puts a value of another type in a key's place; returns the key.
    pub(crate) async fn spoil(&self, random: &mut SplitMix64) -> Option<String> {
        let keys: Vec<String> = self.primary.run("KEYS *").await.ok()?;
        let key = keys.get(random.below(keys.len().max(1) as u64) as usize)?;
        let kind: String = self.primary.run_words(&["TYPE", key]).await.ok()?;
        self.primary.run_words::<()>(&["DEL", key]).await.ok()?;
        let spoil: &[&str] = match &*kind {
            "string" => &["RPUSH", key, "spoilt"],
            _ => &["SET", key, "spoilt"],
        };
        self.primary.run_words::<()>(spoil).await.ok()?;
        Some(key.clone())
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a port");
    listener.local_addr().expect("it is bound").port()
}

fn serve(directory: &PathBuf, port: u16) -> Child {
    let port = port.to_string();
    let mut command = Command::new("redis-server");
    command.args([
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    // A copy begins at once.
    command
        .args(["--repl-diskless-sync-delay", "0", "--dir"])
        .arg(directory);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = command.kill_on_drop(true).spawn();
    started.expect("redis-server is installed")
}
