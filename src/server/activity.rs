//! Ends connections that say nothing, and those that never finish a request's header.
//!
//! hyper has one timer for both, which would end a kept-alive connection after the time that a header may take.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::{Buf, Bytes};
use http::Version;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// The clock was not read in this poll yet, and no poll is under way.
const NOT_READ: u64 = u64::MAX - 1;
const NO_POLL: u64 = u64::MAX;

/// What begins every HTTP/2 connection (RFC 9113 section 3.4), and no HTTP/1 request.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// What a connection is doing, in milliseconds since it began, and whether it should go on.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    /// When the present poll of the connection is: read once for all that happens in it.
    of_poll: AtomicU64,
    in_flight: AtomicUsize,
    /// When the connection fell silent.
    idle_since: AtomicU64,
    /// When the first byte of a request came that has no complete header yet; 0 where there is none.
    reading_since: AtomicU64,
    /// Whether it speaks HTTP/2, whose frames between requests are no beginning of one.
    is_http2: AtomicBool,
    /// Whether a header took too long.
    is_late: AtomicBool,
    /// Whether the server is about to end.
    closing: Arc<AtomicBool>,
}

impl Activity {
    pub(super) fn new(closing: Arc<AtomicBool>) -> Self {
        Self {
            closing,
            began: Instant::now(),
            of_poll: AtomicU64::new(NO_POLL),
            in_flight: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            reading_since: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
            is_late: AtomicBool::new(false),
        }
    }

    /// Runs one poll of the connection.
    pub(super) fn polling<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.of_poll.store(NOT_READ, Ordering::Relaxed);
        let polled = poll();
        self.of_poll.store(NO_POLL, Ordering::Relaxed);
        polled
    }

    fn now(&self) -> u64 {
        let known = self.of_poll.load(Ordering::Relaxed);
        if known < NOT_READ {
            return known;
        }
        let now = self.began.elapsed().as_millis();
        let now = u64::try_from(now).map_or(NOT_READ - 1, |now| now.min(NOT_READ - 1));
        // An HTTP/2 request may end on another thread, after the poll: then it is no time of a poll.
        let (unread, relaxed) = (NOT_READ, Ordering::Relaxed);
        let _ = (self.of_poll).compare_exchange(unread, now, relaxed, relaxed);
        now
    }

    /// A request's header is complete; the request lasts until the guard is dropped.
    pub(super) fn request(self: &Arc<Self>, version: Version) -> InFlight {
        self.is_http2
            .store(version == Version::HTTP_2, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.reading_since.store(0, Ordering::Release);
        InFlight(self.clone())
    }

    fn received(&self, bytes: &[u8]) {
        if self.is_http2.load(Ordering::Relaxed) {
            return;
        }
        if self.in_flight.load(Ordering::Acquire) == 0
            && self.reading_since.load(Ordering::Acquire) == 0
        {
            if bytes.starts_with(PREFACE) {
                self.is_http2.store(true, Ordering::Relaxed);
                return;
            }
            self.reading_since
                .store(self.now().max(1), Ordering::Release);
        }
    }

    /// Resolves once the connection has outstayed either timeout.
    pub(super) async fn overstayed(&self, header_read_timeout: Duration, idle_timeout: Duration) {
        loop {
            let Some(left) = self.left(header_read_timeout, idle_timeout) else {
                return;
            };
            tokio::time::sleep(left).await;
        }
    }

    /// Ends the connection with a 408 where the header of an HTTP/1 request has begun; returns whether it has.
    pub(super) fn refuse_late(&self) -> bool {
        let has_begun = self.reading_since.load(Ordering::Acquire) != 0;
        self.is_late.store(has_begun, Ordering::Release);
        has_begun
    }

    /// How long until a timeout could be outstayed; `None`: it is.
    fn left(&self, header_read_timeout: Duration, idle_timeout: Duration) -> Option<Duration> {
        let now = self.now();
        let remaining = |since: u64, limit: Duration| {
            limit
                .checked_sub(Duration::from_millis(now.saturating_sub(since)))
                .filter(|left| !left.is_zero())
        };
        if self.in_flight.load(Ordering::Acquire) > 0 {
            return Some(header_read_timeout.min(idle_timeout));
        }
        match self.reading_since.load(Ordering::Acquire) {
            0 => remaining(self.idle_since.load(Ordering::Acquire), idle_timeout)
                .map(|left| left.min(header_read_timeout)),
            since => remaining(since, header_read_timeout),
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

impl InFlight {
    /// Whether its answer should be the connection's last.
    pub(super) fn is_closing(&self) -> bool {
        self.0.closing.load(Ordering::Acquire)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let activity = &self.0;
        activity.idle_since.store(activity.now(), Ordering::Release);
        activity.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection that notes when bytes come in.
#[derive(Debug)]
pub(super) struct Watched<I> {
    io: I,
    activity: Arc<Activity>,
    /// What is left to write to a peer whose header took too long, once that has begun.
    last_word: Option<Bytes>,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I, activity: Arc<Activity>) -> Self {
        Self {
            io,
            activity,
            last_word: None,
        }
    }

    /// A client that takes an answer slowly is not silent.
    fn sent(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) {
            let activity = &self.activity;
            activity.idle_since.store(activity.now(), Ordering::Release);
        }
    }
}

impl<I: AsyncWrite + Unpin> Watched<I> {
    /// Says that the header took too long, and then that the connection has ended. hyper waits for the rest of a header, and says nothing
    /// where that does not come.
    fn poll_refuse_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let last_word = self.last_word.get_or_insert_with(request_timeout);
        while !last_word.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, last_word))? {
                0 => break,
                written => last_word.advance(written),
            }
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

/// As bare as what hyper says to a header that is none.
fn request_timeout() -> Bytes {
    let now = httpdate::fmt_http_date(SystemTime::now());
    let status = "HTTP/1.1 408 Request Timeout";
    format!("{status}\r\nconnection: close\r\ncontent-length: 0\r\ndate: {now}\r\n\r\n").into()
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.activity.is_late.load(Ordering::Acquire) {
            return self.poll_refuse_late(cx);
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.received(&buffer.filled()[before..]);
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.sent(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.sent(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    async fn ends_after(activity: &Activity) -> Duration {
        let from = Instant::now();
        activity.overstayed(HEADER, IDLE).await;
        from.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_lives_for_the_idle_timeout() {
        assert_eq!(ends_after(&Activity::new(Arc::default())).await, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_never_ends_is_cut_off() {
        let activity = Activity::new(Arc::default());
        activity.received(b"GET");
        activity.received(b"GET");
        // Timers have the grain of a millisecond, and 0 stands for no header.
        let grain = Duration::from_millis(2);
        assert!(ends_after(&activity).await.abs_diff(HEADER) <= grain);
    }

    #[tokio::test(start_paused = true)]
    async fn idling_begins_when_a_request_ends() {
        let activity = Arc::new(Activity::new(Arc::default()));
        activity.received(b"GET");
        let request = activity.request(Version::HTTP_11);
        tokio::time::advance(Duration::from_secs(100)).await;
        drop(request);
        assert_eq!(ends_after(&activity).await, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn each_poll_has_a_time_of_its_own() {
        let activity = Arc::new(Activity::new(Arc::default()));
        let second = Duration::from_secs(1);
        tokio::time::advance(second).await;
        let request = activity.polling(|| {
            activity.received(b"GET");
            activity.request(Version::HTTP_11)
        });
        tokio::time::advance(second).await;
        let read = activity.polling(|| {
            drop(request);
            (activity.now(), activity.of_poll.load(Ordering::Relaxed))
        });
        assert_eq!(read, (2000, 2000), "it was read once");
        tokio::time::advance(second).await;
        assert_eq!(activity.now(), 3000);
        assert_eq!(ends_after(&activity).await, IDLE - second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_between_http2_requests_begins_none() {
        let activity = Arc::new(Activity::new(Arc::default()));
        drop(activity.request(Version::HTTP_2));
        activity.received(b"GET");
        assert_eq!(ends_after(&activity).await, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_preface_is_no_header_that_never_ends() {
        let activity = Activity::new(Arc::default());
        activity.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        activity.received(b"a frame");
        assert_eq!(ends_after(&activity).await, IDLE);
        assert!(!activity.refuse_late(), "nobody there reads HTTP/1");
        activity.is_http2.store(false, Ordering::Relaxed);
        activity.received(b"GET / HTTP/1.1");
        assert!(activity.refuse_late());
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_request_is_no_silence() {
        let activity = Arc::new(Activity::new(Arc::default()));
        let _request = activity.request(Version::HTTP_11);
        let watched =
            tokio::time::timeout(Duration::from_secs(1000), activity.overstayed(HEADER, IDLE));
        assert!(watched.await.is_err());
    }
}
