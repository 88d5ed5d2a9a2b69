//! One upstream, one Redis, the gateways that share them, and their clients.

use std::{net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use unpod_gateway::simulator::{Control, Options, Simulator, SplitMix64};

use crate::{
    Arguments,
    call::keys,
    chaos,
    checks::{busiest_minute, times_between_fills},
    client::Connection,
    gateway::{self, Gateway},
    operator,
    proxy::Proxy,
    reader, recorder,
    redis_server::Servers,
    tally::Tally,
    truth::Truth,
    watch,
};

/// The setup of a lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    /// Settings that differ from the defaults.
    config: &'static str,
    quota_per_minute: Option<usize>,
    /// The maximum age of a page that is served as fresh or within `stale_while_revalidate`.
    pub(crate) most_age: Duration,
    /// The maximum age of a page that replaces an error or a missing call.
    pub(crate) most_age_of_fallbacks: Duration,
    /// How long a page is fresh at least, where that is known.
    fresh_for: Option<Duration>,
}

/// Lifetimes so short that a minute covers what otherwise takes hours.
pub(crate) const FREE: Plan = Plan {
    name: "free",
    config: r#"
        cache.ttl = "2s"
        cache.settled_ttl = "3s"
        cache.negative_ttl = "500ms"
        cache.rejected_ttl = "500ms"
        cache.stale_while_revalidate = "1s"
        cache.stale_if_error = "8s"
    "#,
    quota_per_minute: None,
    // `settled_ttl` and its jitter, `stale_while_revalidate`, and two seconds for the call on a busy machine.
    most_age: Duration::from_millis(6300),
    // `settled_ttl`, `stale_if_error`, and the duration of a slow fill.
    most_age_of_fallbacks: Duration::from_secs(15),
    // `ttl` less its jitter, and what a call takes from the gateway to the recorder on a busy machine.
    fresh_for: Some(Duration::from_millis(1500)),
};

/// A quota to which lifetimes are extended.
pub(crate) const QUOTA: Plan = Plan {
    name: "quota",
    config: r#"
        upstream.quota_per_minute = 60
        cache.ttl = "2s"
        cache.settled_ttl = "3s"
        cache.negative_ttl = "500ms"
        cache.rejected_ttl = "500ms"
        cache.stale_while_revalidate = "1s"
        cache.stale_if_error = "15s"
        cache.stale_if_quota = "15s"
        cache.stretch_max = "10s"
    "#,
    quota_per_minute: Some(60),
    // `stretch_max` and its jitter, and as above.
    most_age: Duration::from_secs(14),
    most_age_of_fallbacks: Duration::from_secs(30),
    fresh_for: None,
};

const GATEWAYS: usize = 3;
const READERS: usize = 8;
/// How long after the last fault every page has to be available again, from every gateway.
const HEALS_WITHIN: Duration = Duration::from_secs(20);

/// A running lane.
pub(crate) struct Lane {
    place: Arc<Place>,
    servers: Servers,
    random: SplitMix64,
    _simulator: Simulator,
    recorder: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

/// What all clients and faults of a lane share.
pub(crate) struct Place {
    pub(crate) plan: Plan,
    pub(crate) gateways: Vec<Gateway>,
    /// Each gateway's way to Redis.
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) truth: Arc<Truth>,
    pub(crate) upstream: Control,
    arguments: Arguments,
    tally: Tally,
}

impl Place {
    pub(crate) fn allows(&self, name: &str) -> bool {
        self.arguments.allows(name)
    }

    pub(crate) fn count(&self, what: impl Into<String>) {
        self.tally.count(self.plan.name, what);
    }

    pub(crate) fn event(&self, what: impl std::fmt::Display) {
        self.tally.event(self.plan.name, what);
    }

    pub(crate) fn wrong(&self, check: &'static str, what: impl std::fmt::Display) {
        self.wrong_at(Instant::now(), check, what);
    }

    pub(crate) fn wrong_at(&self, at: Instant, check: &'static str, what: impl std::fmt::Display) {
        self.tally.wrong(self.plan.name, at, check, what);
    }

    pub(crate) fn seconds(&self, at: Instant) -> f64 {
        self.tally.seconds(at)
    }
}

impl Lane {
    /// Starts everything, on ports of its own.
    pub(crate) async fn start(plan: Plan, arguments: &Arguments, tally: &Tally) -> Self {
        let temporary = tempfile::tempdir().expect("there is room for logs");
        let directory = arguments
            .logs
            .as_ref()
            .map_or_else(|| temporary.path().to_owned(), |logs| logs.join(plan.name));
        // What befalls one lane is not what befalls the other.
        let seed = arguments.seed + plan.quota_per_minute.unwrap_or_default() as u64;
        let options = Options {
            latency: Duration::from_millis(5),
            jitter: Duration::from_millis(30),
            seed,
            recorded: 1,
            ..Options::default()
        };
        let simulator = Simulator::start(options)
            .await
            .expect("loopback has a port");
        let truth = Arc::new(Truth::new(GATEWAYS));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("loopback has a port");
        let base_url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let recorder = tokio::spawn(recorder::serve(
            listener,
            simulator.address(),
            truth.clone(),
        ));
        let servers = Servers::start(directory.clone()).await;
        let (gateways, proxies) =
            start_gateways(&directory, &base_url, servers.primary.port, plan).await;
        let place = Place {
            plan,
            gateways,
            proxies,
            truth,
            upstream: simulator.control(),
            arguments: arguments.clone(),
            tally: tally.clone(),
        };
        for gateway in 0..GATEWAYS {
            watch::settle(&place, gateway).await;
        }
        Self {
            place: Arc::new(place),
            servers,
            random: SplitMix64::new(seed),
            _simulator: simulator,
            recorder,
            _directory: temporary,
        }
    }

    /// Breaks things for `length` while clients read, and checks what was recorded.
    pub(crate) async fn run(mut self, length: Duration) {
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        let mut fork = || SplitMix64::new(self.random.below(u64::MAX));
        let (chaos, operator) = (fork(), fork());
        for _ in 0..READERS {
            running.spawn(reader::read(self.place.clone(), fork(), stop.clone()));
        }
        for gateway in 0..GATEWAYS {
            let watching = watch::watch_redis(self.place.clone(), gateway);
            running.spawn(until(stop.clone(), watching));
        }
        running.spawn(until(
            stop.clone(),
            watch::watch_machine(self.place.clone()),
        ));
        let operating = operator::operate(self.place.clone(), operator);
        running.spawn(until(stop.clone(), operating));
        let end = Instant::now() + length;
        chaos::rage(self.place.clone(), &mut self.servers, chaos, end).await;
        stop.cancel();
        while let Some(ended) = running.join_next().await {
            ended.expect("nobody panics");
        }
        self.check_calls();
        if self.place.plan.quota_per_minute.is_none() {
            self.heal().await;
        }
        for gateway in &self.place.gateways {
            if let Err(error) = gateway.end("-TERM").await {
                self.place.wrong("process", error);
            }
        }
        self.recorder.abort();
    }

    /// Checks the calls that the upstream received.
    fn check_calls(&self) {
        let place = &self.place;
        place.truth.with(|known| {
            let (calls, at) = busiest_minute(known.calls.iter().map(|call| call.started));
            let lane = place.plan.name;
            place.tally.add(lane, "calls", known.calls.len() as u64);
            place
                .tally
                .add(lane, "calls in the busiest minute", calls as u64);
            place
                .tally
                .add(lane, "generations", known.generations.len() as u64);
            if let Some((quota, at)) = place.plan.quota_per_minute.zip(at)
                && calls > quota
            {
                place.wrong_at(
                    at,
                    "quota",
                    format!("{calls} calls in the minute before, of {quota}"),
                );
            }
            let Some(fresh_for) = place.plan.fresh_for else {
                return;
            };
            let times = times_between_fills(&known.calls, &known.changes, &known.outages);
            let judged = "check: pairs of fills without a fault";
            place.tally.add(lane, judged, times.len() as u64);
            if let Some((shortest, _)) = times.iter().min_by_key(|(after, _)| *after) {
                let shortest = shortest.as_millis() as u64;
                place
                    .tally
                    .add(lane, "ms between two of a pair at least", shortest);
            }
            for (after, second) in times {
                if after >= fresh_for {
                    continue;
                }
                place.wrong_at(
                    second.started,
                    "double fill",
                    format!("{:?}, {after:.3?} after the last", second.key),
                );
            }
        });
    }

    /// Requests every page of every gateway until it is there.
    async fn heal(&self) {
        // The operator may have been stopped before.
        for key in keys() {
            self.place.upstream.grant_space(key.space);
        }
        let until = Instant::now() + HEALS_WITHIN;
        for (number, gateway) in self.place.gateways.iter().enumerate() {
            let Some(addresses) = gateway.addresses() else {
                continue;
            };
            let mut connection = Connection::new(addresses.data);
            for key in keys() {
                while !reader::is_there(&mut connection, key).await {
                    if Instant::now() > until {
                        self.place
                            .wrong("healing", format!("gateway {number}: {key:?}"));
                        return;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Starts the gateways, and each one's way to Redis.
async fn start_gateways(
    directory: &Path,
    base_url: &str,
    redis: u16,
    plan: Plan,
) -> (Vec<Gateway>, Vec<Proxy>) {
    let mut started = (Vec::new(), Vec::new());
    for number in 0..GATEWAYS {
        let proxy = Proxy::start(redis).await;
        // One of them remembers what the others forget.
        let snapshot = match number {
            0 => format!("cache.snapshot_file = {:?}\n", directory.join("pages")),
            _ => String::new(),
        };
        let settings = snapshot + plan.config;
        let config = gateway::config(base_url, proxy.address, GATEWAYS, &settings);
        let gateway = Gateway::new(directory, &format!("gateway-{number}"), &config);
        gateway.start().await;
        started.0.push(gateway);
        started.1.push(proxy);
    }
    started
}

async fn until(stop: CancellationToken, running: impl Future) {
    stop.run_until_cancelled_owned(running).await;
}
