//! The clients that wait for one upstream request: the one that caused it, and those that joined it since.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Priority;

/// A client that waits for a call, and with which priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub priority: Priority,
    pub client: Arc<str>,
}

/// The waiters on one request: at least one, and at most one a client. A clone sees waiters that join later.
#[derive(Clone, Debug)]
pub struct Waiters {
    shared: Arc<Shared>,
    is_retry: bool,
}

#[derive(Debug)]
struct Shared {
    list: Mutex<Vec<Waiter>>,
    changed: Notify,
}

impl Waiters {
    #[must_use]
    pub fn new(first: Waiter) -> Self {
        Self {
            shared: Arc::new(Shared {
                list: Mutex::new(vec![first]),
                changed: Notify::new(),
            }),
            is_retry: false,
        }
    }

    /// Adds a waiter; a client keeps its highest priority.
    pub fn add(&self, waiter: Waiter) {
        let mut list = self.shared.list.lock();
        match list.iter_mut().find(|held| held.client == waiter.client) {
            Some(held) if held.priority <= waiter.priority => return,
            Some(held) => *held = waiter,
            None => list.push(waiter),
        }
        drop(list);
        self.notify();
    }

    /// The same waiters on a retry; those that join later wait for a retry too.
    #[must_use]
    pub fn as_retry(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            is_retry: true,
        }
    }

    /// The highest priority among the waiters.
    #[must_use]
    pub fn priority(&self) -> Priority {
        let present = self.present();
        let priorities = present.iter().map(|waiter| waiter.priority);
        priorities.min().expect("there is at least one waiter")
    }

    /// The waiters so far.
    #[must_use]
    pub fn present(&self) -> Vec<Waiter> {
        let mut present = self.shared.list.lock().clone();
        if self.is_retry {
            for waiter in &mut present {
                waiter.priority = waiter.priority.as_retry();
            }
        }
        present
    }

    /// Wakes the request that waits in a queue for them.
    pub(super) fn notify(&self) {
        self.shared.changed.notify_one();
    }

    /// Waits for [`Waiters::notify`]. One at a time may wait: a request is in one queue at once.
    pub(super) async fn notified(&self) {
        self.shared.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Priority::{Background, HasFallback, Retry, Waiting};

    fn waiters(all: &[(Priority, &str)]) -> Waiters {
        let mut all = all.iter().map(|(priority, client)| Waiter {
            priority: *priority,
            client: (*client).into(),
        });
        let waiters = Waiters::new(all.next().expect("a first one"));
        all.for_each(|waiter| waiters.add(waiter));
        waiters
    }

    fn present(waiters: &Waiters) -> Vec<(Priority, String)> {
        let present = waiters.present();
        let pair = |waiter: &Waiter| (waiter.priority, waiter.client.to_string());
        present.iter().map(pair).collect()
    }

    #[test]
    fn a_client_claims_once_as_urgently_as_it_ever_did() {
        for (all, expected) in [
            (vec![(Waiting, "a"), (Waiting, "a")], vec![(Waiting, "a")]),
            (
                vec![(Waiting, "a"), (HasFallback, "a")],
                vec![(Waiting, "a")],
            ),
            (
                vec![(HasFallback, "a"), (Waiting, "a")],
                vec![(Waiting, "a")],
            ),
            (
                vec![(Background, "x"), (Waiting, "a"), (HasFallback, "b")],
                vec![(Background, "x"), (Waiting, "a"), (HasFallback, "b")],
            ),
        ] {
            let waiters = waiters(&all);
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(priority, client)| (priority, client.to_owned()))
                .collect();
            assert_eq!(present(&waiters), expected, "{all:?}");
            assert_eq!(
                Some(waiters.priority()),
                expected.iter().map(|(priority, _)| *priority).min()
            );
        }
    }

    #[test]
    fn who_joins_a_retry_claims_a_retry() {
        let first = waiters(&[(Waiting, "a")]);
        let retry = first.as_retry();

        first.add(Waiter {
            priority: Waiting,
            client: "b".into(),
        });

        assert_eq!(
            present(&retry),
            [(Retry, "a".to_owned()), (Retry, "b".to_owned())]
        );
        assert_eq!(first.priority(), Waiting);
    }
}
