//! Lifetimes that fit the upstream's call quota: few calls a minute, shared out among the pages that are asked for.
//!
//! A page asked for at rate *r* gets a lifetime in proportion to 1/√*r*: of all ways to spend a number of refreshes on pages that
//! change alike, this one shows readers the least age. Pages asked for alike get alike: pages × 60 s / calls a minute.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
const SHARE_OUT_EVERY: Duration = Duration::from_secs(1);
/// What is assumed of a page before its requests tell: so many of them in so long a time. A young page's first few requests say
/// little about their rate.
const PRIOR_REQUESTS: f64 = 2.0;
const PRIOR_TIME: Duration = Duration::from_secs(600);
/// How much of a lifetime makes up for the time until a page is asked for again. No more: of pages that are rarely asked for the next
/// reader waits for a fill, and for that calls must be left.
const LARGEST_ADVANCE: u32 = 16;

/// What the pages of one credential need, against what it may spend.
#[derive(Debug)]
pub struct RefreshPlan {
    /// The lifetime of a page of weight 1, in milliseconds; 0: no quota, nothing is stretched.
    unit_ms: AtomicU64,
    /// The lifetime of a page asked for as often as the average.
    mean_ms: AtomicU64,
    /// No lifetime is stretched beyond it, in milliseconds.
    most_ms: AtomicU64,
    shared_out: Mutex<Option<Instant>>,
}

impl RefreshPlan {
    /// Nothing is known to be needed yet; no lifetime will be stretched beyond `most`.
    #[must_use]
    pub fn new(most: Duration) -> Self {
        let demand = Self {
            unit_ms: AtomicU64::new(0),
            mean_ms: AtomicU64::new(0),
            most_ms: AtomicU64::new(0),
            shared_out: Mutex::default(),
        };
        demand.set_most(most);
        demand
    }

    /// Changes how far lifetimes may be stretched.
    pub fn set_most(&self, most: Duration) {
        let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        self.most_ms.store(most, Ordering::Relaxed);
    }

    fn most(&self) -> Duration {
        Duration::from_millis(self.most_ms.load(Ordering::Relaxed))
    }

    /// Whether it is time to share out again: once in a while is enough, and each time looks at every page.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut shared_out = self.shared_out.lock();
        let due = shared_out.is_none_or(|last| now - last >= SHARE_OUT_EVERY);
        if due {
            *shared_out = Some(now);
        }
        due
    }

    /// Shares `calls_per_minute` out among the pages whose weights are given.
    pub fn share_out(&self, weights: impl Iterator<Item = f64>, calls_per_minute: Option<u32>) {
        let (pages, sum) = weights.fold((0_u32, 0.0), |(pages, sum), weight| {
            (pages.saturating_add(1), sum + weight)
        });
        let each = |of: f64| {
            let calls = calls_per_minute.filter(|calls| *calls > 0);
            let lifetime = calls.map_or(Duration::ZERO, |calls| {
                MINUTE.mul_f64(of / f64::from(calls))
            });
            u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX)
        };
        self.unit_ms.store(each(sum), Ordering::Relaxed);
        self.mean_ms.store(each(pages.into()), Ordering::Relaxed);
    }

    /// The lifetime that fits the quota for a page asked for as often as the average, as far as it may be stretched.
    #[must_use]
    pub fn mean_lifetime(&self) -> Duration {
        Duration::from_millis(self.mean_ms.load(Ordering::Relaxed)).min(self.most())
    }

    /// Whether a quota bounds the calls at all, and lifetimes follow it.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.unit_ms.load(Ordering::Relaxed) > 0 && !self.most().is_zero()
    }

    /// The lifetime that fits the quota for a page of `weight`, as far as it may be stretched.
    #[must_use]
    pub fn lifetime(&self, weight: f64) -> Duration {
        let unit = Duration::from_millis(self.unit_ms.load(Ordering::Relaxed));
        let period = unit.div_f64(weight);
        // It is refreshed when it is asked for after that.
        let until_asked = MINUTE.div_f64(weight * weight);
        (period - until_asked.min(period / LARGEST_ADVANCE)).min(self.most())
    }
}

/// How often a page is asked for; carried on from one fill to the next.
#[derive(Debug)]
pub struct RequestRate {
    since: Instant,
    asked: AtomicU32,
    /// Milliseconds from `since` to the last request.
    last_ms: AtomicU64,
}

impl RequestRate {
    /// A page that is asked for the first time.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            asked: AtomicU32::new(1),
            last_ms: AtomicU64::new(0),
        }
    }

    /// What is carried on when the page is fetched again: the past counts half.
    #[must_use]
    pub fn aged(&self, now: Instant) -> Self {
        let past = now.saturating_duration_since(self.since) / 2;
        let since = now.checked_sub(past).unwrap_or(self.since);
        let last = self.last_asked().saturating_duration_since(since);
        Self {
            since,
            asked: AtomicU32::new(self.asked.load(Ordering::Relaxed).div_ceil(2)),
            last_ms: AtomicU64::new(u64::try_from(last.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Counts the requests of `other` too, whose page this one's takes the place of.
    pub fn add(&self, other: &Self) {
        let asked = other.asked.load(Ordering::Relaxed);
        self.asked.fetch_add(asked, Ordering::Relaxed);
    }

    /// Notes a request.
    pub fn note(&self, now: Instant) {
        let ms = now.saturating_duration_since(self.since).as_millis();
        self.last_ms
            .fetch_max(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn last_asked(&self) -> Instant {
        self.since + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    /// √ of its requests a minute. Only ratios between pages matter.
    #[must_use]
    pub fn weight(&self, now: Instant) -> f64 {
        let over = now.saturating_duration_since(self.since) + PRIOR_TIME;
        let asked = f64::from(self.asked.load(Ordering::Relaxed)) + PRIOR_REQUESTS;
        let a_minute = asked * MINUTE.as_secs_f64() / over.as_secs_f64();
        a_minute.sqrt().max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pages_asked_for_alike_share_the_quota_evenly() {
        let now = Instant::now();
        for (pages, calls, lifetime) in [(2, 5, 24), (20, 5, 240), (20, 60, 20)] {
            let demand = RefreshPlan::new(Duration::MAX);
            let page = RequestRate::new(now);
            demand.share_out((0..pages).map(|_| page.weight(now)), Some(calls));
            let got = demand.lifetime(page.weight(now));
            assert!(
                got.abs_diff(Duration::from_secs(lifetime)) <= Duration::from_secs(lifetime) / 15,
                "{pages} pages at {calls}: {got:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_more_lives_shorter_and_the_sum_fits() {
        let begun = Instant::now();
        let pages: Vec<_> = (0..50).map(|_| RequestRate::new(begun)).collect();
        tokio::time::advance(Duration::from_secs(600)).await;
        let now = Instant::now();
        for (place, page) in pages.iter().enumerate() {
            (0..1000 / (place + 1)).for_each(|_| page.note(now));
        }
        let demand = RefreshPlan::new(Duration::MAX);
        demand.share_out(pages.iter().map(|page| page.weight(now)), Some(60));
        let lifetimes: Vec<_> = pages
            .iter()
            .map(|page| demand.lifetime(page.weight(now)))
            .collect();
        assert!(lifetimes.is_sorted() && lifetimes[0] < lifetimes[49] / 5);
        let calls_a_minute: f64 = lifetimes.iter().map(|l| 60.0 / l.as_secs_f64()).sum();
        assert!((60.0..=64.1).contains(&calls_a_minute), "{calls_a_minute}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_quota_nothing_is_stretched() {
        let now = Instant::now();
        let demand = RefreshPlan::new(Duration::MAX);
        demand.share_out([1.0].into_iter(), None);
        assert!(!demand.is_bounded());
        assert_eq!(
            demand.lifetime(RequestRate::new(now).weight(now)),
            Duration::ZERO
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_past_counts_half_after_a_fill() {
        let page = RequestRate::new(Instant::now());
        tokio::time::advance(Duration::from_secs(100)).await;
        page.note(Instant::now());
        let aged = page.aged(Instant::now());
        assert_eq!(aged.last_asked(), Instant::now());
        assert_eq!(aged.asked.load(Ordering::Relaxed), 1);
    }
}
