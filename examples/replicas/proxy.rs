//! A way to Redis that can be cut, stalled, slowed and led elsewhere, one for each gateway.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    Open,
    /// Every connection is reset, old and new.
    Reset,
    /// Nothing passes, and nobody is told.
    Silent,
    /// Each packet waits.
    Slow(Duration),
}

#[derive(Clone, Copy, Debug)]
struct Way {
    state: State,
    port: u16,
    /// Raised to end all connections.
    cuts: u64,
}

/// A running proxy; dropping it ends it.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    way: watch::Sender<Way>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Leads to a port of loopback.
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("loopback has a port");
        let (state, cuts) = (State::Open, 0);
        let way = watch::Sender::new(Way { state, port, cuts });
        Self {
            address: listener.local_addr().expect("it is bound"),
            accepting: tokio::spawn(accept(listener, way.subscribe())),
            way,
        }
    }

    pub(crate) fn set(&self, state: State) {
        self.way.send_modify(|way| way.state = state);
    }

    /// Leads new connections to another port, and ends the old ones.
    pub(crate) fn lead_to(&self, port: u16) {
        self.way.send_modify(|way| {
            way.port = port;
            way.cuts += 1;
        });
    }

    pub(crate) fn cut(&self) {
        self.way.send_modify(|way| way.cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, way: watch::Receiver<Way>) {
    // Dropped with this task: so are the connections.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((near, _)) => drop(connections.spawn(carry(near, way.clone()))),
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until either end closes it or it is cut.
async fn carry(mut near: TcpStream, mut way: watch::Receiver<Way>) {
    let cuts = way.borrow().cuts;
    let ways = way.clone();
    let carried = async {
        let _ = near.set_nodelay(true);
        let port = pass(&mut ways.clone()).await?;
        let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        far.set_nodelay(true)?;
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        tokio::select! {
            ended = copy(near_read, far_write, ways.clone()) => ended,
            ended = copy(far_read, near_write, ways.clone()) => ended,
        }
    };
    let cut = way.wait_for(|way| way.state == State::Reset || way.cuts != cuts);
    let was_cut = tokio::select! {
        // Not even a connection's first bytes pass a cut.
        biased;
        _ = cut => true,
        _ = carried => false,
    };
    if was_cut {
        let _ = near.set_zero_linger();
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut way: watch::Receiver<Way>,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        pass(&mut way).await?;
        to.write_all(&bytes[..length]).await?;
    }
}

/// Waits until the next packet may pass; returns the port that it goes to.
async fn pass(way: &mut watch::Receiver<Way>) -> io::Result<u16> {
    let open = way.wait_for(|way| way.state != State::Silent).await;
    let open = *open.map_err(|_| io::ErrorKind::NotConnected)?;
    if let State::Slow(time) = open.state {
        sleep(time).await;
    }
    Ok(open.port)
}
