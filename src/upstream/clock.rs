//! How far the upstream's clock is from ours: shown as a metric, and told once for each change.

use std::sync::{
    Arc,
    atomic::{AtomicI8, Ordering},
};

use tracing::{info, warn};

use super::{Head, pause::clock_skew};
use crate::telemetry::metrics::Metrics;

/// A difference up to this is no news: clocks drift, and a `Date` may be made a while before it is sent.
const NO_NEWS: u64 = 30;

/// Compares each answer's `Date` with our clock.
#[derive(Debug)]
pub(super) struct Clock {
    metrics: Arc<Metrics>,
    /// What was told last: the sign of the difference, 0 while there is none to speak of.
    told: AtomicI8,
}

impl Clock {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            told: AtomicI8::new(0),
        }
    }

    pub(super) fn note(&self, head: &Head) {
        let Some(skew) = clock_skew(head) else {
            return;
        };
        self.metrics.upstream.clock_skew(skew);
        let sign = sign(skew);
        if self.told.swap(sign, Ordering::Relaxed) == sign {
            return;
        }
        match sign {
            0 => info!("the upstream's clock agrees with ours again"),
            _ => warn!(
                upstream.clock_skew_s = skew,
                "the upstream's clock differs from ours: times that it names are taken against its own"
            ),
        }
    }
}

fn sign(skew: i64) -> i8 {
    match skew.unsigned_abs() {
        ..=NO_NEWS => 0,
        _ if skew < 0 => -1,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_than_half_a_minute_is_news() {
        for (skew, expected) in [
            (i64::MIN, -1),
            (-120, -1),
            (-31, -1),
            (-30, 0),
            (0, 0),
            (30, 0),
            (31, 1),
            (i64::MAX, 1),
        ] {
            assert_eq!(sign(skew), expected, "{skew}");
        }
    }
}
