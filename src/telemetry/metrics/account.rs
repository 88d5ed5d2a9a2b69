//! The counters that a client's hits increment, each looked up once.
//!
//! A lookup by labels takes a lock, two hashes and a copy of the client's name: two of them were a tenth of a hit.

use std::{
    array, fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::StatusCode;
use prometheus_client::metrics::counter::Counter;

use super::{CacheOutcome, Route};
use crate::domain::Collection;

/// A client's counters, in one gateway's metrics. Clones share them.
#[derive(Clone)]
pub struct Account(Arc<Counters>);

struct Counters {
    client: Arc<str>,
    /// In the order of [`CacheOutcome::ALL`].
    lookups: [OnceLock<Counter>; CacheOutcome::ALL.len()],
    /// By [`Collection::place`].
    pages: [OnceLock<Counter>; Collection::COUNT],
    not_modified: [OnceLock<Counter>; Collection::COUNT],
    answers: Answers,
}

/// The responses to one client that are being sent.
#[derive(Debug, Default)]
pub struct Answers {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

impl Answers {
    /// Counts one more unless there are `most` already; returns whether it did.
    pub fn begin(&self, bytes: usize, most: usize) -> bool {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let is_one_of_most = self.count.fetch_add(1, Ordering::AcqRel) < most;
        if !is_one_of_most {
            self.end(bytes);
        }
        is_one_of_most
    }

    /// One that was counted has been sent.
    pub fn end(&self, bytes: usize) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Bytes of all of them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }
}

impl Account {
    #[must_use]
    pub fn new(client: Arc<str>) -> Self {
        Self(Arc::new(Counters {
            client,
            lookups: array::from_fn(|_| OnceLock::new()),
            pages: array::from_fn(|_| OnceLock::new()),
            not_modified: array::from_fn(|_| OnceLock::new()),
            answers: Answers::default(),
        }))
    }

    /// The client's name.
    #[must_use]
    pub fn client(&self) -> &Arc<str> {
        &self.0.client
    }

    /// Its responses that are being sent.
    #[must_use]
    pub fn answers(&self) -> &Answers {
        &self.0.answers
    }

    pub(super) fn lookup(&self, outcome: CacheOutcome) -> &OnceLock<Counter> {
        &self.0.lookups[outcome as usize]
    }

    /// Only for what hits end in: the rest is rare and not worth the memory per client.
    pub(super) fn answered(&self, route: Route, status: StatusCode) -> Option<&OnceLock<Counter>> {
        match (route, status) {
            (Route::List(list), StatusCode::OK) => self.0.pages.get(list.place()),
            (Route::List(list), StatusCode::NOT_MODIFIED) => self.0.not_modified.get(list.place()),
            _ => None,
        }
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Account").field(&self.0.client).finish()
    }
}

/// Increments the cached counter, or the one that `find` looks up.
pub(super) fn count(kept: Option<&OnceLock<Counter>>, find: impl FnOnce() -> Counter) {
    match kept {
        Some(kept) => kept.get_or_init(find).inc(),
        None => find().inc(),
    };
}
