//! What the change feed does.

use std::sync::Arc;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use super::declare::{CounterBy, GaugeGuard, counter, gauge, label_values};

/// Streams, watches and what they cost.
#[derive(Debug)]
pub struct ChangesMetrics {
    streams: Gauge,
    spaces: Gauge,
    ranges: Gauge,
    changes: Counter,
    polls: CounterBy,
}

impl ChangesMetrics {
    pub(super) fn new(registry: &mut Registry) -> Arc<Self> {
        Arc::new(Self {
            streams: gauge(
                registry,
                "changes_streams",
                "Open streams of changes, and requests that wait for one",
            ),
            spaces: gauge(registry, "changes_spaces", "Spaces that are watched"),
            ranges: gauge(
                registry,
                "changes_ranges",
                "Ranges of tasks that are watched, of all spaces",
            ),
            changes: counter(
                registry,
                "changes_seen",
                "Changes of tasks that were seen, each once however many clients are told",
            ),
            polls: CounterBy::new(
                registry,
                "changes_polls",
                "Ranges that were read because nobody else had, by outcome",
                "outcome",
                PollOutcome::ALL.map(PollOutcome::as_str),
            ),
        })
    }

    /// Counts up while the guard lives.
    #[must_use]
    pub fn stream(&self) -> GaugeGuard {
        GaugeGuard::new(&self.streams)
    }

    /// Counts up while the guard lives.
    #[must_use]
    pub fn watched_space(&self) -> GaugeGuard {
        GaugeGuard::new(&self.spaces)
    }

    /// A space has so many ranges now.
    pub fn ranges(&self, before: usize, now: usize) {
        self.ranges.inc_by(i64::try_from(now).unwrap_or(i64::MAX));
        self.ranges
            .dec_by(i64::try_from(before).unwrap_or(i64::MAX));
    }

    /// So many changes were seen.
    pub fn changed(&self, count: usize) {
        self.changes.inc_by(count as u64);
    }

    pub fn polled(&self, outcome: PollOutcome) {
        self.polls.inc(outcome.as_str());
    }
}

label_values! {
    /// How reading a range ended.
    pub enum PollOutcome {
        Read = "read",
        Failed = "failed",
    }
}
