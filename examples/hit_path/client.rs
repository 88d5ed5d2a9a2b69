//! An in-memory client: it sends a request, reads the whole response, and repeats.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use unpod_gateway::simulator::SplitMix64;

/// What the client received, while the server owns the connection.
#[derive(Debug, Default)]
pub(crate) struct Got {
    pub(crate) answers: AtomicUsize,
    pub(crate) bytes: AtomicUsize,
    /// The bytes of the first response.
    first: Mutex<Vec<u8>>,
}

impl Got {
    pub(crate) fn first(&self) -> MutexGuard<'_, Vec<u8>> {
        self.first.lock()
    }
}

/// The server's end of a connection; the client sends `left` more requests, one at a time.
pub(crate) struct Client {
    /// The requests, one chosen at random each time.
    requests: Arc<[Bytes]>,
    choice: SplitMix64,
    unsent: Bytes,
    left: usize,
    turn: Turn,
    /// The waker of a server that waits for the next request before it has responded.
    waker: Option<Waker>,
    got: Arc<Got>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The next request can be read.
    Asks,
    /// The server is working.
    Waits,
    /// Part of the response has been written.
    Reads,
    /// All of the response has been written.
    Answered,
}

impl Client {
    pub(crate) fn new(requests: Arc<[Bytes]>, asks: usize) -> (Self, Arc<Got>) {
        let got = Arc::<Got>::default();
        let client = Self {
            requests,
            choice: SplitMix64::new(1),
            unsent: Bytes::new(),
            left: asks,
            turn: Turn::Asks,
            waker: None,
            got: got.clone(),
        };
        (client, got)
    }
}

impl AsyncRead for Client {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.turn {
            Turn::Asks if this.left == 0 => Poll::Ready(Ok(())),
            Turn::Asks => {
                if this.unsent.is_empty() {
                    let chosen = this.choice.below(this.requests.len() as u64) as usize;
                    this.unsent = this.requests[chosen].clone();
                }
                // A server that detects the HTTP version reads a few bytes first.
                let fits = this.unsent.len().min(buffer.remaining());
                buffer.put_slice(&this.unsent.split_to(fits));
                if this.unsent.is_empty() {
                    this.left -= 1;
                    this.turn = Turn::Waits;
                }
                Poll::Ready(Ok(()))
            }
            Turn::Waits | Turn::Reads => {
                this.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            // The next request arrives with the next turn of the event loop, as on a socket.
            Turn::Answered => {
                this.turn = Turn::Asks;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// Accepts everything without copying: the kernel's copy is not part of the count either.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.got.answers.load(Ordering::Relaxed) == 0 {
            let mut first = self.got.first();
            for slice in slices {
                first.extend_from_slice(slice);
            }
        }
        self.got.bytes.fetch_add(length, Ordering::Relaxed);
        self.turn = Turn::Reads;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.turn == Turn::Reads {
            self.got.answers.fetch_add(1, Ordering::Relaxed);
            self.turn = match self.waker.take() {
                Some(waker) => {
                    waker.wake();
                    Turn::Asks
                }
                None => Turn::Answered,
            };
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
