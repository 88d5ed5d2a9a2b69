//! A histogram of ages that a hit can add to without a lock; prometheus-client's own takes one.

use std::{
    array, fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Bounds in seconds: the configured lifetimes and the stretched ones, up to the last age that may stand in.
const BOUNDS: [f64; 10] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 7200.0,
];
const BUCKETS: usize = BOUNDS.len() + 1;

/// How old pages were when they were served. A clone adds to the same.
#[derive(Clone, Debug)]
pub(super) struct Ages(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    buckets: [AtomicU64; BUCKETS],
    sum_ms: AtomicU64,
}

impl Default for Ages {
    fn default() -> Self {
        Self(Arc::new(Counts {
            buckets: array::from_fn(|_| AtomicU64::new(0)),
            sum_ms: AtomicU64::new(0),
        }))
    }
}

impl Ages {
    pub(super) fn observe(&self, age: Duration) {
        let seconds = age.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        let ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

impl EncodeMetric for Ages {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = self.0.buckets.iter();
        let buckets: Vec<(f64, u64)> = bounds
            .zip(counts.map(|count| count.load(Ordering::Relaxed)))
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum_ms.load(Ordering::Relaxed) as f64 / 1000.0;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    #[test]
    fn an_age_is_counted_under_the_first_bound_it_does_not_pass() {
        let ages = Ages::default();
        for ms in [0, 1000, 1001, 30_000, 8_000_000] {
            ages.observe(Duration::from_millis(ms));
        }
        let mut registry = Registry::default();
        registry.register("age", "Help", ages);
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
