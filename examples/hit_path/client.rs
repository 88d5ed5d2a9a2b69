//! A client in memory: it asks, reads the whole answer, and asks again.

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

/// What the client got, while the server owns its connection.
#[derive(Debug, Default)]
pub(crate) struct Got {
    pub(crate) answers: AtomicUsize,
    pub(crate) bytes: AtomicUsize,
    /// The bytes of the first answer.
    first: Mutex<Vec<u8>>,
}

impl Got {
    pub(crate) fn first(&self) -> MutexGuard<'_, Vec<u8>> {
        self.first.lock()
    }
}

/// The server's end of a connection whose client sends `left` more requests, one at a time.
pub(crate) struct Client {
    /// One of these each time.
    requests: Arc<[Bytes]>,
    choice: SplitMix64,
    unsent: Bytes,
    left: usize,
    turn: Turn,
    /// Of a server that looks for the next request before it has answered.
    waker: Option<Waker>,
    got: Arc<Got>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The next request is there.
    Asks,
    /// The server works.
    Waits,
    /// Part of the answer is there.
    Reads,
    /// All of it is.
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
                // A server that may be spoken to in two ways looks at a few bytes first.
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
            // The next request comes with a turn of the event loop, as by a socket.
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

    /// Takes whatever comes without a copy, as the kernel would from our instructions' point of view.
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
