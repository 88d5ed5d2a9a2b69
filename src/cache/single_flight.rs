//! Merges concurrent fetches of one key into one.
//!
//! A fetch runs in a task of its own: a caller that leaves neither cancels it for the others nor loses it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::Instrument;

/// The fetches in flight, by key. `S` is what those who wait for one share with it.
#[derive(Debug)]
pub struct SingleFlight<K, T, S> {
    in_flight: FetchMap<K, T, S>,
}

type FetchMap<K, T, S> = Arc<Mutex<HashMap<K, InFlight<T, S>>>>;

#[derive(Clone, Debug)]
struct InFlight<T, S> {
    outcome: watch::Receiver<Option<T>>,
    store_requested: StoreRequested,
    shared: S,
}

/// Whether anybody who waits for a fetch wants its outcome stored.
#[derive(Clone, Debug)]
pub struct StoreRequested(Arc<AtomicBool>);

impl StoreRequested {
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How a caller takes part in a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Began it.
    Leader,
    /// Found it in flight.
    Follower,
}

/// A caller's share in a fetch. Dropping it leaves the fetch running.
#[derive(Debug)]
pub struct Pending<T, S> {
    outcome: watch::Receiver<Option<T>>,
    pub role: Role,
    pub shared: S,
}

impl<T: Clone, S> Pending<T, S> {
    /// Waits for the outcome; `None` if the fetch panicked.
    pub async fn outcome(mut self) -> Option<T> {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        }
    }
}

impl<K, T, S> Default for SingleFlight<K, T, S> {
    fn default() -> Self {
        Self {
            in_flight: Arc::default(),
        }
    }
}

impl<K, T, S> SingleFlight<K, T, S>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
    S: Clone + Send + 'static,
{
    /// Joins the fetch of `key`, or begins the one that `fetch` makes.
    ///
    /// `fetch` is called with no other fetch of any key being begun or ended, so it can look once more whether one is still
    /// needed: `None` begins nothing. What it gives beside the fetch, each [`Pending`] gets too. `store` says whether this caller wants
    /// the outcome stored.
    pub fn join<F>(
        &self,
        key: &K,
        store: bool,
        fetch: impl FnOnce(StoreRequested) -> Option<(S, F)>,
    ) -> Option<Pending<T, S>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut in_flight = self.in_flight.lock();
        if let Some(flight) = in_flight.get(key) {
            flight.store_requested.0.fetch_or(store, Ordering::AcqRel);
            return Some(Pending {
                outcome: flight.outcome.clone(),
                role: Role::Follower,
                shared: flight.shared.clone(),
            });
        }
        let wanted = StoreRequested(Arc::new(AtomicBool::new(store)));
        let (shared, fetch) = fetch(wanted.clone())?;
        let (sender, outcome) = watch::channel(None);
        in_flight.insert(
            key.clone(),
            InFlight {
                outcome: outcome.clone(),
                store_requested: wanted,
                shared: shared.clone(),
            },
        );
        drop(in_flight);
        let guard = RemoveWhenDone {
            in_flight: self.in_flight.clone(),
            key: key.clone(),
        };
        tokio::spawn(
            async move {
                let outcome = fetch.await;
                // Off the map before the outcome is sent: a caller that comes now finds the store filled.
                drop(guard);
                sender.send_replace(Some(outcome));
            }
            .in_current_span(),
        );
        Some(Pending {
            outcome,
            role: Role::Leader,
            shared,
        })
    }

    /// How many fetches are in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.in_flight.lock().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Takes a fetch off the map, even when it panics.
struct RemoveWhenDone<K: Eq + Hash, T, S> {
    in_flight: FetchMap<K, T, S>,
    key: K,
}

impl<K: Eq + Hash, T, S> Drop for RemoveWhenDone<K, T, S> {
    fn drop(&mut self) {
        self.in_flight.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Those who wait share who began it.
    type Fetches = SingleFlight<&'static str, u32, &'static str>;

    fn begin(flights: &Fetches, answer: oneshot::Receiver<u32>) -> Pending<u32, &'static str> {
        begin_as("any", flights, answer)
    }

    fn begin_as(
        name: &'static str,
        flights: &Fetches,
        answer: oneshot::Receiver<u32>,
    ) -> Pending<u32, &'static str> {
        flights
            .join(&"key", true, |_| {
                Some((name, async { answer.await.expect("the test answers") }))
            })
            .expect("a fetch was given")
    }

    #[tokio::test]
    async fn many_waiters_share_one_fetch() {
        let flights = Fetches::default();
        let (answer, receiver) = oneshot::channel();
        let leader = begin(&flights, receiver);
        let joined: Vec<_> = (0..50)
            .map(|_| begin(&flights, oneshot::channel().1))
            .collect();

        answer.send(7).unwrap();

        assert_eq!(leader.role, Role::Leader);
        assert_eq!(leader.outcome().await, Some(7));
        for waiting in joined {
            assert_eq!(waiting.role, Role::Follower);
            assert_eq!(waiting.outcome().await, Some(7));
        }
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn who_joins_shares_what_the_fetch_began_with() {
        let flights = Fetches::default();
        let (_answer, receiver) = oneshot::channel();
        let leader = begin_as("leader", &flights, receiver);
        let joined = begin_as("joined", &flights, oneshot::channel().1);
        assert_eq!((leader.shared, joined.shared), ("leader", "leader"));
    }

    #[tokio::test]
    async fn a_leader_that_leaves_cancels_nothing() {
        let flights = Fetches::default();
        let (answer, receiver) = oneshot::channel();
        drop(begin(&flights, receiver));
        let joined = begin(&flights, oneshot::channel().1);

        answer.send(7).unwrap();

        assert_eq!(joined.role, Role::Follower);
        assert_eq!(joined.outcome().await, Some(7));
    }

    #[tokio::test]
    async fn a_fetch_that_panics_leaves_no_one_waiting() {
        let flights = Fetches::default();
        let waiting = begin(&flights, oneshot::channel().1);
        assert_eq!(waiting.outcome().await, None);
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn one_waiter_that_wants_it_kept_is_enough() {
        let flights = Fetches::default();
        let mut seen = None;
        let waiting = flights.join(&"key", false, |wanted| {
            seen = Some(wanted);
            Some(("any", std::future::pending()))
        });
        let wanted = seen.expect("the fetch was made");
        assert!(waiting.is_some() && !wanted.is_set());

        drop(begin(&flights, oneshot::channel().1));

        assert!(wanted.is_set());
    }
}
