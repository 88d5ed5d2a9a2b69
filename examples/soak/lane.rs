//! One upstream, the gateway in front of it, and their clients.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use unpod_gateway::{
    app::Gateway,
    config::{Config, value::ListenAddress},
    simulator::{FaultProxy, Options, Simulator, SplitMix64, gateway, world},
};

use crate::{
    ask::{Ask, NARROW, READER, REFRESHER},
    client::{Answer, Connection},
    report::{Left, Report},
    rough,
    truth::{Key, Truth, any_key, any_space, keys, spaces},
    weather::Weather,
};

/// The setup of a lane.
pub(crate) struct Plan {
    name: &'static str,
    /// Settings that differ from the defaults.
    config: &'static str,
    /// The upstream's calls per minute and token.
    quota_per_minute: Option<u32>,
    /// The maximum age of a page.
    most_age: Duration,
}

/// Lifetimes so short that a minute covers what otherwise takes hours.
pub(crate) const FREE: Plan = Plan {
    name: "free",
    config: r#"
        upstream.connect_timeout = "500ms"
        upstream.timeout = "2s"
        cache.ttl = "1s"
        cache.settled_ttl = "3s"
        cache.negative_ttl = "500ms"
        cache.rejected_ttl = "500ms"
        cache.stale_while_revalidate = "1s"
        cache.stale_if_error = "4s"
        cache.stale_if_quota = "4s"
    "#,
    quota_per_minute: None,
    // The lifetime of a page of finished tasks with jitter, the stale window, and the duration of a slow response.
    most_age: Duration::from_secs(11),
};

/// A quota to which lifetimes are extended.
pub(crate) const QUOTA: Plan = Plan {
    name: "quota",
    config: r#"
        upstream.timeout = "2s"
        upstream.quota_per_minute = 6000
        cache.stretch_max = "20s"
        cache.stale_if_error = "20s"
    "#,
    quota_per_minute: Some(6000),
    // `cache.settled_ttl` is ten minutes.
    most_age: Duration::from_secs(700),
};

const READERS: u64 = 32;
const LEAVERS: u64 = 4;
const HALF_CLOSERS: u64 = 2;
/// Clients of a proxy that do not spoof their address.
const PROXIED: u64 = 2;
/// 401s that one address may get: `auth.max_failures` in each of the two minutes that one of ours overlaps.
const MOST_FAILURES: usize = 2 * 20;
const MINUTE: Duration = Duration::from_secs(60);
/// Maximum pause of a reader, in milliseconds.
const THINKS: u64 = 30;
const GROWS_EVERY: Duration = Duration::from_secs(3);
/// How long recovery after the last fault may take.
const HEALS_WITHIN: Duration = Duration::from_secs(120);
const HEALING_PAUSE: Duration = Duration::from_millis(200);

/// A running lane.
pub(crate) struct Lane {
    name: &'static str,
    simulator: Simulator,
    proxy: FaultProxy,
    gateway: Gateway,
    truth: Arc<Truth>,
    weather: Weather,
    users: Users,
}

/// The clients, which run until told to stop.
struct Users {
    running: JoinSet<()>,
    stop: CancellationToken,
}

/// Shared by all clients of a lane.
#[derive(Clone)]
struct Place {
    name: &'static str,
    data: SocketAddr,
    admin: SocketAddr,
    truth: Arc<Truth>,
    report: Report,
}

impl Lane {
    /// Starts everything, on ports of its own.
    pub(crate) async fn start(plan: Plan, seed: u64, report: &Report) -> Self {
        let Plan {
            name,
            config,
            quota_per_minute,
            most_age,
        } = plan;
        let options = Options {
            latency: Duration::from_millis(2),
            jitter: Duration::from_millis(8),
            quota_per_minute,
            seed,
            // Memory is measured, and nobody reads the traces.
            recorded: 1,
            ..Options::default()
        };
        let simulator = Simulator::start(options)
            .await
            .expect("loopback has a port");
        let proxy = FaultProxy::start(simulator.address())
            .await
            .expect("loopback has a port");
        proxy.control().set_seed(seed);
        let config = config_of(config, &proxy.base_url());
        let gateway = Gateway::start(config).await.expect("a gateway starts");
        let truth = Arc::new(Truth::new(simulator.control(), most_age));
        let place = Place {
            name,
            data: tcp(gateway.data_address()),
            admin: tcp(gateway.admin_address()),
            truth: truth.clone(),
            report: report.clone(),
        };
        let mut random = SplitMix64::new(seed);
        let weather = Weather::new(&proxy, &simulator, fork(&mut random));
        let users = Users::start(&place, &mut random, weather);
        Self {
            name,
            weather: Weather::new(&proxy, &simulator, random),
            simulator,
            proxy,
            gateway,
            truth,
            users,
        }
    }

    /// Stops the clients and the faults, checks that every page is available again, and waits until nothing is in flight.
    pub(crate) async fn calm_down(&mut self, report: &Report) {
        self.users.end().await;
        if let Err(error) = self.weather.clear().await {
            report.wrong(error);
        }
        self.heal(report).await;
        let until = Instant::now() + HEALS_WITHIN;
        while !self.is_quiet() && Instant::now() < until {
            sleep(HEALING_PAUSE).await;
        }
    }

    fn is_quiet(&self) -> bool {
        let metrics = self.gateway.metrics();
        let busy = metrics.http.in_flight() + metrics.http.connections_open();
        busy == 0 && self.gateway.pages().fills_under_way() == 0
    }

    /// Stops the gateway and its upstream; returns what was left in flight.
    pub(crate) async fn end(self) -> Left {
        let metrics = self.gateway.metrics();
        let left = Left {
            lane: self.name,
            fills: self.gateway.pages().fills_under_way(),
            in_flight: metrics.http.in_flight(),
            connections: metrics.http.connections_open(),
            drained: self.gateway.drain().await,
            wire_faults: self.proxy.control().injected(),
            answer_faults: self.simulator.control().struck(),
        };
        self.simulator.stop().await;
        left
    }

    /// Requests every page until it is available.
    async fn heal(&self, report: &Report) {
        let mut connection = Connection::new(tcp(self.gateway.data_address()));
        let until = Instant::now() + HEALS_WITHIN;
        for (number, key) in keys().enumerate() {
            loop {
                let ask = Ask::plain(key, format!("heal-{number}"));
                match connection.ask(ask.request()).await {
                    Ok(answer) if answer.status == 200 => {
                        if let Err(wrong) = ask.judge(&answer, &self.truth) {
                            report.wrong(format!(
                                "{}: {wrong}: {}",
                                self.name,
                                ask.describe(&answer)
                            ));
                        }
                        break;
                    }
                    Ok(answer) if Instant::now() > until => {
                        report.wrong(format!(
                            "{}: not healed: {}",
                            self.name,
                            ask.describe(&answer)
                        ));
                        return;
                    }
                    Ok(_) => sleep(HEALING_PAUSE).await,
                    Err(wrong) => return report.wrong(format!("{}: {wrong}", self.name)),
                }
            }
        }
    }
}

impl Users {
    fn start(place: &Place, random: &mut SplitMix64, mut weather: Weather) -> Self {
        let stop = CancellationToken::new();
        let mut users = Self {
            running: JoinSet::new(),
            stop: stop.clone(),
        };
        for number in 0..READERS {
            users.run(read(place.clone(), number, fork(random), stop.clone()));
        }
        for number in 0..LEAVERS {
            users.run_cancelled(come_and_go(place.clone(), number, fork(random)));
        }
        for number in 0..HALF_CLOSERS {
            users.run(half_close(
                place.clone(),
                number,
                fork(random),
                stop.clone(),
            ));
        }
        for number in 0..PROXIED {
            users.run(read_by_proxy(
                place.clone(),
                number,
                fork(random),
                stop.clone(),
            ));
        }
        users.run(make_up_addresses(place.clone(), fork(random), stop.clone()));
        users.run_cancelled(stall(place.clone()));
        users.run_cancelled(operate(place.clone(), fork(random)));
        users.run_cancelled(grow(place.truth.clone()));
        let report = place.report.clone();
        users.run_cancelled(async move {
            if let Err(error) = weather.change().await {
                report.wrong(error);
            }
        });
        users
    }

    fn run(&mut self, user: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn(user);
    }

    fn run_cancelled(&mut self, user: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.run(async move {
            stop.run_until_cancelled_owned(user).await;
        });
    }

    async fn end(&mut self) {
        self.stop.cancel();
        while let Some(user) = self.running.join_next().await {
            user.expect("a user does not panic");
        }
    }
}

/// Sends a request, checks the response, pauses, and repeats.
async fn read(place: Place, number: u64, mut random: SplitMix64, stop: CancellationToken) {
    let mut connection = Connection::new(place.data);
    let mut tag: Option<(Key, String)> = None;
    let mut asked = 0;
    while !stop.is_cancelled() {
        asked += 1;
        let ask = Ask::draw(&mut random, format!("r{number}-{asked}"), tag.as_ref());
        let answer = connection.ask(ask.request()).await;
        let known = answer.as_ref().map(|answer| answer.header("etag"));
        let known = known.ok().filter(|tag| !tag.is_empty());
        if let Some((key, known)) = ask.key().zip(known) {
            tag = Some((key, known.to_owned()));
        }
        place.judge(&ask, answer);
        sleep(Duration::from_millis(random.below(THINKS))).await;
    }
}

/// Sends requests and disconnects at random points.
async fn come_and_go(place: Place, number: u64, mut random: SplitMix64) {
    for asked in 0.. {
        let ask = Ask::draw(&mut random, format!("l{number}-{asked}"), None);
        // The gateway may close the connection after half a request; what matters is what it still holds.
        let _ = rough::leave(place.data, &ask.text(), &mut random).await;
        place.report.left();
        sleep(Duration::from_millis(random.below(THINKS))).await;
    }
}

/// Sends a request and half-closes: the response must be complete.
async fn half_close(place: Place, number: u64, mut random: SplitMix64, stop: CancellationToken) {
    let mut asked = 0;
    while !stop.is_cancelled() {
        asked += 1;
        let key = any_key(&mut random);
        let ask = Ask::plain(key, format!("h{number}-{asked}"));
        let answer = rough::half_close(place.data, &ask.text()).await;
        place.judge(&ask, answer);
        sleep(Duration::from_millis(random.below(10 * THINKS))).await;
    }
}

/// Reads through a proxy that appends its address, sometimes with a wrong key: failures of others must not count for it.
async fn read_by_proxy(place: Place, number: u64, mut random: SplitMix64, stop: CancellationToken) {
    let address = format!("198.51.100.{}", number + 1);
    let mut connection = Connection::new(place.data);
    let mut asked = 0;
    let mut failed_at = Instant::now();
    while !stop.is_cancelled() {
        asked += 1;
        let id = format!("p{number}-{asked}");
        let fails = failed_at.elapsed() > MINUTE / 10;
        let ask = if fails {
            failed_at = Instant::now();
            Ask::as_stranger(id)
        } else {
            Ask::plain(any_key(&mut random), id)
        };
        let ask = ask.forwarded(rough::forwarded(&mut random, &address));
        let answer = connection.ask(ask.request()).await;
        if fails && answer.as_ref().is_ok_and(|answer| answer.status != 401) {
            place.wrong("the failures of others are an address's own");
        }
        place.judge(&ask, answer);
        sleep(Duration::from_millis(random.below(10 * THINKS))).await;
    }
}

/// Fails from one address that spoofs a new one each time: it must be limited like any other.
async fn make_up_addresses(place: Place, mut random: SplitMix64, stop: CancellationToken) {
    let mut connection = Connection::new(place.data);
    let mut failures = VecDeque::new();
    let mut asked = 0;
    while !stop.is_cancelled() {
        asked += 1;
        let ask = Ask::as_stranger(format!("m-{asked}"))
            .forwarded(rough::forwarded(&mut random, "203.0.113.9"));
        let answer = connection.ask(ask.request()).await;
        if answer.as_ref().is_ok_and(|answer| answer.status == 401) {
            failures.push_back(Instant::now());
        }
        failures.retain(|then: &Instant| then.elapsed() < MINUTE);
        if failures.len() > MOST_FAILURES {
            place.wrong("a made-up address evades the limit of failures");
        }
        place.judge(&ask, answer);
        sleep(Duration::from_millis(5 * THINKS)).await;
    }
}

/// Requests more than it reads, alternately over HTTP/1.1 and HTTP/2.
async fn stall(place: Place) {
    loop {
        for ended in [
            rough::stall_http1(place.data).await,
            rough::stall_http2(place.data).await,
        ] {
            match ended {
                Ok(()) => place.report.answered("ended a reader that stalls"),
                Err(wrong) => place.wrong(&wrong),
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Purges at random times, and requests the admin endpoints.
async fn operate(place: Place, mut random: SplitMix64) {
    let mut connection = Connection::new(place.admin);
    loop {
        sleep(Duration::from_millis(200 + random.below(2000))).await;
        let space = any_space(&mut random);
        let (method, path) = match random.below(20) {
            0 => ("DELETE", "/cache".to_owned()),
            1..=5 => ("DELETE", format!("/cache/spaces/{space}")),
            6..=9 => ("GET", format!("/cache/spaces/{space}")),
            10..=12 => ("GET", format!("/cache/explain?space={space}")),
            13..=15 => ("GET", "/metrics".to_owned()),
            16..=17 => ("GET", "/livez".to_owned()),
            _ => ("GET", "/readyz".to_owned()),
        };
        let request = Request::builder()
            .method(method)
            .uri(&path)
            .header("host", "127.0.0.1");
        let request = request
            .body(Empty::<Bytes>::new())
            .expect("a path makes a request");
        let expected: &[u16] = match (method, path.as_str()) {
            ("DELETE", _) => &[204],
            // Possible if nothing is stored and no call may be made.
            (_, "/readyz") => &[200, 503],
            _ => &[200],
        };
        match connection.ask(request).await {
            Ok(answer) if expected.contains(&answer.status) => {
                place.report.answered(format!("operator {}", answer.status));
            }
            Ok(answer) => place.wrong(&format!("{method} {path}: {}", answer.status)),
            Err(wrong) => place.wrong(&format!("{method} {path}: {wrong}")),
        }
        match (method, path.as_str()) {
            ("DELETE", "/cache") => place.truth.note_purged(&spaces()),
            ("DELETE", _) => place.truth.note_purged(&[space]),
            _ => {}
        }
    }
}

async fn grow(truth: Arc<Truth>) {
    loop {
        sleep(GROWS_EVERY).await;
        truth.grow();
    }
}

impl Place {
    /// Checks a response, or the reason for its absence.
    fn judge(&self, ask: &Ask, answer: Result<Answer, String>) {
        match answer {
            Ok(answer) => match ask.judge(&answer, &self.truth) {
                Ok(outcome) => self.report.answered(outcome),
                Err(wrong) => self.wrong(&format!("{wrong}: {}", ask.describe(&answer))),
            },
            Err(wrong) => self.wrong(&format!("{wrong}: {:?}", ask.request().uri())),
        }
    }

    fn wrong(&self, what: &str) {
        self.report.wrong(format!("{}: {what}", self.name));
    }
}

/// A random generator of its own, seeded from `random`.
fn fork(random: &mut SplitMix64) -> SplitMix64 {
    SplitMix64::new(random.below(u64::MAX))
}

fn tcp(address: &ListenAddress) -> SocketAddr {
    match address {
        ListenAddress::Tcp(address) => *address,
        ListenAddress::Unix(_) => unreachable!("the configuration names a port"),
    }
}

fn config_of(rest: &str, base_url: &str) -> Config {
    let base = r#"
        server.listen = "127.0.0.1:0"
        server.drain_delay = "0s"
        admin.listen = "127.0.0.1:0"
        "#;
    let clients = [
        gateway::client(READER, READER, "spaces = ['*']"),
        gateway::client(REFRESHER, REFRESHER, "spaces = ['*']\nmay_refresh = true"),
        gateway::client(NARROW, NARROW, &format!("spaces = ['{}']", world::ARCHIVE)),
    ];
    let upstream = gateway::upstream(base_url);
    let text = [&upstream, base, rough::CONFIG, rest, &clients.concat()].concat();
    Config::from_toml(&text).expect("the configuration is valid")
}
