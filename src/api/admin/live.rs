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
    service::Pages,
    telemetry::{
        LogLosses,
        metrics::{LiveCredential, LiveMetrics},
    },
    upstream::Credential,
};

/// Reads it from the running gateway, as long as that runs: what is read has the metrics, too.
#[derive(Debug)]
pub(super) struct Live {
    pages: Weak<Pages>,
    policy: Weak<ArcSwap<Policy>>,
    log_losses: Option<LogLosses>,
}

impl Live {
    pub(super) fn of(admin: &Admin) -> Self {
        Self {
            pages: Arc::downgrade(&admin.pages),
            policy: Arc::downgrade(&admin.policy),
            log_losses: admin.log_losses.clone(),
        }
    }

    fn now(&self) -> Option<LiveMetrics> {
        let pages = self.pages.upgrade()?;
        let policy = self.policy.upgrade()?.load_full();
        let store = pages.store();
        let (cache_bytes, cache_entries) = store.size();
        let credentials = policy.clients.credentials();
        Some(LiveMetrics {
            cache_bytes,
            cache_entries,
            unstored_body_bytes: store.unstored_bytes(),
            cache_evictions: store.evictions(),
            fills_under_way: pages.fills_under_way(),
            slot_queue: credentials
                .all()
                .map(|known| known.budget().waiting_for_slots())
                .sum(),
            log_lines_dropped: self.log_losses.as_ref().map_or(0, LogLosses::count),
            credentials: credentials.all().map(|known| of(known, &pages)).collect(),
            client_expiries: policy
                .clients
                .expiries()
                .map(|(client, end)| (client.to_string(), end))
                .collect(),
            certificate_expiries: policy
                .certificate_ends
                .iter()
                .map(|(file, end)| (file.display().to_string(), *end))
                .collect(),
        })
    }
}

fn of(credential: &Credential, pages: &Pages) -> LiveCredential {
    let budget = credential.budget();
    LiveCredential {
        name: credential.name.clone(),
        state: credential.state_as_number(),
        circuit: credential.circuit().state().as_number(),
        quota_remaining: budget.remaining(Instant::now()),
        quota_queue: budget.waiting_for_quota(),
        lifetime: pages.store().lifetime(credential.id),
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
