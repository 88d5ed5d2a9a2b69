//! The body of an answer that may go on for long: the request's line is written when it has ended, however it ends.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{IncomingRequest, Outcome};

pin_project_lite::pin_project! {
    /// Counts what is sent of a body, and has the line written when it is dropped.
    pub(super) struct LoggedAtEnd<B> {
        #[pin]
        inner: B,
        line: Line,
    }
}

struct Line {
    incoming: IncomingRequest,
    outcome: Outcome,
    bytes: u64,
}

impl<B> LoggedAtEnd<B> {
    pub(super) fn new(inner: B, incoming: IncomingRequest, outcome: Outcome) -> Self {
        let line = Line {
            incoming,
            outcome,
            bytes: 0,
        };
        Self { inner, line }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.outcome.took = self.incoming.started.elapsed();
        self.outcome.bytes = Some(self.bytes);
        self.incoming.log(&self.outcome);
    }
}

impl<B: Body<Data = Bytes>> Body for LoggedAtEnd<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        let sent = frame.as_ref().and_then(|frame| frame.as_ref().ok());
        let sent = sent.and_then(Frame::data_ref).map_or(0, Bytes::len);
        this.line.bytes += sent as u64;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
