//! The last hour, ten seconds at a time: what the dashboard draws from the moment it is opened.
//!
//! It reads the same text as a scrape and keeps sums of it, so that its numbers are those of `/metrics` and no request pays for them.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::metrics::{CacheOutcome, LookupKind, Metrics};
use crate::domain::Collection;

/// The length of a window.
pub const EVERY: Duration = Duration::from_secs(10);
/// Windows kept: an hour.
const MOST: usize = 360;

/// Sums of the metrics at the ends of the last windows.
#[derive(Debug)]
pub struct History {
    metrics: Arc<Metrics>,
    kept: Mutex<VecDeque<Totals>>,
}

/// What happened between two moments.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Window {
    /// When it ended, in Unix seconds.
    pub end: f64,
    pub seconds: f64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Of requests for lists, in seconds; `None` without any.
    pub p50: Option<f64>,
    pub p95: Option<f64>,
}

/// Events since the start, or within a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Lookups by [`LookupKind`].
    pub fresh: u64,
    pub stale: u64,
    pub fetched: u64,
    pub rejected: u64,
    /// Responses with a status 4xx or 5xx.
    pub client_errors: u64,
    pub server_errors: u64,
    pub upstream_calls: u64,
}

/// The counters at one moment.
#[derive(Clone, Debug)]
struct Totals {
    at: Instant,
    counts: Counts,
    /// Bounds in seconds, rising, and how many requests took no longer.
    buckets: Vec<(f64, u64)>,
}

impl History {
    /// Begins with the counters as they are.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        let first = Totals::read(&metrics.encode());
        Arc::new(Self {
            metrics,
            kept: Mutex::new([first].into()),
        })
    }

    /// Ends a window every ten seconds until `end`.
    pub async fn keep_recording(self: Arc<Self>, end: CancellationToken) {
        let mut ticks = interval_at(Instant::now() + EVERY, EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while end.run_until_cancelled(ticks.tick()).await.is_some() {
            let now = Totals::read(&self.metrics.encode());
            let mut kept = self.kept.lock();
            kept.push_back(now);
            if kept.len() > MOST + 1 {
                kept.pop_front();
            }
        }
    }

    /// The windows of the last hour, oldest first. The last one ends now, and is up to twice as long as the others.
    #[must_use]
    pub fn windows(&self) -> Vec<Window> {
        let now = Totals::read(&self.metrics.encode());
        let mut totals: Vec<_> = self.kept.lock().iter().cloned().collect();
        if totals.len() > 1 {
            totals.pop();
        }
        totals.push(now);
        let pairs = totals.windows(2);
        pairs.map(|pair| pair[1].since(&pair[0])).collect()
    }
}

impl Totals {
    /// Sums up the samples of `text`, as [`Metrics::encode`] returns it.
    fn read(text: &str) -> Self {
        let mut totals = Self {
            at: Instant::now(),
            counts: Counts::default(),
            buckets: Vec::new(),
        };
        for line in text.lines() {
            totals.add(line);
        }
        totals
    }

    /// Adds a sample if it is one of those that count; `None` if not.
    fn add(&mut self, line: &str) -> Option<()> {
        let (name, rest) = line.split_once('{')?;
        let (labels, value) = rest.split_once("} ")?;
        let counts = &mut self.counts;
        let sum = match name {
            "gateway_cache_lookups_total" => {
                match CacheOutcome::named(label(labels, "outcome")?)?.kind() {
                    LookupKind::Fresh => &mut counts.fresh,
                    LookupKind::Stale => &mut counts.stale,
                    LookupKind::Fetched => &mut counts.fetched,
                    LookupKind::Rejected => &mut counts.rejected,
                }
            }
            "gateway_http_requests_total" => match label(labels, "status")?.as_bytes().first()? {
                b'4' => &mut counts.client_errors,
                b'5' => &mut counts.server_errors,
                _ => return None,
            },
            "gateway_upstream_requests_total" => &mut counts.upstream_calls,
            "gateway_http_request_duration_seconds_bucket" => self.bucket(labels)?,
            _ => return None,
        };
        *sum += value.parse::<u64>().ok()?;
        Some(())
    }

    /// The bucket of a list's requests that has these labels.
    fn bucket(&mut self, labels: &str) -> Option<&mut u64> {
        let route = label(labels, "route")?;
        Collection::named(route)?;
        let bound = match label(labels, "le")? {
            "+Inf" => f64::INFINITY,
            bound => bound.parse().ok()?,
        };
        let place = self.buckets.partition_point(|(known, _)| *known < bound);
        if self
            .buckets
            .get(place)
            .is_none_or(|(known, _)| *known != bound)
        {
            self.buckets.insert(place, (bound, 0));
        }
        Some(&mut self.buckets[place].1)
    }

    fn since(&self, before: &Self) -> Window {
        let (now, then) = (&self.counts, &before.counts);
        let buckets = self.buckets.iter().zip(&before.buckets);
        let buckets: Vec<_> = buckets
            .map(|((bound, now), (_, then))| (*bound, now - then))
            .collect();
        let age = self.at.elapsed();
        let end = (SystemTime::now() - age).duration_since(UNIX_EPOCH);
        Window {
            end: (end.unwrap_or_default().as_secs_f64() * 1e3).round() / 1e3,
            seconds: (self.at - before.at).as_secs_f64(),
            counts: Counts {
                fresh: now.fresh - then.fresh,
                stale: now.stale - then.stale,
                fetched: now.fetched - then.fetched,
                rejected: now.rejected - then.rejected,
                client_errors: now.client_errors - then.client_errors,
                server_errors: now.server_errors - then.server_errors,
                upstream_calls: now.upstream_calls - then.upstream_calls,
            },
            p50: quantile(&buckets, 0.5),
            p95: quantile(&buckets, 0.95),
        }
    }
}

/// The value that this share of the observations did not exceed, on a line through its bucket, as Prometheus computes it.
fn quantile(buckets: &[(f64, u64)], share: f64) -> Option<f64> {
    let all = buckets.last().filter(|(_, count)| *count > 0)?.1;
    let rank = share * all as f64;
    let place = buckets
        .iter()
        .position(|(_, count)| *count as f64 >= rank)?;
    let (low, below) = place
        .checked_sub(1)
        .map_or((0.0, 0), |place| buckets[place]);
    let (high, count) = buckets[place];
    if high.is_infinite() {
        return Some(low);
    }
    Some(low + (high - low) * (rank - below as f64) / (count - below) as f64)
}

/// The value of a label whose values need no escapes.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then(|| value.trim_matches('"'))
    })
}

#[cfg(test)]
mod tests;
