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

/// Sends a signal to a process that runs.
pub(crate) fn send(process: &Child, signal: &str) {
    let id = process.id().expect("the process runs").to_string();
    let sent = std::process::Command::new("kill")
        .args([signal, &id])
        .status();
    assert!(
        sent.is_ok_and(|status| status.success()),
        "{signal} is not sent"
    );
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
