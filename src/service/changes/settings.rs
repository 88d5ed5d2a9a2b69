//! What the configuration says of the feed.

use std::{sync::Arc, time::Duration};

use compact_str::CompactString;

use super::log::Bounds;
use crate::config::{CacheConfig, ChangesConfig};

/// All feeds together take no more than this share of what the cache may take, beside it.
const MEMORY_SHARE: usize = 8;

/// What a reload may change.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) quota_share: f64,
    pub(super) linger: Duration,
    pub(super) bounds: Bounds,
    pub(super) final_states: Arc<[CompactString]>,
    pub(super) settled_after: Duration,
    /// Bytes of all feeds.
    pub(super) max_bytes: usize,
}

impl Settings {
    pub(super) fn new(changes: &ChangesConfig, cache: &CacheConfig) -> Self {
        let states = cache.final_states.iter();
        Self {
            quota_share: changes.quota_share,
            linger: changes.linger,
            bounds: Bounds {
                events: changes.max_events,
                retention: changes.retention,
            },
            final_states: states.map(|state| state.as_str().into()).collect(),
            settled_after: cache.settled_after,
            max_bytes: cache.max_bytes / MEMORY_SHARE,
        }
    }
}
