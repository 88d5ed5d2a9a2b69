//! A histogram of durations with 64 buckets per power of two, so that values are off by at most 1/64.

use std::time::Duration;

const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.ilog2();

#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let slot = slot(nanos);
        if slot >= self.counts.len() {
            self.counts.resize(slot + 1, 0);
        }
        self.counts[slot] += 1;
        self.total += 1;
    }

    /// The quantile `share`; zero if the histogram is empty.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (slot, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_end(slot));
            }
        }
        Duration::ZERO
    }
}

fn slot(nanos: u64) -> usize {
    if nanos < STEPS {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - STEP_BITS;
    (u64::from(shift) * STEPS + (nanos >> shift)) as usize
}

/// The largest value of a bucket.
fn upper_end(slot: usize) -> u64 {
    let slot = slot as u64;
    if slot < STEPS {
        return slot;
    }
    let shift = slot / STEPS - 1;
    ((slot - shift * STEPS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_holds_what_falls_into_it_and_nothing_else() {
        for nanos in [0, 1, 63, 64, 65, 127, 128, 129, 1_000, 999_999, 1 << 40] {
            let end = upper_end(slot(nanos));
            assert!(
                nanos <= end && end - nanos <= nanos / STEPS,
                "{nanos} {end}"
            );
            assert_eq!(slot(end), slot(nanos));
            assert_eq!(slot(end + 1), slot(nanos) + 1);
        }
    }

    #[test]
    fn quantiles_are_within_a_step_of_the_true_ones() {
        let mut histogram = Histogram::default();
        for micros in 1..=1_000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (share, micros) in [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1_000)] {
            let found = histogram.quantile(share).as_micros();
            assert!((micros..=micros + micros / 50).contains(&found), "{found}");
        }
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }
}
