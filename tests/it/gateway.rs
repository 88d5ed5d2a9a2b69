//! Starts a gateway and the upstream behind it, both on ports of their own.

use std::time::Duration;

use unpod_gateway::{
    app,
    config::{Config, value::ListenAddress},
    simulator::{Control, Options, Simulator, gateway},
};

pub(crate) use unpod_gateway::simulator::gateway::{client, digest};

use crate::answer::{Ask, http_client};

/// Reads every space.
pub(crate) const READER: &str = "ugw_reader_key";
/// Reads every space, and its `no-cache` reaches the upstream.
pub(crate) const REFRESHER: &str = "ugw_refresher_key";

/// What differs from test to test.
#[derive(Clone)]
pub(crate) struct Setup {
    config: toml::Table,
}

/// The defaults of the gateway, but for what would add calls or waits that the test did not ask for.
pub(crate) fn setup() -> Setup {
    let settings = r#"
        [server]
        listen = "127.0.0.1:0"
        drain_delay = "0s"
        drain_timeout = "5s"
        [admin]
        listen = "127.0.0.1:0"
        [auth]
        max_failures = 0
        [telemetry]
        filter = "off"
        [upstream]
        retries = 0
        [upstream.circuit]
        enabled = false
        [cache]
        jitter = 0.0
        assemble_pages = false
        settled_ttl = "0s"
        "#;
    let setup = Setup {
        config: toml::from_str(settings).unwrap(),
    };
    setup
        .with(&gateway::upstream("http://127.0.0.1:1"))
        .with(&client("reader", READER, "spaces = ['*']"))
        .with(&client(
            "refresher",
            REFRESHER,
            "spaces = ['*']\nmay_refresh = true",
        ))
}

/// The gateway of [`setup`] before the simulator.
pub(crate) async fn start() -> Gateway {
    setup().start().await
}

impl Setup {
    /// Lays `toml` over the configuration: a list is added to, any other value replaced.
    pub(crate) fn with(mut self, toml: &str) -> Self {
        merge(&mut self.config, toml::from_str(toml).unwrap());
        self
    }

    /// The same, with the upstream's token in a file.
    pub(crate) fn token_file(mut self, path: &str) -> Self {
        let upstream = self.config["upstream"].as_table_mut();
        let credential = upstream.and_then(|upstream| upstream["credentials"].get_mut("default"));
        let credential = credential.and_then(toml::Value::as_table_mut).unwrap();
        credential.remove("token");
        credential.insert("token_file".to_owned(), path.into());
        self
    }

    /// The configuration's text, before an upstream at `base_url`.
    pub(crate) fn toml(self, base_url: &str) -> String {
        let whole = self.with(&format!("upstream.base_url = \"{base_url}\""));
        whole.config.to_string()
    }

    /// Starts a simulator and a gateway before it.
    pub(crate) async fn start(self) -> Gateway {
        let simulator = Simulator::start(Options::default()).await.unwrap();
        let control = simulator.control();
        let gateway = self.start_before(&simulator.base_url()).await;
        Gateway {
            upstream: Some(control),
            simulator: Some(simulator),
            ..gateway
        }
    }

    /// Starts a gateway before an upstream that the test brings.
    pub(crate) async fn start_before(self, base_url: &str) -> Gateway {
        start_with(Config::from_toml(&self.toml(base_url)).unwrap()).await
    }

    /// As [`Setup::start`], configured by a file that the test can change.
    pub(crate) async fn start_from_file(self) -> FromFile {
        let simulator = Simulator::start(Options::default()).await.unwrap();
        let control = simulator.control();
        let base_url = simulator.base_url();
        let file = ConfigFile::new(&self.toml(&base_url));
        let config = Config::load(Some(file.path().as_ref())).unwrap();
        FromFile {
            gateway: Gateway {
                upstream: Some(control),
                simulator: Some(simulator),
                ..start_with(config).await
            },
            file,
            base_url,
        }
    }
}

/// A gateway configured by a file.
pub(crate) struct FromFile {
    pub(crate) gateway: Gateway,
    pub(crate) file: ConfigFile,
    base_url: String,
}

impl FromFile {
    /// Puts another configuration before the same upstream in the file's place, at once.
    pub(crate) fn rewrite(&self, setup: Setup) {
        self.file.rewrite(&setup.toml(&self.base_url));
    }

    /// Asks the admin listener to reload: status and body.
    pub(crate) async fn reload(&self) -> (u16, serde_json::Value) {
        let url = format!("{}/reload", self.gateway.admin_url());
        let response = self.gateway.http().post(url).send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }
}

/// A configuration file that lives as long as its directory.
pub(crate) struct ConfigFile {
    directory: tempfile::TempDir,
}

impl ConfigFile {
    pub(crate) fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = Self { directory };
        file.rewrite(text);
        file
    }

    pub(crate) fn path(&self) -> String {
        let path = self.directory.path().join("gateway.toml");
        path.to_str().unwrap().to_owned()
    }

    /// Replaces the file as a whole.
    pub(crate) fn rewrite(&self, text: &str) {
        self.put("gateway.toml", text);
    }

    /// Puts a file beside it, or another in its place, and returns its path.
    pub(crate) fn put(&self, name: &str, text: &str) -> String {
        let fresh = self.directory.path().join("fresh");
        let path = self.directory.path().join(name);
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Starts a gateway by a configuration that the test brings.
pub(crate) async fn start_with(config: Config) -> Gateway {
    let app = app::Gateway::start(config).await.unwrap();
    Gateway {
        app,
        http: http_client(),
        upstream: None,
        simulator: None,
    }
}

fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (Some(toml::Value::Array(base)), toml::Value::Array(over)) => base.extend(over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// A running gateway and what it runs before.
pub(crate) struct Gateway {
    pub(crate) app: app::Gateway,
    http: reqwest::Client,
    upstream: Option<Control>,
    simulator: Option<Simulator>,
}

impl Gateway {
    /// The simulator's controls.
    pub(crate) fn upstream(&self) -> &Control {
        self.upstream
            .as_ref()
            .expect("the test started a simulator")
    }

    /// Where the simulator listens.
    pub(crate) fn upstream_url(&self) -> String {
        let simulator = self.simulator.as_ref();
        simulator.expect("the simulator runs").base_url()
    }

    /// Stops the upstream: its port refuses from then on.
    pub(crate) async fn stop_upstream(&mut self) {
        let simulator = self.simulator.take();
        simulator.expect("the simulator runs").stop().await;
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        tcp(self.app.data_address())
    }

    pub(crate) fn admin_url(&self) -> String {
        format!("http://{}", tcp(self.app.admin_address()))
    }

    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// A `GET` of the data listener with the reader's key.
    pub(crate) fn get(&self, path: &str) -> Ask {
        self.ask("GET", path)
    }

    /// A request of any method, with the reader's key.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Ask {
        Ask::new(
            self.http.clone(),
            method,
            format!("http://{}", self.address()),
            path,
        )
        .key(READER)
    }

    /// The tasks of `space`, with the reader's key.
    pub(crate) fn tasks(&self, space: &str, query: &str) -> Ask {
        self.get(&format!("/spaces/{space}/tasks{query}"))
    }

    /// Whether this line stands among the data listener's metrics.
    pub(crate) fn counts(&self, line: &str) -> bool {
        let text = self.app.metrics().encode();
        text.lines().any(|counted| counted == line)
    }

    /// Waits until `count` requests are under way at the data listener.
    pub(crate) async fn wait_until_in_flight(&self, count: i64) {
        until(|| self.app.metrics().http.in_flight() == count).await;
    }

    /// Waits until no page is being fetched.
    pub(crate) async fn wait_until_filled(&self) {
        until(|| self.app.pages().fills_under_way() == 0).await;
    }
}

fn tcp(address: &ListenAddress) -> std::net::SocketAddr {
    match address {
        ListenAddress::Tcp(address) => *address,
        ListenAddress::Unix(path) => panic!("listens on {}", path.display()),
    }
}

/// Lets the other tasks run until `condition` holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    patiently("a condition", holds).await;
}

/// Has `time` pass at once for every timer of the test and its gateways. Not while a call is under way: its deadline would pass, too.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Waits for what must happen; ends a test that hangs, and names what did not come.
pub(crate) async fn patiently<F: Future>(what: &str, future: F) -> F::Output {
    let patience = Duration::from_secs(30);
    match tokio::time::timeout(patience, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} did not come"),
    }
}
