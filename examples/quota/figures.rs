//! What a row measures, against what is wanted; and what the clairvoyant reaches.

use std::time::Duration;

use tokio::time::Instant;

use crate::world::{Read, World};

/// One figure of a row.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) wanted: Wanted,
    pub(crate) clairvoyant: Option<f64>,
}

/// Which figures are good.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    AtMost(f64),
    AtLeast(f64),
    Within(f64, f64),
    /// It is only reported.
    Any,
}

impl Figure {
    pub(crate) fn new(what: impl Into<String>, measured: f64, wanted: Wanted) -> Self {
        Self {
            what: what.into(),
            measured,
            wanted,
            clairvoyant: None,
        }
    }

    /// The calls of the busiest minute, which are never more than the quota.
    pub(crate) fn quota(world: &World, quota: u32) -> Self {
        let what = format!("calls in the busiest minute at {quota}");
        Self::new(what, world.busiest_minute(), Wanted::AtMost(quota.into()))
    }

    pub(crate) fn beside(self, clairvoyant: f64) -> Self {
        Self {
            clairvoyant: Some(clairvoyant),
            ..self
        }
    }

    pub(crate) fn is_met(&self) -> bool {
        match self.wanted {
            Wanted::AtMost(most) => self.measured <= most,
            Wanted::AtLeast(least) => self.measured >= least,
            Wanted::Within(least, most) => (least..=most).contains(&self.measured),
            Wanted::Any => true,
        }
    }
}

/// Numbers in ascending order.
#[derive(Clone, Debug)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn new(numbers: impl Iterator<Item = f64>) -> Self {
        let mut numbers: Vec<_> = numbers.collect();
        numbers.sort_by(f64::total_cmp);
        Self(numbers)
    }

    /// The ages in seconds of the pages that were asked for at `since` or later.
    pub(crate) fn ages<'a>(reads: impl IntoIterator<Item = &'a Read>, since: Instant) -> Self {
        let later = reads.into_iter().filter(|read| read.asked >= since);
        Self::new(later.filter_map(|read| Some(read.outcome.ok()?.age.as_secs_f64())))
    }

    /// How long, in seconds, it took until there was a page; for who was refused until it may come back.
    pub(crate) fn waits<'a>(reads: impl IntoIterator<Item = &'a Read>, since: Instant) -> Self {
        let later = reads.into_iter().filter(|read| read.asked >= since);
        Self::new(later.map(|read| {
            let more = match read.outcome {
                Ok(_) => Duration::ZERO,
                Err(failure) => failure.retry_after.unwrap_or(Duration::MAX / 2),
            };
            (read.waited + more).as_secs_f64()
        }))
    }

    pub(crate) fn count(&self) -> f64 {
        self.0.len() as f64
    }

    pub(crate) fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.count()
    }

    /// The number that `percent` of them do not exceed; NaN of none.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0
            .get(last * percent / 100)
            .copied()
            .unwrap_or(f64::NAN)
    }

    pub(crate) fn most(&self) -> f64 {
        self.percentile(100)
    }
}

/// The share, from 0 to 1, of `reads` that `counts`.
pub(crate) fn share<T>(all: &[T], counts: impl Fn(&T) -> bool) -> f64 {
    all.iter().filter(|one| counts(one)).count() as f64 / all.len() as f64
}

/// The periodic schedule of whoever knows all rates beforehand: every call of the quota goes to a page, evenly over time, and a page that
/// is read at rate *r* lives in proportion to 1/√*r*. No other periodic schedule shows readers a smaller mean age.
#[derive(Clone, Debug)]
pub(crate) struct Clairvoyant {
    /// How often each page is read, and its lifetime in seconds.
    pages: Vec<(f64, f64)>,
}

impl Clairvoyant {
    pub(crate) fn new(rates: &[f64], calls_a_minute: u32) -> Self {
        let sum: f64 = rates.iter().map(|rate| rate.sqrt()).sum();
        let unit = sum * 60.0 / f64::from(calls_a_minute);
        let pages = rates.iter().map(|rate| (*rate, unit / rate.sqrt()));
        Self {
            pages: pages.collect(),
        }
    }

    /// The mean age at reads, in seconds.
    pub(crate) fn mean(&self) -> f64 {
        let reads: f64 = self.pages.iter().map(|(rate, _)| rate).sum();
        let ages = self
            .pages
            .iter()
            .map(|(rate, lifetime)| rate * lifetime / 2.0);
        ages.sum::<f64>() / reads
    }

    /// The age in seconds that `percent` of the reads do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let reads: f64 = self.pages.iter().map(|(rate, _)| rate).sum();
        // A page's age at a read is even between nothing and its lifetime.
        let below = |age: f64| {
            let of = self
                .pages
                .iter()
                .map(|(rate, life)| rate * (age / life).min(1.0));
            of.sum::<f64>() / reads
        };
        let longest = self.pages.iter().map(|(_, life)| *life).fold(0.0, f64::max);
        let (mut low, mut high) = (0.0, longest);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            match below(middle) * 100.0 < percent as f64 {
                true => low = middle,
                false => high = middle,
            }
        }
        high
    }
}
