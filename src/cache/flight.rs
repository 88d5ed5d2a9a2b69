//! One fetch for many waiters.
//!
//! A fetch runs in a task of its own: a waiter that leaves neither cancels it for the others nor loses it.

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

/// The fetches under way, by key. `S` is what those who wait for one share with it.
#[derive(Debug)]
pub struct Flights<K, T, S> {
    under_way: UnderWay<K, T, S>,
}

type UnderWay<K, T, S> = Arc<Mutex<HashMap<K, Flight<T, S>>>>;

#[derive(Clone, Debug)]
struct Flight<T, S> {
    landed: watch::Receiver<Option<T>>,
    wanted: Wanted,
    shared: S,
}

/// Whether anybody who waits for a fetch wants it kept.
#[derive(Clone, Debug)]
pub struct Wanted(Arc<AtomicBool>);

impl Wanted {
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How a caller came by its fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Began it.
    Leader,
    /// Found it under way.
    Joined,
}

/// A place among the waiters of a fetch. Dropping it leaves the fetch running.
#[derive(Debug)]
pub struct Waiting<T, S> {
    landed: watch::Receiver<Option<T>>,
    pub role: Role,
    pub shared: S,
}

impl<T: Clone, S> Waiting<T, S> {
    /// Waits for the outcome; `None` if the fetch panicked.
    pub async fn outcome(mut self) -> Option<T> {
        match self.landed.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        }
    }
}

impl<K, T, S> Default for Flights<K, T, S> {
    fn default() -> Self {
        Self {
            under_way: Arc::default(),
        }
    }
}

impl<K, T, S> Flights<K, T, S>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
    S: Clone + Send + 'static,
{
    /// Joins the fetch of `key`, or begins the one that `fetch` makes.
    ///
    /// `fetch` is called with no other fetch of any key being begun or ended, so it can look once more whether one is still
    /// needed: `None` begins nothing. What it gives beside the fetch, each [`Waiting`] gets too. `keep` says whether this caller wants
    /// the outcome kept.
    pub fn join<F>(
        &self,
        key: &K,
        keep: bool,
        fetch: impl FnOnce(Wanted) -> Option<(S, F)>,
    ) -> Option<Waiting<T, S>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut under_way = self.under_way.lock();
        if let Some(flight) = under_way.get(key) {
            flight.wanted.0.fetch_or(keep, Ordering::AcqRel);
            return Some(Waiting {
                landed: flight.landed.clone(),
                role: Role::Joined,
                shared: flight.shared.clone(),
            });
        }
        let wanted = Wanted(Arc::new(AtomicBool::new(keep)));
        let (shared, fetch) = fetch(wanted.clone())?;
        let (land, landed) = watch::channel(None);
        under_way.insert(
            key.clone(),
            Flight {
                landed: landed.clone(),
                wanted,
                shared: shared.clone(),
            },
        );
        drop(under_way);
        let guard = Departure {
            under_way: self.under_way.clone(),
            key: key.clone(),
        };
        tokio::spawn(
            async move {
                let outcome = fetch.await;
                // First gone from the map, then told: who comes now finds the store filled.
                drop(guard);
                land.send_replace(Some(outcome));
            }
            .in_current_span(),
        );
        Some(Waiting {
            landed,
            role: Role::Leader,
            shared,
        })
    }

    /// How many fetches are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.under_way.lock().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Takes a fetch off the map, also when it panics.
struct Departure<K: Eq + Hash, T, S> {
    under_way: UnderWay<K, T, S>,
    key: K,
}

impl<K: Eq + Hash, T, S> Drop for Departure<K, T, S> {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Those who wait share who began it.
    type Few = Flights<&'static str, u32, &'static str>;

    fn begin(flights: &Few, answer: oneshot::Receiver<u32>) -> Waiting<u32, &'static str> {
        begin_as("any", flights, answer)
    }

    fn begin_as(
        name: &'static str,
        flights: &Few,
        answer: oneshot::Receiver<u32>,
    ) -> Waiting<u32, &'static str> {
        flights
            .join(&"key", true, |_| {
                Some((name, async { answer.await.expect("the test answers") }))
            })
            .expect("a fetch was given")
    }

    #[tokio::test]
    async fn many_waiters_share_one_fetch() {
        let flights = Few::default();
        let (answer, receiver) = oneshot::channel();
        let leader = begin(&flights, receiver);
        let joined: Vec<_> = (0..50)
            .map(|_| begin(&flights, oneshot::channel().1))
            .collect();

        answer.send(7).unwrap();

        assert_eq!(leader.role, Role::Leader);
        assert_eq!(leader.outcome().await, Some(7));
        for waiting in joined {
            assert_eq!(waiting.role, Role::Joined);
            assert_eq!(waiting.outcome().await, Some(7));
        }
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn who_joins_shares_what_the_fetch_began_with() {
        let flights = Few::default();
        let (_answer, receiver) = oneshot::channel();
        let leader = begin_as("leader", &flights, receiver);
        let joined = begin_as("joined", &flights, oneshot::channel().1);
        assert_eq!((leader.shared, joined.shared), ("leader", "leader"));
    }

    #[tokio::test]
    async fn a_leader_that_leaves_cancels_nothing() {
        let flights = Few::default();
        let (answer, receiver) = oneshot::channel();
        drop(begin(&flights, receiver));
        let joined = begin(&flights, oneshot::channel().1);

        answer.send(7).unwrap();

        assert_eq!(joined.role, Role::Joined);
        assert_eq!(joined.outcome().await, Some(7));
    }

    #[tokio::test]
    async fn a_fetch_that_panics_leaves_no_one_waiting() {
        let flights = Few::default();
        let waiting = begin(&flights, oneshot::channel().1);
        assert_eq!(waiting.outcome().await, None);
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn one_waiter_that_wants_it_kept_is_enough() {
        let flights = Few::default();
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
