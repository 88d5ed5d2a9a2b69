//! What the simulator has seen: counters for `/__stats` and the tests, and the requests themselves.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use http::{Method, request::Parts};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::{FaultKind, Shared};

/// A request as it arrived; header names are in lower case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecordedRequest {
    pub method: String,
    /// The path and the query, undecoded.
    pub target: String,
    pub headers: Vec<(String, String)>,
}

impl RecordedRequest {
    /// Returns the first value of a header, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn of(parts: &Parts) -> Self {
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        };
        Self {
            method: parts.method.to_string(),
            target: parts
                .uri
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default(),
            headers: parts.headers.iter().map(header).collect(),
        }
    }
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Ledger {
    pub(super) requests: u64,
    pub(super) by_space: BTreeMap<String, u64>,
    by_status: BTreeMap<String, u64>,
    /// How often each fault has struck.
    pub(super) by_fault: BTreeMap<&'static str, u64>,
    pub(super) in_flight: usize,
    pub(super) max_in_flight: usize,
    pub(super) posts: u64,
    /// Tasks requests by the API token they carried.
    tokens: BTreeMap<String, u64>,
    #[serde(skip)]
    pub(super) recorded: VecDeque<RecordedRequest>,
}

impl Ledger {
    /// Keeps a request, of the newest `most`.
    pub(super) fn record(&mut self, parts: &Parts, most: usize) {
        if self.recorded.len() >= most {
            self.recorded.pop_front();
        }
        self.recorded.push_back(RecordedRequest::of(parts));
    }

    /// Counts an answer by its status, or by what became of it.
    pub(super) fn answered(&mut self, outcome: String) {
        *self.by_status.entry(outcome).or_default() += 1;
    }

    /// Counts a fault that a request meets.
    pub(super) fn struck(&mut self, fault: FaultKind) {
        *self.by_fault.entry(fault.as_str()).or_default() += 1;
    }

    fn arrive(&mut self, method: &Method, space: &str, token: &str) {
        self.in_flight += 1;
        self.max_in_flight = self.max_in_flight.max(self.in_flight);
        if *method == Method::POST {
            self.posts += 1;
            return;
        }
        self.requests += 1;
        *self.by_space.entry(space.to_owned()).or_default() += 1;
        *self.tokens.entry(token.to_owned()).or_default() += 1;
    }
}

/// A tasks request in flight: from its arrival, waiting for a slot included, until this is dropped.
pub(super) struct Flight(Arc<Shared>);

impl Flight {
    /// Counts an arrival and wakes who waits for it.
    pub(super) fn begin(shared: &Arc<Shared>, method: &Method, space: &str, token: &str) -> Self {
        let mut ledger = shared.ledger.lock();
        ledger.arrive(method, space, token);
        let requests = ledger.requests;
        // Sent under the lock: two arrivals must not overtake each other.
        shared.arrivals.send_replace(requests);
        Self(Arc::clone(shared))
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.ledger.lock().in_flight -= 1;
    }
}

/// A tasks request that occupies one of the slots.
pub(super) struct Busy {
    pub(super) _slot: OwnedSemaphorePermit,
    pub(super) _flight: Flight,
}
