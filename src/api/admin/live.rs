//! What `/metrics` says of the moment of a scrape.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use arc_swap::ArcSwap;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use tokio::time::Instant;

use super::Admin;
use crate::{
    api::Policy,
    service::Tasks,
    telemetry::{
        LogLosses,
        metrics::{LiveCredential, LiveMetrics},
    },
    upstream::{Credential, LimitLayer},
};

/// Reads it from the running gateway, as long as that runs: what is read has the metrics, too.
#[derive(Debug)]
pub(super) struct Live {
    tasks: Weak<Tasks>,
    policy: Weak<ArcSwap<Policy>>,
    limit: LimitLayer,
    log_losses: Option<LogLosses>,
}

impl Live {
    pub(super) fn of(admin: &Admin) -> Self {
        Self {
            tasks: Arc::downgrade(&admin.tasks),
            policy: Arc::downgrade(&admin.policy),
            limit: admin.limit.clone(),
            log_losses: admin.log_losses.clone(),
        }
    }

    fn now(&self) -> Option<LiveMetrics> {
        let tasks = self.tasks.upgrade()?;
        let policy = self.policy.upgrade()?.load_full();
        let store = tasks.store();
        let (cache_bytes, cache_entries) = store.size();
        let credentials = policy.clients.credentials();
        Some(LiveMetrics {
            cache_bytes,
            cache_entries,
            unstored_body_bytes: store.unstored_bytes(),
            cache_evictions: store.evictions(),
            fills_under_way: tasks.fills_under_way(),
            slot_queue: self.limit.waiting(),
            log_lines_dropped: self.log_losses.as_ref().map_or(0, LogLosses::count),
            credentials: credentials.all().map(|known| of(known, &tasks)).collect(),
        })
    }
}

fn of(credential: &Credential, tasks: &Tasks) -> LiveCredential {
    let budget = credential.purse();
    LiveCredential {
        name: credential.name.clone(),
        state: credential.state_as_number(),
        circuit: credential.circuit().state().as_number(),
        quota_remaining: budget.remaining(Instant::now()),
        quota_queue: budget.waiting(),
        lifetime: tasks.store().lifetime(credential.id),
        token_switches: credential.token_switches(),
    }
}

impl Collector for Live {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        match self.now() {
            Some(live) => live.encode(encoder),
            None => Ok(()),
        }
    }
}
