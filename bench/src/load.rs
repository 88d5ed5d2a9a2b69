//! The load generator: one thread, keep-alive connections, one request at a time on each.
//!
//! A lane without a pace is a closed loop, for throughput. A lane with one is an open loop: each request is scheduled for a time, and the
//! wait for a free connection counts as latency (no coordinated omission). Every response is checked.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};

use crate::{
    histogram::Histogram,
    reader::{Answer, Reader, Unreadable},
    request::Feed,
};

/// More than the length of any response.
const SCRATCH: usize = 256 << 10;
/// Longer than any response takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The expected response.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    pub status: u16,
    /// `None`: a body of any length, since it depends on the compressor.
    pub body_len: Option<u64>,
}

impl Expect {
    fn is_met(&self, answer: Answer) -> bool {
        answer.status == self.status
            && self
                .body_len
                .map_or(answer.body_len > 0, |length| length == answer.body_len)
    }
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As soon as a connection is free.
    Closed,
    /// At a fixed rate, independent of responses.
    PerSecond(f64),
}

/// Why a measurement is invalid.
#[derive(Debug)]
pub enum LoadError {
    Io(io::Error),
    Unreadable(Unreadable),
    Wrong { expected: Expect, got: Answer },
    Closed,
    Stuck,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "connection failed: {error}"),
            Self::Unreadable(what) => write!(f, "not an HTTP answer: {what:?}"),
            Self::Wrong { expected, got } => write!(f, "expected {expected:?}, got {got:?}"),
            Self::Closed => f.write_str("the server closed a connection"),
            Self::Stuck => write!(f, "no answer within {PATIENCE:?}"),
        }
    }
}

impl std::error::Error for LoadError {}

impl From<io::Error> for LoadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Requests of one kind, with their own connections.
#[derive(Debug)]
struct Lane {
    feed: Feed,
    expect: Expect,
    pace: Pace,
    idle: Vec<usize>,
    /// Scheduled times of requests that wait for a free connection.
    late: VecDeque<Instant>,
    next_due: Option<Instant>,
    is_spent: bool,
    tally: Tally,
}

/// The result of a lane.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub answers: u64,
    /// From a request's scheduled time to the last byte of its response.
    pub times: Histogram,
}

#[derive(Debug)]
struct Connection {
    lane: usize,
    stream: TcpStream,
    reader: Reader,
    /// The scheduled time of the request in flight.
    meant: Option<Instant>,
}

#[derive(Debug)]
pub struct Load {
    poll: Poll,
    events: Events,
    scratch: Box<[u8]>,
    lanes: Vec<Lane>,
    connections: Vec<Connection>,
    under_way: usize,
}

impl Load {
    /// # Errors
    ///
    /// Returns why the system has no poll.
    pub fn new() -> Result<Self, LoadError> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            lanes: Vec::new(),
            connections: Vec::new(),
            under_way: 0,
        })
    }

    /// A load of one closed lane.
    ///
    /// # Errors
    ///
    /// Returns why it cannot connect.
    pub fn closed(
        server: SocketAddr,
        connections: usize,
        feed: Feed,
        expect: Expect,
    ) -> Result<Self, LoadError> {
        let mut load = Self::new()?;
        load.add_lane(server, connections, feed, expect, Pace::Closed)?;
        Ok(load)
    }

    /// Adds a lane, with its connections made; lanes are counted from 0.
    ///
    /// # Errors
    ///
    /// Returns why it cannot connect.
    pub fn add_lane(
        &mut self,
        server: SocketAddr,
        connections: usize,
        feed: Feed,
        expect: Expect,
        pace: Pace,
    ) -> Result<(), LoadError> {
        let lane = self.lanes.len();
        let first = self.connections.len();
        for token in first..first + connections {
            let connection = Connection::open(server, lane)?;
            self.connections.push(connection);
            let stream = &mut self.connections[token].stream;
            self.poll
                .registry()
                .register(stream, Token(token), Interest::READABLE)?;
        }
        self.lanes.push(Lane {
            feed,
            expect,
            pace,
            idle: (first..first + connections).collect(),
            late: VecDeque::new(),
            next_due: None,
            is_spent: false,
            tally: Tally::default(),
        });
        Ok(())
    }

    /// Sends for this long and discards earlier results; requests in flight at the end stay in flight.
    ///
    /// # Errors
    ///
    /// Returns the first unexpected response.
    pub fn run_for(&mut self, duration: Duration) -> Result<Duration, LoadError> {
        for lane in &mut self.lanes {
            lane.tally = Tally::default();
        }
        let began = Instant::now();
        while began.elapsed() < duration {
            self.turn()?;
        }
        Ok(began.elapsed())
    }

    /// Sends until no lane has requests left, and waits for the last response.
    ///
    /// # Errors
    ///
    /// As [`Self::run_for`]; also if there is no response for long.
    pub fn run_out(&mut self) -> Result<(), LoadError> {
        let mut last_progress = Instant::now();
        loop {
            let before = self.answers();
            self.turn()?;
            if self.under_way == 0 && self.lanes.iter().all(|lane| lane.is_spent) {
                return Ok(());
            }
            if self.answers() > before {
                last_progress = Instant::now();
            } else if last_progress.elapsed() > PATIENCE {
                return Err(LoadError::Stuck);
            }
        }
    }

    /// Stops sending and waits for requests in flight.
    ///
    /// # Errors
    ///
    /// As [`Self::run_out`].
    pub fn finish(&mut self) -> Result<(), LoadError> {
        for lane in &mut self.lanes {
            lane.is_spent = true;
            lane.late.clear();
        }
        self.run_out()
    }

    /// The result of a lane since the last [`Self::run_for`] began.
    pub fn tally(&self, lane: usize) -> &Tally {
        &self.lanes[lane].tally
    }

    fn answers(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.tally.answers).sum()
    }

    /// Sends requests that are due, then reads responses.
    fn turn(&mut self) -> Result<(), LoadError> {
        for lane in 0..self.lanes.len() {
            self.send_due(lane)?;
        }
        // For a pace finer than the poll's milliseconds, do not sleep.
        let is_paced = |lane: &Lane| lane.pace != Pace::Closed && !lane.is_spent;
        let timeout = if self.lanes.iter().any(is_paced) {
            0
        } else {
            10
        };
        self.poll
            .poll(&mut self.events, Some(Duration::from_millis(timeout)))?;
        let ready: Vec<_> = self.events.iter().map(|event| event.token().0).collect();
        for connection in ready {
            self.receive(connection)?;
        }
        Ok(())
    }

    fn send_due(&mut self, lane: usize) -> Result<(), LoadError> {
        let now = Instant::now();
        match self.lanes[lane].pace {
            Pace::Closed => {
                while !self.lanes[lane].is_spent {
                    let Some(free) = self.lanes[lane].idle.pop() else {
                        break;
                    };
                    self.send(free, now)?;
                }
            }
            Pace::PerSecond(rate) => {
                self.lanes[lane].note_due(rate, now);
                while let (Some(free), Some(meant)) = self.lanes[lane].take_late() {
                    self.send(free, meant)?;
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, connection: usize, meant: Instant) -> Result<(), LoadError> {
        let to = &mut self.connections[connection];
        let lane = &mut self.lanes[to.lane];
        let sent = if lane.is_spent {
            None
        } else {
            // The socket's buffer is empty: it takes a whole request, or something is wrong.
            lane.feed.next(|request| {
                (&to.stream)
                    .write(request)
                    .map(|sent| sent == request.len())
            })
        };
        match sent.transpose()? {
            Some(true) => {
                to.meant = Some(meant);
                self.under_way += 1;
            }
            Some(false) => return Err(LoadError::Closed),
            None => {
                lane.is_spent = true;
                lane.idle.push(connection);
            }
        }
        Ok(())
    }

    fn receive(&mut self, connection: usize) -> Result<(), LoadError> {
        let from = &mut self.connections[connection];
        loop {
            let came = match from.stream.read(&mut self.scratch) {
                Ok(0) => return Err(LoadError::Closed),
                Ok(came) => came,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let read = from.reader.feed(&self.scratch[..came]);
            if let Some(answer) = read.map_err(LoadError::Unreadable)? {
                return self.note(connection, answer);
            }
            if came < self.scratch.len() {
                // The socket was drained; poll reports later data again.
                return Ok(());
            }
        }
    }

    fn note(&mut self, connection: usize, answer: Answer) -> Result<(), LoadError> {
        let now = Instant::now();
        let from = &mut self.connections[connection];
        let meant = from
            .meant
            .take()
            .ok_or(LoadError::Unreadable(Unreadable::Surplus))?;
        let lane = &mut self.lanes[from.lane];
        if !lane.expect.is_met(answer) {
            return Err(LoadError::Wrong {
                expected: lane.expect,
                got: answer,
            });
        }
        self.under_way -= 1;
        lane.tally.answers += 1;
        lane.tally.times.record(now - meant);
        match lane.pace {
            Pace::Closed => self.send(connection, now),
            Pace::PerSecond(_) => match lane.late.pop_front() {
                Some(meant) => self.send(connection, meant),
                None => {
                    lane.idle.push(connection);
                    Ok(())
                }
            },
        }
    }
}

impl Lane {
    /// Queues the requests that are due.
    fn note_due(&mut self, rate: f64, now: Instant) {
        if self.is_spent {
            return;
        }
        let interval = Duration::from_secs_f64(1.0 / rate);
        let mut due = self.next_due.unwrap_or(now);
        while due <= now {
            self.late.push_back(due);
            due += interval;
        }
        self.next_due = Some(due);
    }

    /// A free connection and its next request; takes nothing if either is missing.
    fn take_late(&mut self) -> (Option<usize>, Option<Instant>) {
        if self.idle.is_empty() || self.late.is_empty() {
            return (None, None);
        }
        (self.idle.pop(), self.late.pop_front())
    }
}

impl Connection {
    fn open(server: SocketAddr, lane: usize) -> io::Result<Self> {
        let stream = std::net::TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            lane,
            stream: TcpStream::from_std(stream),
            reader: Reader::default(),
            meant: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;
    use crate::{pages::Key, request::Form};

    const STALL: Duration = Duration::from_millis(200);
    const EXPECTED: Expect = Expect {
        status: 200,
        body_len: Some(2),
    };

    /// A server for one connection that stalls before its first response and always sends the same one.
    fn server_that_stalls(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let mut stall = STALL;
            while stream.read(&mut request).is_ok_and(|came| came > 0) {
                thread::sleep(std::mem::take(&mut stall));
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        address
    }

    #[test]
    fn a_stall_counts_for_all_who_should_have_been_sent_meanwhile() {
        let server = server_that_stalls("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let feed = Feed::one(&Form::new(server, 2));
        let mut load = Load::new().unwrap();
        let pace = Pace::PerSecond(100.0);
        load.add_lane(server, 1, feed, EXPECTED, pace).unwrap();
        load.run_for(STALL * 3 / 2).unwrap();
        // Two in three were due during the stall; a closed loop would have seen one slow response.
        assert!(load.tally(0).times.quantile(0.5) >= STALL / 10);
    }

    #[test]
    fn a_lane_sends_what_it_has_and_ends() {
        let server = server_that_stalls("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let feed = Feed::times(&Form::new(server, 2), Key(0), 5);
        let mut load = Load::closed(server, 1, feed, EXPECTED).unwrap();
        load.run_out().unwrap();
        assert_eq!(load.tally(0).answers, 5);
        assert!(load.tally(0).times.quantile(1.0) >= STALL);
    }

    #[test]
    fn a_wrong_answer_ends_it() {
        for answer in [
            "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\noh!",
        ] {
            let server = server_that_stalls(answer);
            let feed = Feed::one(&Form::new(server, 2));
            let mut load = Load::closed(server, 1, feed, EXPECTED).unwrap();
            let ended = load.run_for(PATIENCE);
            assert!(matches!(ended, Err(LoadError::Wrong { .. })), "{ended:?}");
        }
    }
}
