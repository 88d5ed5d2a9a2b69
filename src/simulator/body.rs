//! The bodies a simulated upstream sends: whole, chunked, cut short, or one byte at a time.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Interval, MissedTickBehavior};

use super::ledger::Busy;

const DRIP_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Body {
    left: Bytes,
    manner: Manner,
    ended: bool,
}

enum Manner {
    Whole,
    Chunked,
    /// Ends in an error, which closes the connection.
    Cut,
    /// Occupies its slot until the last byte is out.
    Dripping(
        Interval,
        #[expect(dead_code, reason = "held for its drop")] Busy,
    ),
}

impl Body {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::new(bytes.into(), Manner::Whole)
    }

    pub(super) fn chunked(bytes: impl Into<Bytes>) -> Self {
        Self::new(bytes.into(), Manner::Chunked)
    }

    pub(super) fn cut(bytes: impl Into<Bytes>) -> Self {
        Self::new(bytes.into(), Manner::Cut)
    }

    pub(super) fn dripping(bytes: Bytes, busy: Busy) -> Self {
        let mut ticks = tokio::time::interval(DRIP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self::new(bytes, Manner::Dripping(ticks, busy))
    }

    fn new(left: Bytes, manner: Manner) -> Self {
        let ended = false;
        Self {
            left,
            manner,
            ended,
        }
    }

    /// Returns the bytes that are still to be sent.
    pub(super) fn bytes(&self) -> Bytes {
        self.left.clone()
    }

    fn all(&mut self) -> Option<Frame<Bytes>> {
        self.ended = self.left.is_empty();
        (!self.ended).then(|| Frame::data(std::mem::take(&mut self.left)))
    }

    /// Fails only after one pause: hyper flushes what it holds whenever the body has nothing more yet.
    fn fail(&mut self, context: &Context<'_>) -> Poll<io::Error> {
        if self.ended {
            return Poll::Ready(io::ErrorKind::UnexpectedEof.into());
        }
        self.ended = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        match &mut this.manner {
            Manner::Whole | Manner::Chunked => Poll::Ready(this.all().map(Ok)),
            Manner::Cut if this.left.is_empty() => this.fail(context).map(|error| Some(Err(error))),
            Manner::Cut => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.left))))),
            Manner::Dripping(..) if this.left.is_empty() => Poll::Ready(None),
            Manner::Dripping(ticks, _) => {
                ready!(ticks.poll_tick(context));
                Poll::Ready(Some(Ok(Frame::data(this.left.split_to(1)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.manner {
            Manner::Whole | Manner::Dripping(..) => self.left.is_empty(),
            // An empty body must still be framed as it was asked.
            Manner::Chunked => self.ended,
            Manner::Cut => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.manner {
            Manner::Whole | Manner::Dripping(..) => SizeHint::with_exact(self.left.len() as u64),
            Manner::Chunked | Manner::Cut => SizeHint::default(),
        }
    }
}
