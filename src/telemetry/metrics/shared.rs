//! What replicas share through Redis.

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};

use super::declare::{CounterBy, gauge, label_values};

/// Redis: whether it answers, and what it was asked for.
#[derive(Debug)]
pub struct SharedMetrics {
    up: Gauge,
    pending_purges: Gauge,
    errors: CounterBy,
    pages: CounterBy,
}

impl SharedMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let up = gauge(
            registry,
            "redis_up",
            "Whether Redis is up: 1 yes, 0 no; -1 if none is configured",
        );
        up.set(-1);
        Self {
            up,
            pending_purges: gauge(
                registry,
                "redis_pending_purges",
                "Purges that Redis, and so the other replicas, have not been told of yet",
            ),
            errors: CounterBy::new(
                registry,
                "redis_errors",
                "Failed Redis operations, by operation; read is a value that was corrupt or not ours",
                "operation",
                RedisOperation::ALL.map(RedisOperation::as_str),
            ),
            pages: CounterBy::new(
                registry,
                "redis_pages",
                "Pages looked up in Redis before an upstream request, by outcome",
                "outcome",
                ["hit", "miss"],
            ),
        }
    }

    /// Whether Redis answers.
    pub fn up(&self, up: bool) {
        self.up.set(up.into());
    }

    /// So many purges wait for Redis.
    pub fn pending_purges(&self, count: usize) {
        self.pending_purges
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// An operation of Redis failed.
    pub fn failed(&self, operation: RedisOperation) {
        self.errors.inc(operation.as_str());
    }

    /// A page was looked up in Redis.
    pub fn looked_up(&self, found: bool) {
        self.pages.inc(if found { "hit" } else { "miss" });
    }
}

label_values! {
    /// A Redis operation, as its failures are counted.
    pub enum RedisOperation {
        /// Connecting, and reading what was missed meanwhile.
        Connect = "connect",
        /// Checking that it still answers.
        Heartbeat = "heartbeat",
        /// Looking up a page.
        Look = "look",
        /// Storing a page.
        Store = "store",
        /// Keeping the lease of a fill, and giving it back.
        Lock = "lock",
        /// What replicas tell each other.
        Log = "log",
        /// Invalidating pages on all replicas.
        Drop = "drop",
        /// A client's rate limit.
        Limit = "limit",
        /// The upstream's quota.
        Quota = "quota",
        /// Reading a value that is damaged or not ours: Redis itself is well.
        Read = "read",
    }
}
