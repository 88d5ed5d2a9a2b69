//! A histogram without a lock; prometheus-client's own takes one for every observation, shared by all cores.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// In seconds: the configured and the lengthened lifetimes, up to the oldest page that is served.
const AGE_BOUNDS: [f64; 10] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 7200.0,
];
/// In seconds: hits lie in the first four, fills in the rest, the deadline near the end.
const DURATION_BOUNDS: [f64; 13] = [
    0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// In seconds: a round trip to Redis beside us lies in the first half, one to another zone in the second, a timeout at the end.
const ROUND_TRIP_BOUNDS: [f64; 13] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
];

/// Counts durations or ages. Clones share the counts.
#[derive(Clone, Debug)]
pub(super) struct Histogram(Arc<Counts>);

/// The unit of the sum: fine enough for one value, and does not overflow for years.
#[derive(Clone, Copy, Debug)]
enum Grain {
    Nanoseconds,
    Milliseconds,
}

#[derive(Debug)]
struct Counts {
    /// In seconds, rising.
    bounds: &'static [f64],
    /// One more than bounds.
    buckets: Box<[AtomicU64]>,
    grain: Grain,
    /// In grains.
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn of_durations() -> Self {
        Self::new(&DURATION_BOUNDS, Grain::Nanoseconds)
    }

    pub(super) fn of_round_trips() -> Self {
        Self::new(&ROUND_TRIP_BOUNDS, Grain::Nanoseconds)
    }

    pub(super) fn of_ages() -> Self {
        Self::new(&AGE_BOUNDS, Grain::Milliseconds)
    }

    fn new(bounds: &'static [f64], grain: Grain) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0));
        Self(Arc::new(Counts {
            bounds,
            buckets: buckets.collect(),
            grain,
            sum: AtomicU64::new(0),
        }))
    }

    pub(super) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = self.0.bounds.partition_point(|bound| *bound < seconds);
        let grains = match self.0.grain {
            Grain::Nanoseconds => time.as_nanos(),
            Grain::Milliseconds => time.as_millis(),
        };
        let grains = u64::try_from(grains).unwrap_or(u64::MAX);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum.fetch_add(grains, Ordering::Relaxed);
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.0.buckets.iter();
        let buckets: Vec<(f64, u64)> = bounds
            .zip(counts.map(|count| count.load(Ordering::Relaxed)))
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let a_second = match self.0.grain {
            Grain::Nanoseconds => 1e9,
            Grain::Milliseconds => 1e3,
        };
        let sum = self.0.sum.load(Ordering::Relaxed) as f64 / a_second;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    #[test]
    fn a_time_is_counted_under_the_first_bound_it_does_not_pass() {
        let times = Histogram::new(&[1.0, 5.0, 15.0, 30.0, 7200.0], Grain::Milliseconds);
        for ms in [0, 1000, 1001, 30_000, 8_000_000] {
            times.observe(Duration::from_millis(ms));
        }
        let mut registry = Registry::default();
        registry.register("age", "Help", times);
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        for line in [
            "age_bucket{le=\"1.0\"} 2",
            "age_bucket{le=\"5.0\"} 3",
            "age_bucket{le=\"30.0\"} 4",
            "age_bucket{le=\"7200.0\"} 4",
            "age_bucket{le=\"+Inf\"} 5",
            "age_count 5",
            "age_sum 8032.001",
        ] {
            assert!(out.contains(line), "{line} is missing in\n{out}");
        }
    }
}
