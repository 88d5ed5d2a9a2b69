//! A connection's byte stream, which reports what passes through it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::futures::OwnedNotified,
};

use super::{connections::ConnectionState, frames::Incoming};

/// A stream that reports to the connection's state what passes through it.
///
/// The peer's end of stream is read once all responses are sent: a client may close its side after its request and wait for the
/// response, in HTTP/2 and over TLS too, while hyper takes that for the end of the connection. A browser that leaves a stream closes its
/// side as well, so that is the end where nothing but streams is under way.
pub(super) struct Watched<I> {
    io: I,
    state: Arc<ConnectionState>,
    incoming: Incoming,
    /// Whether the peer has closed its side.
    is_read_closed: bool,
    is_blocked: bool,
    /// What is left to write of the 408 for a header that took too long.
    refusal: Option<Bytes>,
    /// While HTTP/2 requests are not read because too many are in flight.
    room: Option<Pin<Box<OwnedNotified>>>,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I, state: Arc<ConnectionState>) -> Self {
        Self {
            io,
            state,
            incoming: Incoming::default(),
            is_read_closed: false,
            is_blocked: false,
            refusal: None,
            room: None,
        }
    }

    /// Reports whether the peer accepts bytes, if that has changed.
    fn written<T>(&mut self, written: &Poll<io::Result<T>>) {
        let is_blocked = written.is_pending();
        if is_blocked != self.is_blocked {
            self.is_blocked = is_blocked;
            self.state.set_blocked(is_blocked);
        }
    }
}

impl<I: AsyncRead + Unpin> Watched<I> {
    /// Waits while more requests are under way than may be on all connections together. What is read is begun at once, up to a hundred
    /// requests on each connection, before the first of those that are to end hears of it.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let server = self.state.server();
        let mut has_waited = self.room.is_some();
        while server.is_full() {
            has_waited = true;
            let room = self.room.get_or_insert_with(|| Box::pin(server.room()));
            ready!(room.as_mut().poll(cx));
            self.room = None;
        }
        self.room = None;
        if has_waited {
            server.pass_on();
        }
        Poll::Ready(())
    }

    fn poll_read_open(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buffer));
        let bytes = &buffer.filled()[before..];
        if !bytes.is_empty() {
            let position = self.incoming.read(bytes);
            self.state.read(position);
            return Poll::Ready(read);
        }
        // TLS reports an unannounced end as an error.
        let is_end = read.as_ref().map_or_else(
            |error| error.kind() == io::ErrorKind::UnexpectedEof,
            |()| true,
        );
        if is_end && buffer.remaining() > 0 && !self.state.only_streams() {
            self.is_read_closed = true;
            // HTTP/2 requests from the same read begin in this turn.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(read)
    }

    fn poll_read_closed(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if self.state.is_busy_for(cx.waker()) {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> Watched<I> {
    /// Says that the header took too long, and then that the connection has ended. hyper waits for the rest of a header, and says nothing
    /// where that does not come.
    fn poll_refuse_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let refusal = self.refusal.get_or_insert_with(request_timeout);
        while !refusal.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, refusal))? {
                0 => break,
                written => refusal.advance(written),
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
        if self.state.is_late() {
            return self.poll_refuse_late(cx);
        }
        if self.is_read_closed {
            return self.poll_read_closed(cx);
        }
        if matches!(self.incoming, Incoming::Http2(_)) {
            ready!(self.poll_room(cx));
        }
        self.poll_read_open(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.written(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.written(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.written(&shut);
        shut
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
