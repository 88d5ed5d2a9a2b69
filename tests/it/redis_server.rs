//! A real Redis of the test's own, and gateways that share it before one simulator.

use std::{
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
};

use tokio::{net::TcpStream, task::JoinHandle};
use unpod_gateway::simulator::{Control, Options, Simulator};

use crate::gateway::{Gateway, Setup, patiently, setup, until};

/// A Redis that ends with the test.
pub(crate) struct Redis {
    server: Child,
    port: u16,
    password: Option<&'static str>,
    arguments: Vec<String>,
}

impl Redis {
    /// Starts one on a port of its own; `None`, with a word, where none is installed and no CI insists.
    pub(crate) fn start(password: Option<&'static str>) -> Option<Self> {
        is_installed().then(|| Self::start_with(password, Vec::new))
    }

    /// Starts one with these arguments besides; it must be installed.
    pub(crate) fn start_with(
        password: Option<&'static str>,
        arguments: impl Fn() -> Vec<String>,
    ) -> Self {
        // Another process may take the port in between.
        for _ in 0..10 {
            let port = free_port();
            let arguments = arguments();
            let mut server = serve(port, password, &arguments);
            if is_served(&mut server, port, password) {
                return Self {
                    server,
                    port,
                    password,
                    arguments,
                };
            }
        }
        panic!("no redis-server would start");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        let password = self.password.map(|word| format!(":{word}@"));
        format!(
            "redis://{}127.0.0.1:{}",
            password.unwrap_or_default(),
            self.port
        )
    }

    /// Ends it at once, with all it holds.
    pub(crate) fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    /// Starts it again, empty, where it was.
    pub(crate) fn restart(&mut self) {
        self.server = serve(self.port, self.password, &self.arguments);
        assert!(is_served(&mut self.server, self.port, self.password));
    }

    /// Has it hang, or go on.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.server.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Runs one command.
    pub(crate) fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = connect(self.port, self.password).unwrap();
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query(&mut connection).unwrap()
    }

    /// All that it holds, to be put back.
    pub(crate) fn dump(&self) -> Vec<(String, Vec<u8>)> {
        let keys: Vec<String> = self.run(&["KEYS", "*"]);
        let dumped = keys.into_iter().map(|key| {
            let value = self.run(&["DUMP", &key]);
            (key, value)
        });
        dumped.collect()
    }

    /// Holds what was dumped, and nothing else.
    pub(crate) fn restore(&self, dumped: &[(String, Vec<u8>)]) {
        let mut connection = connect(self.port, self.password).unwrap();
        let mut restore = redis::pipe();
        restore.atomic().cmd("FLUSHALL").ignore();
        for (key, value) in dumped {
            restore.cmd("RESTORE").arg(key).arg(0).arg(value).ignore();
        }
        let () = restore.query(&mut connection).unwrap();
    }

    /// The value of a configuration parameter.
    pub(crate) fn config(&self, name: &str) -> String {
        let [_, value] = self.run(&["CONFIG", "GET", name]);
        value
    }

    /// The keys of this kind.
    pub(crate) fn keys(&self, kind: &str) -> Vec<String> {
        self.run(&["KEYS", &format!("unpod-gateway:v3:*{kind}*")])
    }

    /// Waits until so many pages are kept.
    pub(crate) async fn wait_for_pages(&self, count: usize) {
        until(|| self.keys("page:").len() == count).await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have been killed by the test.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Whether there is a redis-server to test with.
#[expect(clippy::print_stdout, reason = "says that a test is skipped")]
pub(crate) fn is_installed() -> bool {
    #[expect(clippy::disallowed_methods, reason = "asks whether this is CI")]
    let must_run = std::env::var_os("CI").is_some();
    let is_installed = Command::new("redis-server")
        .arg("--version")
        .output()
        .is_ok();
    assert!(is_installed || !must_run, "redis-server is not installed");
    if !is_installed {
        println!("skipped: redis-server is not installed");
    }
    is_installed
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn serve(port: u16, password: Option<&str>, arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    // First, since a configuration file comes before all else.
    command.args(arguments);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.args(["--save", "", "--appendonly", "no"]);
    // A replica need not wait for others to come.
    command.args(["--repl-diskless-sync-delay", "0"]);
    if let Some(word) = password {
        command.args(["--requirepass", word]);
    }
    let silent = command.stdout(Stdio::null()).stderr(Stdio::null());
    silent.spawn().unwrap()
}

fn connect(port: u16, password: Option<&str>) -> redis::RedisResult<redis::Connection> {
    let password = password.map(|word| format!(":{word}@")).unwrap_or_default();
    redis::Client::open(format!("redis://{password}127.0.0.1:{port}"))?.get_connection()
}

/// Whether it answers, rather than end.
fn is_served(server: &mut Child, port: u16, password: Option<&str>) -> bool {
    while server.try_wait().unwrap().is_none() {
        let answered = connect(port, password).and_then(|mut connection| {
            let name: String = redis::cmd("PING").query(&mut connection)?;
            Ok(name)
        });
        if answered.is_ok() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// Gateways that share a Redis, before one simulator.
pub(crate) struct Fleet {
    pub(crate) redis: Redis,
    simulator: Simulator,
}

impl Fleet {
    pub(crate) async fn start() -> Option<Self> {
        Some(Self {
            redis: Redis::start(None)?,
            simulator: Simulator::start(Options::default()).await.unwrap(),
        })
    }

    pub(crate) fn upstream(&self) -> Control {
        self.simulator.control()
    }

    pub(crate) fn upstream_url(&self) -> String {
        self.simulator.base_url()
    }

    /// A gateway, and what its configuration has besides.
    pub(crate) async fn gateway(&self, toml: &str) -> Gateway {
        self.gateway_at(&self.redis.url(), toml).await
    }

    /// The same, with another way to Redis.
    pub(crate) async fn gateway_at(&self, url: &str, toml: &str) -> Gateway {
        let setup = sharing(url).with(toml);
        setup.start_before(&self.simulator.base_url()).await
    }

    /// Two gateways, both connected: the first by a cable that can be cut.
    pub(crate) async fn cable_pair(&self) -> (Cable, [Gateway; 2]) {
        let cable = Cable::lay(&self.redis).await;
        let pair = [
            self.gateway_at(&cable.url, "").await,
            self.gateway("").await,
        ];
        for gateway in &pair {
            wait_until_up(gateway, true).await;
        }
        (cable, pair)
    }

    /// Two gateways alike, both connected.
    pub(crate) async fn pair(&self, toml: &str) -> [Gateway; 2] {
        let pair = [self.gateway(toml).await, self.gateway(toml).await];
        for gateway in &pair {
            wait_until_up(gateway, true).await;
        }
        pair
    }
}

/// As patient with Redis as a machine under load may need, unless a test says otherwise.
pub(crate) fn sharing(url: &str) -> Setup {
    setup().with(&format!("[cache.redis]\nurl = '{url}'\ntimeout = '5s'"))
}

/// Waits until the gateway has noticed whether Redis answers.
pub(crate) async fn wait_until_up(gateway: &Gateway, up: bool) {
    let line = format!("gateway_redis_up {}", u8::from(up));
    until(|| gateway.counts(&line)).await;
}

/// A way to Redis that can be cut.
pub(crate) struct Cable {
    pub(crate) url: String,
    address: std::net::SocketAddr,
    redis: u16,
    carrying: JoinHandle<()>,
}

impl Cable {
    pub(crate) async fn lay(redis: &Redis) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        Self {
            url: format!("redis://{address}"),
            address,
            redis: redis.port(),
            carrying: tokio::spawn(carry(listener, redis.port())),
        }
    }

    /// Cuts every connection, and lets none begin.
    pub(crate) async fn cut(&mut self) {
        self.carrying.abort();
        let _ = (&mut self.carrying).await;
    }

    pub(crate) async fn mend(&mut self) {
        let bound = async {
            loop {
                if let Ok(listener) = tokio::net::TcpListener::bind(self.address).await {
                    return listener;
                }
                tokio::task::yield_now().await;
            }
        };
        let listener = patiently("the port", bound).await;
        self.carrying = tokio::spawn(carry(listener, self.redis));
    }
}

async fn carry(listener: tokio::net::TcpListener, redis: u16) {
    // Dropped with this task: so are the connections.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            let far = TcpStream::connect((Ipv4Addr::LOCALHOST, redis)).await;
            if let Ok(mut far) = far {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}
