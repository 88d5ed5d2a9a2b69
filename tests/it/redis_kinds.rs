//! The kinds of Redis that replicas can share: each over real servers, and each refusal in the log by its code.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
};

use tempfile::TempDir;
use unpod_gateway::simulator::{Options, Simulator, world::SUPPORT};

use crate::{
    gateway::{ConfigFile, Gateway, until},
    pki::{Authority, Pair},
    process::{Served, run},
    redis_server::{Redis, free_port, is_installed, sharing, wait_until_up},
};

/// Gateways of one configuration before one simulator.
struct Replicas {
    simulator: Simulator,
    pair: [Gateway; 2],
}

impl Replicas {
    /// Starts two that share the Redis at `url`, and waits until both are connected.
    async fn start(url: &str, toml: &str) -> Self {
        let simulator = Simulator::start(Options::default()).await.unwrap();
        let base_url = simulator.base_url();
        let setup = sharing(url).with(toml);
        let replicas = Self {
            pair: [
                setup.clone().start_before(&base_url).await,
                setup.start_before(&base_url).await,
            ],
            simulator,
        };
        replicas.wait_until_up(true).await;
        replicas
    }

    async fn wait_until_up(&self, up: bool) {
        for gateway in &self.pair {
            wait_until_up(gateway, up).await;
        }
    }

    /// What the first fills the second serves, through these servers.
    async fn assert_shared(&self, servers: &[Redis], query: &str) {
        let [first, second] = &self.pair;
        let keys = |server: &Redis| server.run::<Vec<String>>(&["KEYS", "*page:*"]).len();
        let pages = || servers.iter().map(keys).sum::<usize>();
        let [calls, before] = [self.simulator.control().requests(), pages() as u64];

        let filled = first.tasks(SUPPORT, query).await;
        assert_eq!(filled.status, 200);
        until(|| pages() as u64 > before).await;
        let served = second.tasks(SUPPORT, query).await;

        served.assert_page(&filled.body);
        assert_eq!(served.cache_status(), "hit");
        assert_eq!(self.simulator.control().requests(), calls + 1);
    }
}

/// A gateway that cannot connect serves all the same.
async fn assert_alone(url: &str, toml: &str) {
    let gateway = sharing(url).with(toml).start().await;
    assert!(gateway.counts("gateway_redis_up 0"), "{url} {toml}");
    assert_eq!(gateway.tasks(SUPPORT, "").await.status, 200);
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Takes connections and never says a word.
struct Silent(TcpListener);

impl Silent {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// The files of a server and its clients.
struct Certificates {
    folder: TempDir,
    authority: Authority,
}

impl Certificates {
    fn new() -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
            authority: Authority::new(),
        };
        std::fs::write(files.path("ca.pem"), files.authority.pem()).unwrap();
        files.put("server", &files.issue());
        files
    }

    fn issue(&self) -> Pair {
        self.authority.issue(&["localhost", "127.0.0.1"], |_| {})
    }

    fn put(&self, name: &str, pair: &Pair) {
        std::fs::write(self.path(name) + ".pem", pair.certificate.pem()).unwrap();
        std::fs::write(self.path(name) + "-key.pem", pair.key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn ca(&self) -> String {
        format!("[cache.redis]\nca_file = '{}'\n", self.path("ca.pem"))
    }

    fn client(&self, name: &str) -> String {
        let file = self.path(name);
        format!(
            "{}client_cert_file = '{file}.pem'\nclient_key_file = '{file}-key.pem'\n",
            self.ca()
        )
    }

    /// The arguments of a server that speaks TLS, too.
    fn server(&self, clients: &str) -> Vec<String> {
        texts(&[
            "--tls-port",
            &free_port().to_string(),
            "--tls-cert-file",
            &self.path("server.pem"),
            "--tls-key-file",
            &self.path("server-key.pem"),
            "--tls-ca-cert-file",
            &self.path("ca.pem"),
            "--tls-auth-clients",
            clients,
        ])
    }
}

#[tokio::test]
async fn replicas_share_a_redis_behind_tls() {
    if !is_installed() {
        return;
    }
    let files = Certificates::new();
    let server = Redis::start_with(None, || files.server("no"));
    let url = format!("rediss://localhost:{}", server.config("tls-port"));
    let replicas = Replicas::start(&url, &files.ca()).await;
    replicas.assert_shared(&[server], "").await;

    assert_alone(&url, "").await;
    assert_alone(&url, &Certificates::new().ca()).await;
}

#[tokio::test]
async fn a_redis_may_ask_for_a_certificate_which_is_read_at_each_connect() {
    if !is_installed() {
        return;
    }
    let files = Certificates::new();
    let server = Redis::start_with(None, || files.server("yes"));
    let url = format!("valkeys://localhost:{}", server.config("tls-port"));
    assert_alone(&url, &files.ca()).await;
    files.put("client", &Certificates::new().issue());
    let late = sharing(&url).with(&files.client("client")).start().await;
    assert!(late.counts("gateway_redis_up 0"));

    files.put("client", &files.issue());
    wait_until_up(&late, true).await;
    let replicas = Replicas::start(&url, &files.client("client")).await;
    replicas.assert_shared(&[server], "").await;
}

#[tokio::test]
async fn replicas_share_a_redis_at_a_unix_socket() {
    if !is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let socket = socket.to_str().unwrap();
    let server = Redis::start_with(Some("c4n4ry"), || texts(&["--unixsocket", socket]));
    let url = format!("redis+unix://:c4n4ry@{socket}");
    let replicas = Replicas::start(&url, "").await;
    replicas.assert_shared(&[server], "").await;
}

/// The rights that docs/operations.md gives the gateway, one word each.
fn documented_rights() -> Vec<String> {
    let text = include_str!("../../docs/operations.md");
    let (_, rights) = text.split_once("ACL SETUSER gateway ").unwrap();
    let (rights, _) = rights.split_once("```").unwrap();
    rights
        .split([' ', '\n', '\\'])
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn the_rights_in_the_documentation_are_enough() {
    if !is_installed() {
        return;
    }
    let server = Redis::start_with(Some("admin"), Vec::new);
    let rights = documented_rights();
    let rights = rights.iter().map(String::as_str);
    let words: Vec<_> = ["ACL", "SETUSER", "gateway"]
        .into_iter()
        .chain(rights)
        .collect();
    let _: String = server.run(&words);
    let url = format!("redis://gateway:PASSWORD@127.0.0.1:{}", server.port());
    let replicas = Replicas::start(&url, "").await;
    replicas.assert_shared(&[server], "").await;
}

#[tokio::test]
async fn replicas_follow_sentinel_to_the_next_primary() {
    if !is_installed() {
        return;
    }
    // A replica and a sentinel keep files.
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().to_str().unwrap();
    let mut primary = Redis::start_with(Some("c4n4ry"), || texts(&["--dir", directory]));
    let port = primary.port().to_string();
    let replica = Redis::start_with(Some("c4n4ry"), || {
        let of = ["--replicaof", "127.0.0.1", &port, "--masterauth", "c4n4ry"];
        texts(&[&of[..], &["--dir", directory]].concat())
    });
    let in_step = || {
        let info: String = replica.run(&["INFO", "replication"]);
        info.contains("master_link_status:up")
    };
    until(in_step).await;
    let sentinel = start_sentinel(folder.path());
    let _: String = sentinel.run(&["SENTINEL", "MONITOR", "main", "127.0.0.1", &port, "1"]);
    for (name, value) in [
        ("auth-pass", "c4n4ry"),
        ("down-after-milliseconds", "500"),
        ("failover-timeout", "5000"),
    ] {
        let _: String = sentinel.run(&["SENTINEL", "SET", "main", name, value]);
    }
    let knows_replica = || {
        let known: Vec<redis::Value> = sentinel.run(&["SENTINEL", "REPLICAS", "main"]);
        known.len() == 1
    };
    until(knows_replica).await;
    let silent = Silent::new();
    let url = format!(
        "redis+sentinel://:c4n4ry@{},127.0.0.1:{}/main?sentinel_password=s3ntinel",
        silent.address(),
        sentinel.port()
    );
    let replicas = Replicas::start(&url, "").await;
    replicas
        .assert_shared(std::slice::from_ref(&primary), "")
        .await;

    primary.kill();
    replicas.wait_until_up(false).await;
    replicas.wait_until_up(true).await;

    replicas.assert_shared(&[replica], "?page=2").await;
    assert_alone(&url.replace("/main", "/other"), "").await;
}

/// It keeps what it knows in a file in `folder`.
fn start_sentinel(folder: &Path) -> Redis {
    let file = folder.join("sentinel.conf");
    Redis::start_with(Some("s3ntinel"), || {
        std::fs::write(&file, "").unwrap();
        texts(&[file.to_str().unwrap(), "--sentinel"])
    })
}

/// Three servers that have all slots among them, and what is added to them.
struct Cluster {
    servers: Vec<Redis>,
    folders: Vec<TempDir>,
}

impl Cluster {
    async fn start(arguments: impl Fn() -> Vec<String>) -> Self {
        let mut cluster = Self {
            servers: Vec::new(),
            folders: Vec::new(),
        };
        for (first, last) in [("0", "5460"), ("5461", "10922"), ("10923", "16383")] {
            let server = cluster.add(&arguments);
            let _: String = server.run(&["CLUSTER", "ADDSLOTSRANGE", first, last]);
        }
        cluster.wait_until_agreed().await;
        cluster
    }

    /// Starts a server, which meets the others.
    fn add(&mut self, arguments: impl Fn() -> Vec<String>) -> &Redis {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().to_str().unwrap();
        let server = Redis::start_with(None, || {
            let port = free_port().to_string();
            let own = [
                ["--cluster-enabled", "yes"],
                ["--cluster-port", &port],
                ["--cluster-node-timeout", "1000"],
                ["--dir", directory],
            ];
            [texts(own.as_flattened()), arguments()].concat()
        });
        if let Some(other) = self.servers.first() {
            let [port, bus] = [meeting_port(other), other.config("cluster-port")];
            let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &bus];
            let _: String = server.run(&meet);
        }
        self.folders.push(folder);
        self.servers.push(server);
        &self.servers[self.servers.len() - 1]
    }

    /// Waits until all servers know each other and have all slots.
    async fn wait_until_agreed(&self) {
        let known = format!("cluster_known_nodes:{}\r\n", self.servers.len());
        let agrees = |server: &Redis| {
            let info: String = server.run(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains(&known)
        };
        until(|| self.servers.iter().all(agrees)).await;
    }
}

fn meeting_port(server: &Redis) -> String {
    match server.config("tls-cluster").as_str() {
        "yes" => server.config("tls-port"),
        _ => server.port().to_string(),
    }
}

const CLUSTER: &str = "[cache.redis]\ncluster = true\n";

#[tokio::test]
async fn replicas_share_a_cluster() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::start(Vec::new).await;
    // The third is found.
    let [one, two] = [&cluster.servers[0], &cluster.servers[1]].map(Redis::port);
    let silent = Silent::new();
    let url = format!(
        "redis://{},127.0.0.1:{one},127.0.0.1:{two}",
        silent.address()
    );
    let replicas = Replicas::start(&url, CLUSTER).await;
    replicas.assert_shared(&cluster.servers, "").await;
}

#[tokio::test]
async fn replicas_follow_a_cluster_whose_server_is_replaced() {
    if !is_installed() {
        return;
    }
    let mut cluster = Cluster::start(Vec::new).await;
    let hosts: Vec<_> = cluster
        .servers
        .iter()
        .map(|server| format!("127.0.0.1:{}", server.port()))
        .collect();
    let url = format!("redis://{}", hosts.join(","));
    let replicas = Replicas::start(&url, CLUSTER).await;
    replicas.assert_shared(&cluster.servers, "").await;
    // The one that has this space's pages.
    let has_pages = |server: &Redis| !server.run::<Vec<String>>(&["KEYS", "*page:*"]).is_empty();
    let owner = cluster.servers.iter().position(has_pages).unwrap();
    let id: String = cluster.servers[owner].run(&["CLUSTER", "MYID"]);
    cluster.add(Vec::new);
    cluster.wait_until_agreed().await;
    let next = &cluster.servers[3];
    let _: String = next.run(&["CLUSTER", "REPLICATE", &id]);
    let says = |line: &str| next.run::<String>(&["INFO", "replication"]).contains(line);
    until(|| says("master_link_status:up")).await;

    cluster.servers[owner].signal("-KILL");
    until(|| says("role:master")).await;
    cluster.servers.remove(owner);
    let serves = |server: &Redis| {
        let info: String = server.run(&["CLUSTER", "INFO"]);
        info.contains("cluster_state:ok")
    };
    until(|| cluster.servers.iter().all(serves)).await;
    replicas.wait_until_up(true).await;

    replicas.assert_shared(&cluster.servers, "?page=2").await;
}

#[tokio::test]
async fn replicas_share_a_cluster_behind_tls() {
    if !is_installed() {
        return;
    }
    let files = Certificates::new();
    let arguments = || [files.server("yes"), texts(&["--tls-cluster", "yes"])].concat();
    let cluster = Cluster::start(arguments).await;
    let url = format!(
        "rediss://localhost:{}",
        cluster.servers[0].config("tls-port")
    );
    files.put("client", &files.issue());
    let toml = CLUSTER.to_owned() + &files.client("client").replace("[cache.redis]", "");
    let replicas = Replicas::start(&url, &toml).await;
    replicas.assert_shared(&cluster.servers, "").await;
}

#[tokio::test]
async fn a_refusal_is_logged_by_its_code_alone() {
    if !is_installed() {
        return;
    }
    let files = Certificates::new();
    let server = Redis::start_with(Some("c4n4ry"), || files.server("no"));
    let _: String = server.run(&["ACL", "SETUSER", "nobody", "on", ">c4n4ry"]);
    let tls = format!("localhost:{}", server.config("tls-port"));
    let at = format!("127.0.0.1:{}", server.port());
    let nowhere = format!("127.0.0.1:{}", free_port());
    let simulator = Simulator::start(Options::default()).await.unwrap();
    for (url, rest, code) in [
        (format!("redis://{at}"), "", "NOAUTH"),
        (format!("redis://:wr0ng@{at}"), "", "WRONGPASS"),
        (format!("redis://nobody:c4n4ry@{at}"), "", "NOPERM"),
        (
            format!("redis://:wr0ng@{at}"),
            "cluster = true",
            "WRONGPASS",
        ),
        (format!("redis://:c4n4ry@{at}"), "cluster = true", "ERR"),
        (format!("redis+sentinel://{at}/x"), "", "NOAUTH"),
        (
            format!("rediss://{tls}"),
            "",
            "invalid peer certificate: UnknownIssuer",
        ),
        (
            format!("redis://{nowhere}"),
            "",
            "Connection refused (os error 111)",
        ),
        (
            format!("redis://{nowhere}"),
            "cluster = true",
            "Connection refused (os error 111)",
        ),
    ] {
        let setup = sharing(&url).with(&format!(
            "[telemetry]\nfilter = 'debug'\n[cache.redis]\n{rest}"
        ));
        let gateway = Served::start(setup, &simulator.base_url()).await;
        gateway.signal("-TERM").await;
        let (_, log) = gateway.end().await;
        let told = log
            .iter()
            .find(|line| line.contains("cannot connect to Redis"));
        let told = told.unwrap_or_else(|| panic!("{url}: {log:#?}"));
        let expected = format!("\"redis.source\":\"{code}\"");
        assert!(told.contains(&expected), "{url}: {told}");
        let whole = log.concat();
        for secret in [
            "c4n4ry",
            "wr0ng",
            "username",
            "Authentication required",
            "permissions",
        ] {
            assert!(!whole.contains(secret), "{url}: {whole}");
        }
    }
}

#[tokio::test]
async fn check_says_that_a_password_must_be_encoded_and_not_which() {
    let sharing = sharing("redis://gateway:c4n/4ry@r:6379/0");
    let file = ConfigFile::new(&sharing.toml("https://unpod.example"));

    let checked = run(&["check", "--config", &file.path()]).await;

    let told = String::from_utf8(checked.stderr).unwrap();
    assert!(
        told.contains("cache.redis.url: ") && told.contains("percent-encoded"),
        "{told}"
    );
    assert!(!told.contains("c4n") && !told.contains("4ry"), "{told}");
}
