//! Changes as a stream of server-sent events. A stream holds a cursor, not a buffer: a slow reader delays nobody and costs nothing.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::unfold;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{limits::Slot, query::Types, space_events, standing::Standing};
use crate::{
    api::Policy,
    domain::View,
    service::{
        ClientRequest,
        changes::{Gone, Listener, Position, Projection, Wanted},
    },
};

const HEARTBEAT: Duration = Duration::from_secs(15);
/// Events that are sent at once.
const MOST_AT_ONCE: usize = 32;
/// How long a stream lasts, and by how much less or more, so that not all come back at once.
const LASTS: Duration = Duration::from_secs(600);
const LASTS_JITTER: f64 = 0.1;

/// One stream.
pub(super) struct Stream {
    pub(super) listener: Listener,
    pub(super) request: ClientRequest,
    pub(super) standing: Standing,
    pub(super) policy: Arc<Policy>,
    pub(super) projection: Projection,
    pub(super) fields: Option<View>,
    pub(super) types: Types,
    pub(super) position: Position,
    /// Told first.
    pub(super) reset: Option<Gone>,
    pub(super) ends_at: Instant,
    /// Completes when the listener is closed.
    pub(super) closing: CancellationToken,
    pub(super) _slot: Slot,
}

/// How long a stream lasts that begins now.
pub(super) fn lasts() -> Duration {
    LASTS.mul_f64(1.0 - LASTS_JITTER + 2.0 * LASTS_JITTER * fastrand::f64())
}

/// What a stream has told so far.
struct Told {
    stream: Stream,
    has_begun: bool,
    is_over: bool,
    synced: u64,
    delayed: u64,
    heartbeat_at: Instant,
}

/// The stream as a body.
pub(super) fn body(stream: Stream) -> Body {
    let told = Told {
        stream,
        has_begun: false,
        is_over: false,
        synced: 0,
        delayed: 0,
        heartbeat_at: Instant::now() + HEARTBEAT,
    };
    let chunks = unfold(Box::new(told), |mut told| async {
        let chunk = told.next().await?;
        told.heartbeat_at = Instant::now() + HEARTBEAT;
        Some((Ok::<_, Infallible>(chunk), told))
    });
    Body::from_stream(chunks)
}

impl Told {
    /// What is sent next; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.has_begun {
            return Some(self.begin());
        }
        loop {
            let is_time = Instant::now() >= self.stream.ends_at;
            if self.is_over || is_time || self.stream.closing.is_cancelled() {
                return None;
            }
            if !self.still_may() {
                self.is_over = true;
                return Some(self.event("space.gone", &space_events::gone("space_not_allowed")));
            }
            if let Some(chunk) = self.news() {
                return Some(chunk);
            }
            let (listener, closing) = (&mut self.stream.listener, &self.stream.closing);
            tokio::select! {
                biased;
                () = closing.cancelled() => {}
                () = listener.changed() => {}
                () = sleep_until(self.heartbeat_at.min(self.stream.ends_at)) => {
                    // The next turn says that the right, or the time, is over.
                    if Instant::now() < self.stream.ends_at && self.still_may() {
                        return Some(Bytes::from_static(b":\n\n"));
                    }
                }
            }
        }
    }

    fn begin(&mut self) -> Bytes {
        self.has_begun = true;
        let mut text = format!("retry: {}\n\n", fastrand::u32(3000..=8000)).into_bytes();
        if let Some(reason) = self.stream.reset.take() {
            text.extend(self.reset(reason));
        }
        text.into()
    }

    /// Whether the client may still read the space; goes by its view in force.
    fn still_may(&mut self) -> bool {
        let stream = &mut self.stream;
        let Some(right) = stream.standing.right() else {
            return false;
        };
        if right.credential.id != stream.request.credential.id {
            return false;
        }
        if !Arc::ptr_eq(&right.policy, &stream.policy) {
            stream.projection = Projection::new(right.view, stream.fields.clone());
            stream.request.credential = right.credential;
            stream.request.upstream = right.policy.upstream.clone();
            stream.policy = right.policy;
            stream.listener.renew(&stream.request);
        }
        true
    }

    /// What came since it was asked last.
    fn news(&mut self) -> Option<Bytes> {
        let stream = &mut self.stream;
        // Before what is read, so that it is told of what was read after.
        let status = stream.listener.status();
        let wanted = Wanted {
            projection: &stream.projection,
            kinds: stream.types.tasks,
            limit: MOST_AT_ONCE,
        };
        match stream.listener.read(stream.position, &wanted) {
            Err((reason, position)) => {
                stream.position = position;
                // Of the new log it is counted anew.
                self.synced = 0;
                return Some(self.reset(reason));
            }
            Ok(read) => {
                stream.position = read.position;
                if !read.events.is_empty() {
                    let mut text = Vec::with_capacity(512 * read.events.len());
                    for event in &read.events {
                        let cursor = stream.listener.cursor(event.position);
                        write(&mut text, &cursor, event.kind.as_str(), &event.json);
                    }
                    return Some(text.into());
                }
                if read.has_more {
                    return self.news();
                }
            }
        }
        if let Some(code) = status.gone {
            self.is_over = true;
            return Some(self.event("space.gone", &space_events::gone(code)));
        }
        if let Some(delayed) = &status.delayed
            && delayed.number > self.delayed
        {
            self.delayed = delayed.number;
            if self.stream.types.delayed {
                return Some(self.event("space.delayed", &space_events::delayed(delayed)));
            }
        }
        if let Some(synced) = &status.synced
            && synced.number != self.synced
        {
            self.synced = synced.number;
            if self.stream.types.synced {
                return Some(self.event("space.synced", &space_events::synced(synced, &status)));
            }
        }
        None
    }

    fn reset(&self, reason: Gone) -> Bytes {
        let cursor = self.stream.listener.cursor(self.stream.position);
        self.event("space.reset", &space_events::reset(reason, &cursor))
    }

    fn event(&self, name: &str, json: &str) -> Bytes {
        let cursor = self.stream.listener.cursor(self.stream.position);
        let mut text = Vec::with_capacity(256);
        write(&mut text, &cursor, name, json.as_bytes());
        text.into()
    }
}

/// Writes one event. JSON of the upstream may hold line breaks between its tokens: each line is a field of its own.
fn write(text: &mut Vec<u8>, cursor: &str, name: &str, json: &[u8]) {
    text.extend_from_slice(format!("id: {cursor}\nevent: {name}\n").as_bytes());
    for line in json.split(|byte| matches!(byte, b'\n' | b'\r')) {
        text.extend_from_slice(b"data: ");
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_lines_whatever_its_json_looks_like() {
        let mut text = Vec::new();
        write(&mut text, "c", "task.created", b"{\"a\":\r\n1}");
        let expected = "id: c\nevent: task.created\ndata: {\"a\":\ndata: \ndata: 1}\n\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn streams_last_ten_minutes_more_or_less() {
        for _ in 0..1000 {
            let lasts = lasts().as_secs_f64();
            assert!((540.0..=660.0).contains(&lasts), "{lasts}");
        }
    }
}
