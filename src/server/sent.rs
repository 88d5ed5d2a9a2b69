//! A response's body, kept alive until its last byte is sent.
//!
//! hyper drops a body as soon as it has its bytes, though an HTTP/2 peer may leave them unread for as long as it likes. So the last bytes
//! own the body: whatever it holds (a permit, a gauge) is held until they are written, or the connection has ended.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use super::connections::{ConnectionState, InFlight};

/// A body and the request it responds to.
pub(super) struct SentBody<B> {
    /// `None` once its last bytes were taken.
    answer: Option<Answer<B>>,
    state: Arc<ConnectionState>,
    is_refusal: bool,
}

/// What a response holds until it is sent.
struct Answer<B> {
    body: B,
    _request: InFlight,
}

impl<B> SentBody<B> {
    pub(super) fn new(body: B, request: InFlight, is_refusal: bool) -> Self {
        Self {
            state: request.state().clone(),
            is_refusal,
            answer: Some(Answer {
                body,
                _request: request,
            }),
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for SentBody<B> {
    type Data = Chunk<B>;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk<B>>, B::Error>>> {
        let Some(answer) = &mut self.answer else {
            return Poll::Ready(None);
        };
        let Some(frame) = ready!(Pin::new(&mut answer.body).poll_frame(cx)?) else {
            return Poll::Ready(None);
        };
        let is_last = frame.is_data() && answer.body.is_end_stream();
        let answer = if is_last { self.answer.take() } else { None };
        Poll::Ready(Some(Ok(frame.map_data(|bytes| Chunk {
            waiting: Waiting::new(&self, &bytes),
            bytes,
            _answer: answer,
        }))))
    }

    fn is_end_stream(&self) -> bool {
        let body = self.answer.as_ref().map(|answer| &answer.body);
        body.is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.answer.as_ref().map(|answer| &answer.body);
        body.map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// Bytes of a response; the last ones own the response.
pub(super) struct Chunk<B> {
    bytes: Bytes,
    waiting: Waiting,
    _answer: Option<Answer<B>>,
}

impl<B> Buf for Chunk<B> {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, written: usize) {
        self.bytes.advance(written);
        // The last bytes are about to be dropped.
        if written > 0 && !self.bytes.is_empty() {
            self.waiting.state.moved(self.waiting.slot);
        }
    }
}

/// Unsent bytes, as the connection counts them.
struct Waiting {
    state: Arc<ConnectionState>,
    slot: usize,
    own: u64,
    is_refusal: bool,
}

impl Waiting {
    fn new<B>(body: &SentBody<B>, bytes: &Bytes) -> Self {
        // A stored page is shared with the store, a static text with the binary.
        let own = if bytes.is_unique() { bytes.len() } else { 0 };
        let own = u64::try_from(own).unwrap_or(u64::MAX);
        Self {
            slot: body.state.hand(own, body.is_refusal),
            state: body.state.clone(),
            own,
            is_refusal: body.is_refusal,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.state.left(self.slot, self.own, self.is_refusal);
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Weak};

    use http::{Request, Response};
    use http_body_util::{BodyExt, Empty, Full};
    use hyper::{body::Incoming, client::conn::http2};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tower::service_fn;

    use super::*;
    use crate::{
        peer::Peer,
        server::{Acceptor, Limits, Server, Shutdown},
    };

    const PAGE: Bytes = Bytes::from_static(&[b'x'; 4000]);

    /// A body that holds something.
    struct Holding(Full<Bytes>, #[expect(dead_code, reason = "held")] Arc<()>);

    impl Body for Holding {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_end_stream()
        }

        fn size_hint(&self) -> SizeHint {
            self.0.size_hint()
        }
    }

    /// A connection whose every answer is [`PAGE`]; what the answers hold is seen from outside.
    fn connection(buffered: usize) -> (DuplexStream, Weak<()>) {
        let held = Arc::new(());
        let watch = Arc::downgrade(&held);
        let service = service_fn(move |_: Request<Incoming>| {
            let body = Holding(Full::new(PAGE), held.clone());
            async { Ok::<_, Infallible>(Response::new(body)) }
        });
        let (ours, theirs) = tokio::io::duplex(buffered);
        let server = Server::new(
            service,
            Acceptor::default(),
            Limits::for_tests(),
            None,
            Shutdown::default(),
        );
        tokio::spawn(server.connection(Box::new(theirs), Peer::UnixSocket));
        (ours, watch)
    }

    /// How many answers are under way. The service and its clones hold one each.
    async fn settled(held: &Weak<()>) -> usize {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        held.strong_count()
    }

    #[tokio::test]
    async fn what_an_answer_holds_is_held_until_an_http2_peer_takes_its_last_byte() {
        for window in [0, 1, 3999] {
            let (io, held) = connection(1 << 16);
            let idle = settled(&held).await;
            let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(window)
                .handshake::<_, Empty<Bytes>>(TokioIo::new(io))
                .await
                .unwrap();
            let connection = tokio::spawn(connection);
            let request = Request::get("http://gateway/").body(Empty::new()).unwrap();

            let mut answer = sender.send_request(request).await.unwrap();

            assert_eq!(settled(&held).await, idle + 1, "{window}");
            if window > 0 {
                // Reading gives the window back.
                let whole = answer.body_mut().collect().await.unwrap().to_bytes();
                assert_eq!(whole, PAGE, "{window}");
                assert_eq!(settled(&held).await, idle, "{window}");
            }
            drop((answer, sender));
            connection.abort();
            let _ = connection.await;
            assert_eq!(settled(&held).await, 0, "{window}: the connection ended");
        }
    }

    #[tokio::test]
    async fn what_an_answer_holds_is_held_until_an_http1_peer_reads_its_last_byte() {
        let (mut io, held) = connection(1000);
        let idle = settled(&held).await;
        io.write_all(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")
            .await
            .unwrap();

        assert_eq!(settled(&held).await, idle + 1);
        let mut bytes = Vec::new();
        while !bytes.ends_with(&PAGE) {
            io.read_buf(&mut bytes).await.unwrap();
        }
        assert_eq!(settled(&held).await, idle);
    }
}
