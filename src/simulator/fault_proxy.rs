//! A TCP forwarder between a gateway and its upstream that breaks connections on request.
//!
//! What a simulated upstream does wrong is still HTTP, written by a sound library; here the bytes themselves go wrong. It asks
//! the upstream to close after each answer, so that each request has a connection of its own and a script says what befalls it.

mod relay;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Running, random::SplitMix64};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long to wait when the system has no more sockets.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What befalls a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WireFault {
    /// The whole answer, this much later.
    Delay(Duration),
    /// RST in place of an answer.
    Reset,
    /// RST after half of the body.
    ResetMidBody,
    /// The request is read and never answered.
    HalfOpen,
    /// The connection is closed before the request is read.
    CloseAtOnce,
    /// FIN after half of the header.
    CloseMidHeader,
    /// FIN after half of the body.
    Truncate,
    /// Bytes that are no HTTP.
    Garbage,
    /// The body one byte at a time, each after this pause.
    SlowBody(Duration),
}

impl WireFault {
    /// The name under which it is counted.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delay(_) => "delay",
            Self::Reset => "reset",
            Self::ResetMidBody => "reset-mid-body",
            Self::HalfOpen => "half-open",
            Self::CloseAtOnce => "close-at-once",
            Self::CloseMidHeader => "close-mid-header",
            Self::Truncate => "truncate",
            Self::Garbage => "garbage",
            Self::SlowBody(_) => "slow-body",
        }
    }
}

/// A running proxy; dropping it cuts every connection.
pub struct FaultProxy {
    control: ProxyControl,
    _stop: DropGuard,
}

impl FaultProxy {
    /// Listens on a port of its own and forwards to `upstream`, at first without a fault.
    ///
    /// # Errors
    ///
    /// Returns the system's error if there is no port to be had.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let place = bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let running = Running::default();
        let stopped = running.stopped.clone();
        let shared = Arc::new(Shared {
            upstream,
            address: place.local_addr()?,
            _place: place,
            running,
            stopped: stopped.clone(),
            plan: Mutex::default(),
            accepting: tokio::sync::Mutex::default(),
        });
        let control = ProxyControl(shared);
        control.accept().await?;
        Ok(Self {
            control,
            _stop: stopped.drop_guard(),
        })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.control.0.address
    }

    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address())
    }

    #[must_use]
    pub fn control(&self) -> ProxyControl {
        self.control.clone()
    }
}

/// A handle on a running proxy; clones are handles on the same one.
#[derive(Clone)]
pub struct ProxyControl(Arc<Shared>);

impl ProxyControl {
    /// Has the next connections meet these in turn, `None` being none; those after them meet the steady faults.
    pub fn script(&self, faults: impl IntoIterator<Item = Option<WireFault>>) {
        self.0.plan.lock().script = faults.into_iter().collect();
    }

    /// Sets the faults of every connection that no script speaks of, each with its share of them from 0 to 1.
    ///
    /// They are drawn in this order, and the first that strikes wins. None: every connection passes.
    pub fn set_faults(&self, faults: Vec<(WireFault, f64)>) {
        self.0.plan.lock().faults = faults;
    }

    /// Starts chance anew from `seed`.
    pub fn set_seed(&self, seed: u64) {
        self.0.plan.lock().random = SplitMix64::new(seed);
    }

    /// Closes the listener: from then on connections are refused. The port stays ours, and connections that are open stay so.
    pub async fn refuse(&self) {
        if let Some(accepting) = self.0.accepting.lock().await.take() {
            accepting.abort();
            // Aborted or ended with the proxy: either way the listener is gone.
            let _ = accepting.await;
            self.0.plan.lock().count("refuse");
        }
    }

    /// Listens again.
    ///
    /// # Errors
    ///
    /// Returns the system's error if it cannot listen.
    pub async fn accept(&self) -> io::Result<()> {
        let mut accepting = self.0.accepting.lock().await;
        if accepting.is_none() {
            let listener = bind(self.0.address)?.listen(BACKLOG)?;
            let task = accept(listener, Arc::clone(&self.0));
            let stopped = self.0.stopped.clone();
            *accepting = Some(tokio::spawn(async move {
                stopped.run_until_cancelled_owned(task).await;
            }));
        }
        Ok(())
    }

    /// Returns how many connections were accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.0.plan.lock().connections
    }

    /// Returns how many connections are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.running.tasks.len()
    }

    /// Returns how often each fault has struck, and how often the listener was closed.
    #[must_use]
    pub fn injected(&self) -> BTreeMap<&'static str, u64> {
        self.0.plan.lock().injected.clone()
    }
}

struct Shared {
    upstream: SocketAddr,
    address: SocketAddr,
    /// Bound but not listening: keeps the port from others while connections are refused.
    _place: TcpSocket,
    running: Running,
    stopped: CancellationToken,
    plan: Mutex<Plan>,
    accepting: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// A socket that shares its port with the proxy's others.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((client, _)) => shared.take(client),
            Err(_) => tokio::time::sleep(ACCEPT_AGAIN_AFTER).await,
        }
    }
}

impl Shared {
    fn take(&self, client: TcpStream) {
        let fault = self.plan.lock().next();
        let relaying = relay::connection(client, fault, self.upstream);
        // A broken connection is what this is for.
        self.running
            .spawn(async move { relaying.await.unwrap_or_default() });
    }
}

/// What befalls the next connections, and what befell the last.
struct Plan {
    script: VecDeque<Option<WireFault>>,
    faults: Vec<(WireFault, f64)>,
    random: SplitMix64,
    connections: u64,
    injected: BTreeMap<&'static str, u64>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            script: VecDeque::new(),
            faults: Vec::new(),
            random: SplitMix64::new(1),
            connections: 0,
            injected: BTreeMap::new(),
        }
    }
}

impl Plan {
    fn next(&mut self) -> Option<WireFault> {
        self.connections += 1;
        let fault = match self.script.pop_front() {
            Some(scripted) => scripted,
            None => self.strike(),
        };
        if let Some(fault) = fault {
            self.count(fault.as_str());
        }
        fault
    }

    /// Draws for each steady fault in turn until one strikes.
    fn strike(&mut self) -> Option<WireFault> {
        let random = &mut self.random;
        let struck = self
            .faults
            .iter()
            .find(|(_, ratio)| random.fraction() < *ratio);
        struck.map(|(fault, _)| *fault)
    }

    fn count(&mut self, name: &'static str) {
        *self.injected.entry(name).or_default() += 1;
    }
}
