//! The load generator: hyper's client on one thread. It checks the status and length of every response.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinSet, time::sleep_until};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, HandshakeKind},
};

use crate::request::{Feed, Form};

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;

/// Where and how to connect.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
    pub http2: bool,
}

/// A connection, or a stream of one.
pub enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Sender {
    /// A new connection, and whether it resumed a TLS session.
    pub async fn connect(target: &Target) -> Result<(Self, bool)> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &target.tls else {
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            return Ok((Self::Http1(sender), false));
        };
        let name = target.address.ip().into();
        let stream = TlsConnector::from(tls.clone())
            .connect(name, stream)
            .await?;
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        let io = TokioIo::new(stream);
        let sender = if target.http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Self::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            Self::Http1(sender)
        };
        Ok((sender, resumed))
    }

    pub async fn send(&mut self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>> {
        Ok(match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }

    /// Sends a request and checks the response.
    async fn ask(&mut self, request: Request<Empty<Bytes>>, expected: Expect) -> Result<()> {
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, Bytes::len);
        }
        if status != expected.status || expected.length.is_some_and(|wanted| wanted != length) {
            let what = format!("expected {expected:?}, got {status} with {length} bytes");
            return Err(what.into());
        }
        Ok(())
    }
}

/// What every response must be.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    pub status: u16,
    pub length: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each connection sends its next request when it has the response.
    Closed,
    /// All connections together send so many a second, whether or not responses come.
    PerSecond(f64),
}

/// What to request, and what must come.
#[derive(Clone, Debug)]
pub struct Job {
    pub target: Target,
    pub form: Form,
    pub feed: Feed,
    pub expected: Expect,
}

/// The times of responses. In an open loop a request that had to wait for a free connection has waited since it was due.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub times: Vec<Duration>,
    pub took: Duration,
    /// How many connections resumed a TLS session.
    pub resumed: usize,
}

impl Tally {
    /// The time that a share of the responses took at most.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        let at = (times.len() as f64 * share) as usize;
        let last = times.len().saturating_sub(1);
        times.get(at.min(last)).copied().unwrap_or_default()
    }
}

/// Open connections, each with so many streams.
pub struct Load {
    job: Job,
    senders: Vec<Sender>,
}

impl Load {
    pub async fn connect(job: Job, connections: usize, streams: usize) -> Result<Self> {
        let mut senders = Vec::new();
        for _ in 0..connections {
            let (sender, _) = Sender::connect(&job.target).await?;
            if let Sender::Http2(sender) = &sender {
                senders.extend((1..streams).map(|_| Sender::Http2(sender.clone())));
            }
            senders.push(sender);
        }
        Ok(Self { job, senders })
    }

    /// Sends requests for `length` or until there are no more, and waits for the last response.
    pub async fn run(&mut self, pace: Pace, length: Duration) -> Result<Tally> {
        let began = Instant::now();
        let senders = std::mem::take(&mut self.senders);
        let count = senders.len();
        let mut lanes = JoinSet::new();
        for (at, mut sender) in senders.into_iter().enumerate() {
            let job = self.job.clone();
            let clock = Clock::new(began, length, pace, at, count);
            lanes.spawn(async move {
                let times = lane(&mut sender, &job, clock).await?;
                Ok::<_, Error>((sender, times))
            });
        }
        let mut tally = Tally::default();
        while let Some(lane) = lanes.join_next().await {
            let (sender, times) = lane??;
            self.senders.push(sender);
            tally.times.extend(times);
        }
        tally.took = began.elapsed();
        Ok(tally)
    }
}

async fn lane(sender: &mut Sender, job: &Job, mut clock: Clock) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    while let Some(began) = clock.next().await {
        let Some(key) = job.feed.next() else {
            break;
        };
        let request = job.form.request(&job.target, key);
        sender.ask(request, job.expected).await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Opens so many connections a second, each for one request; resumes TLS sessions from the second on. `tls` makes a client without sessions.
pub async fn reconnect(
    job: &Job,
    tls: impl Fn() -> Arc<ClientConfig>,
    per_second: f64,
    length: Duration,
) -> Result<Tally> {
    const AT_ONCE: usize = 64;
    let began = Instant::now();
    let mut lanes = JoinSet::new();
    for at in 0..AT_ONCE {
        let mut job = job.clone();
        // Sessions of its own: tickets are used once, and a shared store holds few.
        job.target.tls = Some(tls());
        let mut clock = Clock::new(began, length, Pace::PerSecond(per_second), at, AT_ONCE);
        lanes.spawn(async move {
            let mut tally = Tally::default();
            while let Some(began) = clock.next().await {
                let (mut sender, resumed) = Sender::connect(&job.target).await?;
                let Some(key) = job.feed.next() else {
                    break;
                };
                let request = job.form.request(&job.target, key);
                sender.ask(request, job.expected).await?;
                tally.resumed += usize::from(resumed);
                tally.times.push(began.elapsed());
            }
            Ok::<_, Error>(tally)
        });
    }
    let mut all = Tally::default();
    while let Some(lane) = lanes.join_next().await {
        let lane = lane??;
        all.times.extend(lane.times);
        all.resumed += lane.resumed;
    }
    all.took = began.elapsed();
    Ok(all)
}

/// When one of `count` lanes sends its requests.
struct Clock {
    began: Instant,
    length: Duration,
    pace: Pace,
    at: usize,
    count: usize,
}

impl Clock {
    fn new(began: Instant, length: Duration, pace: Pace, at: usize, count: usize) -> Self {
        Self {
            began,
            length,
            pace,
            at,
            count,
        }
    }

    /// Waits until the next request is due; returns since when it has waited, or `None` at the end.
    async fn next(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let Pace::PerSecond(rate) = self.pace else {
            return (now < self.began + self.length).then_some(now);
        };
        let due = self.began + Duration::from_secs_f64(self.at as f64 / rate);
        self.at += self.count;
        if due >= self.began + self.length {
            return None;
        }
        if due <= now {
            return Some(due);
        }
        sleep_until(due.into()).await;
        // The timer ticks in milliseconds, which is not the server's fault.
        Some(Instant::now())
    }
}

/// A whole response, for checks.
pub async fn fetch(
    target: &Target,
    request: Request<Empty<Bytes>>,
) -> Result<(Response<()>, Bytes)> {
    let (mut sender, _) = Sender::connect(target).await?;
    let (head, body) = sender.send(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok((Response::from_parts(head, ()), body))
}

pub fn other(what: impl Into<String>) -> Error {
    io::Error::other(what.into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_times() {
        let times = (1..=100).rev().map(Duration::from_millis).collect();
        let tally = Tally {
            times,
            ..Tally::default()
        };
        assert_eq!(tally.quantile(0.5), Duration::from_millis(51));
        assert_eq!(tally.quantile(0.99), Duration::from_millis(100));
        assert_eq!(Tally::default().quantile(0.5), Duration::ZERO);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn lanes_share_a_rate_and_a_late_one_has_waited_since_it_was_due() {
        let began = Instant::now() - Duration::from_secs(10);
        let mut clock = Clock::new(began, Duration::from_secs(2), Pace::PerSecond(4.0), 1, 4);
        let due = |seconds| began + Duration::from_secs_f64(seconds);
        assert_eq!(clock.next().await, Some(due(0.25)));
        assert_eq!(clock.next().await, Some(due(1.25)));
        assert_eq!(clock.next().await, None);
    }
}
