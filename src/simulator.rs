//! A simulated upstream: Unpod's lists of tasks and runs, with its habits and its failures, in this process.
//!
//! It serves `unpod-gateway simulate-upstream`, `unpod-gateway demo` and the integration tests. Nothing here is global:
//! several simulators run side by side. It shares no code with the gateway, lest both err alike.

mod answer;
mod args;
mod body;
mod bomb;
mod control;
mod fault;
mod fault_proxy;
pub mod gateway;
mod ledger;
mod listing;
mod paging;
mod quota;
mod random;
mod script;
mod serve;
mod task;
#[cfg(test)]
mod tests;
pub mod world;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

pub use self::{
    args::SimulateArgs,
    control::{Control, Hold},
    fault::{Fault, FaultKind, ParseFaultError},
    fault_proxy::{FaultProxy, ProxyControl, WireFault},
    ledger::RecordedRequest,
    random::SplitMix64,
    script::Scripted,
};
use self::{ledger::Ledger, quota::Quota, script::Scripts, world::World};

/// How a simulator starts; [`Control`] changes most of it later.
#[derive(Clone, Debug)]
pub struct Options {
    pub listen: SocketAddr,
    pub latency: Duration,
    /// The most that is added to the latency, uniformly.
    pub jitter: Duration,
    /// Tried in this order for each request; the first that strikes wins.
    pub faults: Vec<Fault>,
    /// For each API token.
    pub quota_per_minute: Option<u32>,
    /// The most rows of a page; `None`: as many as are asked for.
    pub max_page_size: Option<u32>,
    /// How many requests are served at once; more wait.
    pub slots: usize,
    /// How often a task is added to [`world::LIVE`].
    pub new_task_every: Option<Duration>,
    pub seed: u64,
    /// How many of the newest requests are kept for [`Control::recorded`].
    pub recorded: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            faults: Vec::new(),
            quota_per_minute: None,
            max_page_size: None,
            slots: 8,
            new_task_every: None,
            seed: 1,
            recorded: 10_000,
        }
    }
}

/// A running simulator; dropping it stops it.
pub struct Simulator {
    shared: Arc<Shared>,
    address: SocketAddr,
    connections: TaskTracker,
    stop: DropGuard,
}

impl Simulator {
    /// Binds and serves in tasks of its own.
    ///
    /// # Errors
    ///
    /// Returns the system's error if the address cannot be bound.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let new_task_every = options.new_task_every;
        let shared = Arc::new(Shared::new(options));
        let running = Running::default();
        running.spawn(serve::accept(
            listener,
            Arc::clone(&shared),
            running.clone(),
        ));
        if let Some(period) = new_task_every {
            running.spawn(grow(Arc::clone(&shared), period));
        }
        Ok(Self {
            shared,
            address,
            connections: running.tasks,
            stop: running.stopped.drop_guard(),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.shared))
    }

    /// Stops accepting, drops every connection, and waits until they are gone.
    pub async fn stop(self) {
        let Self {
            connections, stop, ..
        } = self;
        drop(stop);
        connections.close();
        connections.wait().await;
    }
}

/// Starts tasks that end when the simulator stops.
#[derive(Clone, Default)]
struct Running {
    tasks: TaskTracker,
    stopped: CancellationToken,
}

impl Running {
    fn spawn<F>(&self, task: F)
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let stopped = self.stopped.clone();
        self.tasks
            .spawn(async move { stopped.run_until_cancelled_owned(task).await.map(drop) });
    }
}

async fn grow(shared: Arc<Shared>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        shared.world.lock().add_task(world::LIVE);
    }
}

/// What the connections and the controls of one simulator share.
struct Shared {
    /// How many requests the ledger keeps.
    recorded: usize,
    world: Mutex<World>,
    ledger: Mutex<Ledger>,
    settings: Mutex<Settings>,
    quota: Mutex<Quota>,
    scripts: Mutex<Scripts>,
    slots: Arc<Semaphore>,
    /// How many [`Hold`]s live.
    holds: watch::Sender<usize>,
    /// How many tasks requests have arrived.
    arrivals: watch::Sender<u64>,
}

impl Shared {
    fn new(options: Options) -> Self {
        let mut world = World::new(options.seed);
        world.set_max_page_size(options.max_page_size);
        Self {
            recorded: options.recorded,
            world: Mutex::new(world),
            ledger: Mutex::default(),
            settings: Mutex::new(Settings {
                latency: options.latency,
                jitter: options.jitter,
                faults: options.faults,
                clock_skew: 0,
                random: SplitMix64::new(options.seed),
            }),
            quota: Mutex::new(Quota::new(options.quota_per_minute)),
            scripts: Mutex::default(),
            slots: Arc::new(Semaphore::new(options.slots)),
            holds: watch::Sender::new(0),
            arrivals: watch::Sender::new(0),
        }
    }

    /// Waits until nobody holds the requests.
    async fn released(&self) {
        // The sender lives in `self`: it cannot be gone.
        let _ = self.holds.subscribe().wait_for(|holds| *holds == 0).await;
    }
}

/// What befalls the next request.
struct Settings {
    latency: Duration,
    jitter: Duration,
    faults: Vec<Fault>,
    /// In seconds; negative: behind.
    clock_skew: i64,
    random: SplitMix64,
}

impl Settings {
    /// The upstream's own time, where it is not this machine's.
    fn skewed_date(&self) -> Option<String> {
        let skew = Duration::from_secs(self.clock_skew.unsigned_abs());
        let now = SystemTime::now();
        let skewed = match self.clock_skew {
            0 => return None,
            1.. => now + skew,
            i64::MIN..=-1 => now - skew,
        };
        Some(httpdate::fmt_http_date(skewed))
    }

    fn delay(&mut self) -> Duration {
        if self.jitter.is_zero() {
            return self.latency;
        }
        self.latency + self.jitter.mul_f64(self.random.fraction())
    }

    /// Draws for each fault in turn until one strikes.
    fn strike(&mut self) -> Option<FaultKind> {
        let random = &mut self.random;
        let struck = self
            .faults
            .iter()
            .find(|fault| random.fraction() < fault.ratio);
        struck.map(|fault| fault.kind)
    }
}
