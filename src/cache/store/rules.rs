//! What the configuration says of pages: replaced as a whole when it is reloaded.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    cache::{
        freshness::Lifetimes,
        row_table::{RowFacts, RowTable},
    },
    config::CacheConfig,
    domain::{PageKey, RowKind},
};

/// How long pages and refusals live, and what is made of them.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) lifetimes: Lifetimes,
    pub(super) negative_ttl: Duration,
    pub(super) rejected_ttl: Duration,
    /// How long a fill may take before a stale page is shown; `None`: as long as it takes.
    pub(super) stale_if_slow: Option<Duration>,
    pub(super) jitter: f64,
    pub(super) coherent: bool,
    pub(super) assembles: bool,
    /// How far lifetimes may be stretched to fit a quota; `None`: not at all.
    pub(super) stretch_max: Option<Duration>,
    final_pages: Option<FinalPages>,
}

/// How long a page lives whose tasks will hardly change.
#[derive(Debug)]
struct FinalPages {
    ttl: Duration,
    /// How long a task must have been the same. The upstream adds to finished tasks for a while.
    unchanged_for: Duration,
    final_states: Vec<String>,
}

impl Rules {
    pub(super) fn new(config: &CacheConfig) -> Self {
        Self {
            lifetimes: Lifetimes::new(config),
            negative_ttl: config.negative_ttl,
            rejected_ttl: config.rejected_ttl,
            stale_if_slow: Some(config.stale_if_slow).filter(|after| !after.is_zero()),
            jitter: config.jitter,
            coherent: config.coherent_pages,
            assembles: config.coherent_pages && config.assemble_pages,
            stretch_max: config.stretch_to_quota.then_some(config.stretch_max),
            final_pages: FinalPages::new(config),
        }
    }

    /// The lifetimes that apply to a page of the rows of `table`, read at `now`, where the upstream states none.
    pub(super) fn lifetimes_of(&self, key: &PageKey, table: &RowTable, now: Instant) -> Lifetimes {
        match &self.final_pages {
            Some(pages) if pages.covers(key, table, now) => {
                self.lifetimes.lasting(pages.ttl.max(self.lifetimes.ttl))
            }
            _ => self.lifetimes,
        }
    }
}

impl FinalPages {
    /// `None` where such pages live like others.
    fn new(config: &CacheConfig) -> Option<Self> {
        let wanted = config.coherent_pages && !config.settled_ttl.is_zero();
        wanted.then(|| Self {
            ttl: config.settled_ttl,
            unchanged_for: config.settled_after,
            final_states: config.final_states.clone(),
        })
    }

    /// Whether a page is one: after the first, where new tasks appear, with every task in a final state and long the same.
    fn covers(&self, key: &PageKey, table: &RowTable, now: Instant) -> bool {
        let is_final = |row: RowFacts<'_>| {
            let unchanged_for = now.saturating_duration_since(row.unchanged_since);
            unchanged_for >= self.unchanged_for
                && row
                    .status
                    .is_some_and(|status| self.final_states.iter().any(|known| known == status))
        };
        key.query.page > 1
            && key.list.id.collection().rows == RowKind::Task
            && !table.is_empty()
            && table.iter().all(is_final)
    }
}
