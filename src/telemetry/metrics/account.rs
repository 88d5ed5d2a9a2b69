//! The counters that a client's hits count up, each looked up once.
//!
//! A look-up by labels takes a lock, two hashes and a copy of the client's name: half of it each for two counters was a tenth of a hit.

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

/// Whose requests are counted. A clone is the same; it counts in one gateway's metrics alone.
#[derive(Clone)]
pub struct Account(Arc<Counters>);

struct Counters {
    client: Arc<str>,
    /// In the order of [`CacheOutcome::ALL`].
    lookups: [OnceLock<Counter>; CacheOutcome::ALL.len()],
    pages: OnceLock<Counter>,
    not_modified: OnceLock<Counter>,
    answers: Answers,
}

/// The answers of one client that are on their way out.
#[derive(Debug, Default)]
pub struct Answers {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

impl Answers {
    /// Counts one more, if that makes no more than `most`; returns whether it does.
    pub fn begin(&self, bytes: usize, most: usize) -> bool {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let is_one_of_most = self.count.fetch_add(1, Ordering::AcqRel) < most;
        if !is_one_of_most {
            self.end(bytes);
        }
        is_one_of_most
    }

    /// One that was counted has left.
    pub fn end(&self, bytes: usize) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// How long they are together.
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
            pages: OnceLock::new(),
            not_modified: OnceLock::new(),
            answers: Answers::default(),
        }))
    }

    /// The client's name.
    #[must_use]
    pub fn client(&self) -> &Arc<str> {
        &self.0.client
    }

    /// Its answers that are on their way out.
    #[must_use]
    pub fn answers(&self) -> &Answers {
        &self.0.answers
    }

    pub(super) fn lookup(&self, outcome: CacheOutcome) -> &OnceLock<Counter> {
        &self.0.lookups[outcome as usize]
    }

    /// Only of what a hit ends in: the rest is rare, and more than is worth keeping for each client.
    pub(super) fn answered(&self, route: Route, status: StatusCode) -> Option<&OnceLock<Counter>> {
        match (route, status) {
            (Route::Tasks, StatusCode::OK) => Some(&self.0.pages),
            (Route::Tasks, StatusCode::NOT_MODIFIED) => Some(&self.0.not_modified),
            _ => None,
        }
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Account").field(&self.0.client).finish()
    }
}

/// Counts one up: by the handle that is kept, or by the one that `find` looks up.
pub(super) fn count(kept: Option<&OnceLock<Counter>>, find: impl FnOnce() -> Counter) {
    match kept {
        Some(kept) => kept.get_or_init(find).inc(),
        None => find().inc(),
    };
}
