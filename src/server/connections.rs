//! The open connections of a server: which is closed for a new one, and how many bytes are unsent on all of them together.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};

pub(super) use self::connection::{ConnectionState, InFlight};
use super::end::End;

mod connection;

/// This share of the connections is closed at once, so that a flood of new ones does not search all of them each time.
const GIVE_WAY_SHARE: usize = 128;

/// Memory of an HTTP/2 request besides its body: a stream, a task and both headers. `examples/stalled.rs` measures it.
pub(super) const STREAM_BYTES: u64 = 2048;

/// A connection idle for less is not closed: a request may be on its way.
const LEAST_IDLE: Duration = Duration::from_millis(100);

/// The open connections of a server.
pub(super) struct Connections {
    open: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    next: AtomicU64,
    /// Unsent bytes that nobody else holds.
    unsent: AtomicU64,
    max_unsent: u64,
    /// HTTP/2 requests in flight, including those on connections that are about to end.
    streams: AtomicU64,
    /// Notified when there is room for more of them.
    room: Arc<Notify>,
}

impl Connections {
    /// At most `max_unsent` bytes may be unsent on all of them together.
    pub(super) fn new(max_unsent: u64) -> Self {
        Self {
            open: Mutex::default(),
            next: AtomicU64::default(),
            unsent: AtomicU64::default(),
            max_unsent,
            streams: AtomicU64::default(),
            room: Arc::default(),
        }
    }

    /// Adds a connection, open while the guard lives.
    pub(super) fn open(self: &Arc<Self>, closing: Arc<AtomicBool>) -> Open {
        let state = Arc::new(ConnectionState::new(self.clone(), closing));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().insert(id, state.clone());
        Open { id, state }
    }

    /// Asks every connection to end.
    pub(super) fn end_all(&self, end: End) {
        for state in self.open.lock().values() {
            state.request_end(end);
        }
    }

    /// Closes the connections that have been idle longest: one, or a few where there are many.
    pub(super) fn give_way(&self) {
        let now = Instant::now();
        let open = self.open.lock();
        let mut idle: Vec<_> = open
            .values()
            .filter_map(|state| Some((state.idle_since()?, state)))
            .filter(|(since, _)| now.saturating_duration_since(*since) >= LEAST_IDLE)
            .collect();
        idle.sort_unstable_by_key(|(since, _)| *since);
        for (_, state) in idle.iter().take(1 + open.len() / GIVE_WAY_SHARE) {
            state.request_end(End::GaveWay);
        }
    }

    /// Counts more unsent bytes; returns whether there are now too many.
    pub(super) fn add_unsent(&self, bytes: u64) -> bool {
        bytes > 0 && self.unsent.fetch_add(bytes, Ordering::Relaxed) + bytes > self.max_unsent
    }

    /// Bytes were sent, or never will be.
    pub(super) fn remove_unsent(&self, bytes: u64) {
        if bytes > 0 {
            self.unsent.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn stream_begins(&self) {
        self.streams.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn stream_ends(&self) {
        if self.streams.fetch_sub(1, Ordering::SeqCst) == self.max_streams() + 1 {
            self.room.notify_one();
        }
    }

    fn max_streams(&self) -> u64 {
        self.max_unsent / STREAM_BYTES
    }

    /// Whether too many HTTP/2 requests are in flight, so that no more should be read.
    ///
    /// Some connections have then been asked to end, so this does not last.
    pub(super) fn is_full(&self) -> bool {
        self.streams.load(Ordering::SeqCst) > self.max_streams()
    }

    /// Resolves for one waiter when there is room, which then calls [`Connections::pass_on`].
    pub(super) fn room(&self) -> OwnedNotified {
        self.room.clone().notified_owned()
    }

    /// Wakes the next waiter, since there is still room.
    pub(super) fn pass_on(&self) {
        self.room.notify_one();
    }

    /// Closes the connections with the most unsent bytes until the rest is within the bound.
    pub(super) fn shed_unsent(&self) {
        let open = self.open.lock();
        while self.unsent.load(Ordering::Relaxed) > self.max_unsent {
            let most = open.values().max_by_key(|state| state.unsent());
            match most.map_or(0, |state| state.write_off()) {
                0 => return,
                freed => self.remove_unsent(freed),
            }
        }
    }
}

/// An open connection.
pub(super) struct Open {
    id: u64,
    pub(super) state: Arc<ConnectionState>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.state.server().open.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ends(open: &[Open]) -> Vec<Option<End>> {
        open.iter().map(|one| one.state.take_end()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_gives_way_and_none_that_is_in_use() {
        let connections = Arc::new(Connections::new(u64::MAX));
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(connections.open(Arc::default()));
            tokio::time::advance(SECOND).await;
        }
        let under_way = open[0].state.request(Version::HTTP_11);
        // Used since: the one after it is idle for longer.
        drop(open[1].state.request(Version::HTTP_11));

        connections.give_way();
        assert_eq!(ends(&open), [None, None, Some(End::GaveWay), None]);

        drop(open.remove(2));
        tokio::time::advance(SECOND).await;
        drop(under_way);
        connections.give_way();
        assert_eq!(ends(&open), [None, None, Some(End::GaveWay)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_just_come_does_not_give_way() {
        let connections = Arc::new(Connections::new(u64::MAX));
        let open = [connections.open(Arc::default())];
        connections.give_way();
        assert_eq!(ends(&open), [None]);
        tokio::time::advance(LEAST_IDLE).await;
        connections.give_way();
        assert_eq!(ends(&open), [Some(End::GaveWay)]);
        // It has a while to hear it; who is asked next is another one.
        connections.give_way();
        assert_eq!(ends(&open), [None]);
    }

    #[tokio::test]
    async fn beyond_the_bound_the_connection_ends_on_which_most_waits() {
        let connections = Arc::new(Connections::new(100));
        let open: Vec<_> = (0..3).map(|_| connections.open(Arc::default())).collect();
        let hand = |one: usize, bytes| open[one].state.hand(bytes, false);
        hand(0, 40);
        hand(1, 30);
        assert_eq!(ends(&open), [None; 3]);

        hand(2, 31);
        assert_eq!(ends(&open), [Some(End::UnsentBytes), None, None]);

        // What was written off counts no longer, even where it is still there.
        hand(2, 39);
        assert_eq!(ends(&open), [None; 3]);
        hand(1, 1);
        assert_eq!(ends(&open), [None, None, Some(End::UnsentBytes)]);
        assert_eq!(connections.unsent.load(Ordering::Relaxed), 31);
    }

    #[tokio::test]
    async fn what_a_connection_held_is_given_back_whatever_its_end() {
        let connections = Arc::new(Connections::new(100));
        let open = connections.open(Arc::default());
        let first = open.state.hand(60, false);
        let second = open.state.hand(30, false);
        open.state.left(first, 60, false);
        assert_eq!(connections.unsent.load(Ordering::Relaxed), 30);
        open.state.hand(80, false);
        assert_eq!(open.state.take_end(), Some(End::UnsentBytes));
        open.state.left(second, 30, false);
        drop(open);
        assert_eq!(connections.unsent.load(Ordering::Relaxed), 0);
        assert!(connections.open.lock().is_empty());
    }
}
