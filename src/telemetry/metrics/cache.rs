//! What the cache did, and the fills it caused.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    Account, NO_CLIENT,
    account::count,
    declare::{CounterBy, GaugeGuard, declare, gauge, label_values},
    histogram::Histogram,
};

/// Lookups and fills.
#[derive(Debug)]
pub struct CacheMetrics {
    lookups: Family<LookupLabels, Counter>,
    page_age: Histogram,
    fills: CounterBy,
    fill_duration: Histogram,
    fill_waiters: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    outcome: &'static str,
    client: String,
}

impl CacheMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        Self {
            lookups: lookups(registry),
            page_age: declare(
                registry,
                "page_age_seconds",
                "Age of pages when they were served, from the cache or not",
                Histogram::of_ages(),
            ),
            fills: CounterBy::new(
                registry,
                "fills",
                "Pages fetched from the upstream, by outcome",
                "outcome",
                ["stored", "not_stored", "not_modified", "upstream_failed"],
            ),
            fill_duration: declare(
                registry,
                "fill_duration_seconds",
                "Duration of a fetch that asked the upstream, including retries",
                Histogram::of_durations(),
            ),
            fill_waiters: gauge(
                registry,
                "fill_waiters",
                "Requests waiting for a page being fetched",
            ),
        }
    }

    /// The cache did `outcome` for a request on `account`.
    pub fn lookup(&self, outcome: CacheOutcome, account: &Account) {
        count(Some(account.lookup(outcome)), || {
            let labels = LookupLabels {
                outcome: outcome.as_str(),
                client: account.client().to_string(),
            };
            self.lookups.get_or_create(&labels).clone()
        });
    }

    /// A page of this age was served.
    pub fn served(&self, age: Duration) {
        self.page_age.observe(age);
    }

    /// A fill ended, with a call or without one.
    pub fn filled(&self, outcome: &'static str) {
        self.fills.inc(outcome);
    }

    /// A fill that made a call took so long.
    pub fn fetched(&self, took: Duration) {
        self.fill_duration.observe(took);
    }

    /// Counts up while the guard lives.
    #[must_use]
    pub fn fill_waiter(&self) -> GaugeGuard {
        GaugeGuard::new(&self.fill_waiters)
    }
}

fn lookups(registry: &mut Registry) -> Family<LookupLabels, Counter> {
    let lookups = declare(
        registry,
        "cache_lookups",
        "Cache lookups, by outcome and client",
        Family::<LookupLabels, Counter>::default(),
    );
    for outcome in CacheOutcome::ALL.map(CacheOutcome::as_str) {
        let client = NO_CLIENT.to_owned();
        let _ = lookups.get_or_create(&LookupLabels { outcome, client });
    }
    lookups
}

/// What a lookup meant to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupKind {
    /// A fresh page of the store.
    Fresh,
    /// A stale page of the store.
    Stale,
    /// It waited for the upstream.
    Fetched,
    /// An error without an upstream request.
    Rejected,
}

impl CacheOutcome {
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|outcome| outcome.as_str() == name)
    }

    #[must_use]
    pub fn kind(self) -> LookupKind {
        match self {
            Self::Hit | Self::Assembled | Self::Filtered => LookupKind::Fresh,
            Self::StaleWhileRevalidate
            | Self::StaleIfError
            | Self::StaleIfSlow
            | Self::Quota
            | Self::MaxStale
            | Self::OnlyIfCached => LookupKind::Stale,
            Self::Miss | Self::Stale | Self::Joined => LookupKind::Fetched,
            Self::NotCached | Self::QuotaExhausted | Self::CircuitOpen | Self::Overloaded => {
                LookupKind::Rejected
            }
        }
    }
}

label_values! {
    /// Cache lookups, by outcome and client.
    pub enum CacheOutcome {
        Hit = "hit",
        StaleWhileRevalidate = "stale_while_revalidate",
        StaleIfError = "stale_if_error",
        StaleIfSlow = "stale_if_slow",
        Quota = "quota",
        MaxStale = "max_stale",
        OnlyIfCached = "only_if_cached",
        Assembled = "assembled",
        Filtered = "filtered",
        Miss = "miss",
        Stale = "stale",
        Joined = "joined",
        NotCached = "not_cached",
        QuotaExhausted = "quota_exhausted",
        CircuitOpen = "circuit_open",
        Overloaded = "overloaded",
    }
}
