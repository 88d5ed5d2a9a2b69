//! What a connection is doing, and for how long it may go on so.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
    time::Duration,
};

use http::Version;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use super::{Connections, STREAM_BYTES};
use crate::server::{
    end::{ConnectionTimeouts, End},
    frames::Position,
};

/// Unsent error responses allowed on one connection. A client that causes more of them than it reads does not want the answers.
const MAX_WAITING_REFUSALS: u64 = 8;
/// With more unsent bytes than this on one connection, its further requests wait.
const MAX_WAITING_BYTES: u64 = 1 << 20;

/// What the connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// The very first byte.
    First,
    /// The rest of an HTTP/1 header.
    Http1Header,
    /// The rest of a frame, or of a block of header fields.
    Http2Frame,
    /// The next request.
    Request,
}

/// What a connection is doing. Shared by the connection, its byte stream and its responses.
pub(in crate::server) struct ConnectionState {
    inner: Mutex<Inner>,
    notify: Notify,
    /// Whether to write a 408 instead of whatever hyper writes next.
    is_late: AtomicBool,
    /// Whether the server is about to end.
    closing: Arc<AtomicBool>,
    server: Arc<Connections>,
}

struct Inner {
    /// Requests whose responses are not fully sent.
    in_flight: usize,
    /// Those of them whose responses have begun and have no end of their own.
    streams: usize,
    /// When the last of them was sent.
    idle_since: Instant,
    awaited: Awaited,
    awaited_since: Instant,
    /// Since when the peer accepts no bytes at all.
    blocked_since: Option<Instant>,
    /// When each unsent response last made progress, by slot.
    waiting: Vec<Option<Instant>>,
    refusals: Refusals,
    /// Unsent bytes that nobody else holds, and the overhead of HTTP/2 requests.
    unsent: u64,
    /// Whether those no longer count, since the connection is about to be closed for them.
    is_written_off: bool,
    end: Option<End>,
    /// Whether it was ever asked to end: each further request would give it more time to react.
    is_leaving: bool,
    /// Reads the peer's end of stream once all responses are sent.
    reader: Option<Waker>,
    /// Requests that begin once fewer bytes are unsent.
    held: Vec<Waker>,
}

/// Error responses made and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::server) struct Refusals {
    pub(in crate::server) made: u64,
    pub(in crate::server) left: u64,
}

impl Refusals {
    /// Whether too many of the first `made` are unsent.
    pub(in crate::server) fn are_too_many(self, made: u64) -> bool {
        made.saturating_sub(self.left) > MAX_WAITING_REFUSALS
    }
}

impl ConnectionState {
    pub(in crate::server) fn new(server: Arc<Connections>, closing: Arc<AtomicBool>) -> Self {
        let now = Instant::now();
        Self {
            inner: Mutex::new(Inner {
                in_flight: 0,
                streams: 0,
                idle_since: now,
                awaited: Awaited::First,
                awaited_since: now,
                blocked_since: None,
                waiting: Vec::new(),
                refusals: Refusals::default(),
                unsent: 0,
                is_written_off: false,
                end: None,
                is_leaving: false,
                reader: None,
                held: Vec::new(),
            }),
            notify: Notify::new(),
            is_late: AtomicBool::new(false),
            closing,
            server,
        }
    }

    pub(in crate::server) fn server(&self) -> &Connections {
        &self.server
    }

    /// HTTP may begin: the handshake before it had a deadline of its own.
    pub(in crate::server) fn opened(&self) {
        let mut inner = self.inner.lock();
        inner.awaited_since = Instant::now();
        inner.idle_since = inner.awaited_since;
    }

    /// A request's header is complete; the request lasts until the guard is dropped.
    pub(in crate::server) fn request(self: &Arc<Self>, version: Version) -> InFlight {
        let mut inner = self.inner.lock();
        inner.in_flight += 1;
        if inner.awaited != Awaited::Http2Frame {
            inner.awaited = Awaited::Request;
        }
        drop(inner);
        let is_http2 = version == Version::HTTP_2;
        if is_http2 {
            self.server.stream_begins();
            self.add_unsent(STREAM_BYTES);
        }
        InFlight {
            is_http2,
            is_stream: false,
            state: self.clone(),
        }
    }

    fn add_unsent(&self, bytes: u64) {
        let is_too_much = self.server.add_unsent(bytes);
        let mut inner = self.inner.lock();
        if inner.is_written_off {
            self.server.remove_unsent(bytes);
        } else {
            inner.unsent += bytes;
        }
        drop(inner);
        if is_too_much {
            self.server.shed_unsent();
        }
    }

    fn remove_unsent(&self, inner: &mut Inner, bytes: u64) {
        if !inner.is_written_off {
            inner.unsent -= bytes;
            self.server.remove_unsent(bytes);
        }
        if inner.unsent <= MAX_WAITING_BYTES && !inner.held.is_empty() {
            inner.held.drain(..).for_each(Waker::wake);
        }
    }

    /// Something was read that ends at `position`.
    pub(in crate::server) fn read(&self, position: Position) {
        let mut inner = self.inner.lock();
        match (position, inner.awaited) {
            (Position::Between, _) => inner.awaited = Awaited::Request,
            (Position::Within { is_new: false }, Awaited::Http2Frame)
            | (Position::Http1, Awaited::Http1Header) => {}
            (Position::Within { .. }, _) => inner.began(Awaited::Http2Frame),
            // A pipelined request may take its time while a response is being sent.
            (Position::Http1, _) if inner.is_busy() => {}
            (Position::Http1, _) => inner.began(Awaited::Http1Header),
        }
    }

    /// Notes whether the peer accepts bytes.
    pub(in crate::server) fn set_blocked(&self, is_blocked: bool) {
        self.inner.lock().blocked_since = is_blocked.then(Instant::now);
    }

    /// Tracks unsent bytes of a response, `own` of which nobody else holds; returns their slot.
    pub(in crate::server) fn hand(&self, own: u64, is_refusal: bool) -> usize {
        if own > 0 {
            self.add_unsent(own);
        }
        let mut inner = self.inner.lock();
        if is_refusal {
            inner.refusals.made += 1;
            if inner.refusals.are_too_many(inner.refusals.made) {
                self.notify.notify_one();
            }
        }
        inner.follow(Instant::now())
    }

    /// Some of the bytes at `slot` were written.
    pub(in crate::server) fn moved(&self, slot: usize) {
        self.inner.lock().waiting[slot] = Some(Instant::now());
    }

    /// What [`ConnectionState::hand`] tracks has been written, or never will be.
    pub(in crate::server) fn left(&self, slot: usize, own: u64, is_refusal: bool) {
        let mut inner = self.inner.lock();
        inner.waiting[slot] = None;
        inner.refusals.left += u64::from(is_refusal);
        self.remove_unsent(&mut inner, own);
    }

    /// Whether a request may begin; if not, the waker is called once it may.
    pub(in crate::server) fn may_begin(&self, waker: &Waker) -> bool {
        let mut inner = self.inner.lock();
        let may = inner.unsent <= MAX_WAITING_BYTES;
        if !may {
            inner.held.push(waker.clone());
        }
        may
    }

    /// Whether responses are unsent, so that the peer's end of stream has to wait; the waker is called when they are sent.
    pub(in crate::server) fn is_busy_for(&self, reader: &Waker) -> bool {
        let mut inner = self.inner.lock();
        let is_busy = inner.is_busy();
        if is_busy {
            inner.reader = Some(reader.clone());
        }
        is_busy
    }

    pub(in crate::server) fn is_busy(&self) -> bool {
        self.inner.lock().is_busy()
    }

    /// Whether all responses that are unsent are streams: a peer that closes its side waits for none of them.
    pub(in crate::server) fn only_streams(&self) -> bool {
        let inner = self.inner.lock();
        inner.is_busy() && inner.in_flight == inner.streams
    }

    /// Since when it is idle, unless it was asked to end.
    pub(in crate::server) fn idle_since(&self) -> Option<Instant> {
        let inner = self.inner.lock();
        let is_idle = !inner.is_busy() && !inner.is_leaving && inner.end.is_none();
        is_idle.then_some(inner.idle_since)
    }

    pub(in crate::server) fn unsent(&self) -> u64 {
        self.inner.lock().unsent
    }

    pub(in crate::server) fn refusals(&self) -> Refusals {
        self.inner.lock().refusals
    }

    /// Asks the connection to end and stops counting its bytes; returns how many there were.
    pub(in crate::server) fn write_off(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.is_written_off = true;
        inner.end = Some(End::UnsentBytes);
        self.notify.notify_one();
        std::mem::take(&mut inner.unsent)
    }

    /// Asks the connection to end.
    pub(in crate::server) fn request_end(&self, end: End) {
        let mut inner = self.inner.lock();
        inner.end = Some(end);
        inner.is_leaving = true;
        drop(inner);
        self.notify.notify_one();
    }

    /// Resolves when an end was asked for or too many error responses are unsent.
    pub(in crate::server) fn notified(&self) -> Notified<'_> {
        self.notify.notified()
    }

    /// Takes the end that was asked for.
    pub(in crate::server) fn take_end(&self) -> Option<End> {
        self.inner.lock().end.take()
    }

    /// How long until a timeout may expire.
    ///
    /// # Errors
    ///
    /// Returns the timeout that has expired.
    pub(in crate::server) fn due(&self, timeouts: &ConnectionTimeouts) -> Result<Duration, End> {
        self.inner.lock().due(timeouts, Instant::now())
    }

    /// Has a 408 written if an HTTP/1 request header has begun; returns whether it has.
    pub(in crate::server) fn refuse_late(&self) -> bool {
        let has_begun = self.inner.lock().awaited == Awaited::Http1Header;
        self.is_late.store(has_begun, Ordering::Release);
        has_begun
    }

    pub(in crate::server) fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Acquire)
    }
}

impl Inner {
    fn is_busy(&self) -> bool {
        self.in_flight > 0
    }

    fn began(&mut self, awaited: Awaited) {
        self.awaited = awaited;
        self.awaited_since = Instant::now();
    }

    fn follow(&mut self, now: Instant) -> usize {
        let free = self.waiting.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.waiting.len());
        if free.is_none() {
            self.waiting.push(None);
        }
        self.waiting[slot] = Some(now);
        slot
    }

    fn due(&self, timeouts: &ConnectionTimeouts, now: Instant) -> Result<Duration, End> {
        let left = |since: Instant, limit: Duration, end| {
            let left = limit.saturating_sub(now.saturating_duration_since(since));
            if left.is_zero() { Err(end) } else { Ok(left) }
        };
        let mut due = timeouts.shortest();
        for since in self.waiting.iter().flatten().chain(&self.blocked_since) {
            due = due.min(left(*since, timeouts.send, End::SendTimeout)?);
        }
        if self.is_busy() {
            return Ok(due);
        }
        // A frame is not a request: a peer that only ever sends partial frames (PINGs, say) is idle too.
        if matches!(self.awaited, Awaited::Request | Awaited::Http2Frame) {
            due = due.min(left(self.idle_since, timeouts.idle, End::Idle)?);
        }
        let rest = match self.awaited {
            Awaited::Request => Ok(due),
            Awaited::First | Awaited::Http1Header | Awaited::Http2Frame => {
                // A peer need not send while it receives.
                let since = self.awaited_since.max(self.idle_since);
                left(since, timeouts.header, End::HeaderTimeout)
            }
        };
        Ok(due.min(rest?))
    }
}

/// A request in flight, until its response is sent.
pub(in crate::server) struct InFlight {
    /// HTTP/1 has one request at a time, whose buffers belong to the connection.
    is_http2: bool,
    is_stream: bool,
    state: Arc<ConnectionState>,
}

impl InFlight {
    /// Its response has begun and has no end of its own.
    pub(in crate::server) fn streams(&mut self) {
        self.is_stream = true;
        self.state.inner.lock().streams += 1;
    }

    /// Whether its response should be the connection's last.
    pub(in crate::server) fn is_closing(&self) -> bool {
        self.state.closing.load(Ordering::Acquire)
    }

    pub(in crate::server) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut inner = self.state.inner.lock();
        inner.in_flight -= 1;
        inner.streams -= usize::from(self.is_stream);
        if self.is_http2 {
            self.state.remove_unsent(&mut inner, STREAM_BYTES);
            self.state.server.stream_ends();
        }
        if !inner.is_busy() {
            inner.idle_since = Instant::now();
            if let Some(reader) = inner.reader.take() {
                reader.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TIMEOUTS: ConnectionTimeouts = ConnectionTimeouts {
        header: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        send: Duration::from_secs(30),
    };

    fn state() -> Arc<ConnectionState> {
        let server = Arc::new(Connections::new(u64::MAX));
        Arc::new(ConnectionState::new(server, Arc::default()))
    }

    /// When something is due, and what.
    async fn due(state: &ConnectionState) -> (Duration, End) {
        let from = Instant::now();
        loop {
            match state.due(&TIMEOUTS) {
                Ok(left) => tokio::time::advance(left).await,
                Err(end) => return (from.elapsed(), end),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_connection_does_says_when_it_ends() {
        let header = (TIMEOUTS.header, End::HeaderTimeout);
        let idle = (TIMEOUTS.idle, End::Idle);
        let within = |is_new| Position::Within { is_new };
        let table: &[(&[Position], _)] = &[
            (&[], header),
            (&[Position::Http1], header),
            (&[within(true)], header),
            (&[Position::Between], idle),
            (&[Position::Between, within(true)], header),
            (&[Position::Between, within(true), Position::Between], idle),
        ];
        for (reads, expected) in table {
            let state = state();
            for read in *reads {
                state.read(*read);
            }
            assert_eq!(due(&state).await, *expected, "{reads:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_dribbles_counts_from_its_begin() {
        let state = state();
        state.read(Position::Between);
        tokio::time::advance(40 * SECOND).await;
        state.read(Position::Within { is_new: true });
        tokio::time::advance(4 * SECOND).await;
        state.read(Position::Within { is_new: false });
        assert_eq!(due(&state).await, (6 * SECOND, End::HeaderTimeout));

        state.read(Position::Within { is_new: true });
        assert_eq!(due(&state).await, (TIMEOUTS.header, End::HeaderTimeout));
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_are_never_all_finished_keep_no_connection() {
        let state = state();
        state.read(Position::Between);
        for _ in 0..14 {
            tokio::time::advance(5 * SECOND).await;
            state.read(Position::Within { is_new: true });
            assert!(state.due(&TIMEOUTS).is_ok());
        }
        assert_eq!(due(&state).await, (5 * SECOND, End::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn idling_begins_when_the_last_answer_has_left() {
        let state = state();
        state.read(Position::Http1);
        let first = state.request(Version::HTTP_11);
        let second = state.request(Version::HTTP_11);
        tokio::time::advance(100 * SECOND).await;
        drop(first);
        assert_eq!(state.due(&TIMEOUTS), Ok(TIMEOUTS.shortest()));
        drop(second);
        assert_eq!(due(&state).await, (TIMEOUTS.idle, End::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_frame_counts_from_when_no_answer_is_sent() {
        let state = state();
        let request = state.request(Version::HTTP_2);
        state.read(Position::Within { is_new: true });
        tokio::time::advance(100 * SECOND).await;
        drop(request);
        assert_eq!(due(&state).await, (TIMEOUTS.header, End::HeaderTimeout));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_among_others_that_move_ends_its_connection() {
        let state = state();
        let _request = state.request(Version::HTTP_2);
        let (stalled, moving) = (state.hand(0, false), state.hand(0, false));
        tokio::time::advance(20 * SECOND).await;
        state.moved(moving);
        assert_eq!(due(&state).await, (10 * SECOND, End::SendTimeout));
        state.left(stalled, 0, false);
        assert_eq!(due(&state).await, (20 * SECOND, End::SendTimeout));
        state.left(moving, 0, false);
        assert_eq!(state.due(&TIMEOUTS), Ok(TIMEOUTS.shortest()));
        assert_eq!(
            state.hand(0, false),
            stalled.min(moving),
            "slots are used again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_no_byte_at_all_is_ended_though_nothing_is_asked() {
        let state = state();
        state.read(Position::Between);
        state.set_blocked(true);
        assert_eq!(due(&state).await, (TIMEOUTS.send, End::SendTimeout));
        state.set_blocked(false);
        assert_eq!(
            due(&state).await,
            (TIMEOUTS.idle - TIMEOUTS.send, End::Idle)
        );
    }
}
