//! What replicas share through Redis.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    declare::{CounterBy, counter, declare, gauge, label_values},
    histogram::Histogram,
};

/// Redis: whether it answers, and what it was asked for.
#[derive(Debug)]
pub struct SharedMetrics {
    up: Gauge,
    members: Gauge,
    durations: Durations,
    pending_purges: Gauge,
    errors: CounterBy,
    pages: CounterBy,
    stores: CounterBy,
    reasserted: Counter,
}

type Durations = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

impl SharedMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let up = gauge(
            registry,
            "redis_up",
            "Whether Redis is up: 1 yes, 0 no; -1 if none is configured",
        );
        up.set(-1);
        let members = gauge(
            registry,
            "redis_members",
            "Replicas connected to Redis, this one among them, as the last heartbeat saw them; -1 if none is configured",
        );
        members.set(-1);
        Self {
            up,
            members,
            durations: durations(registry),
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
            stores: CounterBy::new(
                registry,
                "redis_stores",
                "Fills reported to Redis, by what became of their page there",
                "outcome",
                RedisStore::ALL.map(RedisStore::as_str),
            ),
            reasserted: counter(
                registry,
                "redis_reasserted",
                "Drops that Redis had lost and was told again",
            ),
        }
    }

    /// Whether Redis answers.
    pub fn up(&self, up: bool) {
        self.up.set(up.into());
    }

    /// So many replicas are connected.
    pub fn members(&self, count: u32) {
        self.members.set(count.into());
    }

    /// Redis answered an operation, refused it, or gave no answer in time.
    pub fn took(&self, operation: RedisOperation, time: Duration) {
        let labels = [("operation", operation.as_str())];
        self.durations.get_or_create(&labels).observe(time);
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

    /// A fill was reported to Redis.
    pub fn stored(&self, outcome: RedisStore) {
        self.stores.inc(outcome.as_str());
    }

    /// Redis had lost a drop and knows it again.
    pub fn reasserted(&self) {
        self.reasserted.inc();
    }
}

fn durations(registry: &mut Registry) -> Durations {
    let durations = declare(
        registry,
        "redis_operation_duration_seconds",
        "Time until Redis answered or refused an operation, or the operation timed out",
        Durations::new_with_constructor(Histogram::of_round_trips),
    );
    for operation in RedisOperation::ALL {
        if operation.is_timed() {
            let _ = durations.get_or_create(&[("operation", operation.as_str())]);
        }
    }
    durations
}

label_values! {
    /// What became of a filled page in Redis.
    pub enum RedisStore {
        /// Other replicas find it.
        Stored = "stored",
        /// Its lock had run out, or another fill had taken it.
        Fenced = "fenced",
        /// Its space was dropped after the fill began.
        Dropped = "dropped",
        /// Another replica has seen its list move on.
        Overtaken = "overtaken",
        /// Only its list was told of: it may not be stored, is too large, or was filled without a lock.
        NotStorable = "not_storable",
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

impl RedisOperation {
    /// Whether it is one round trip, rather than several or none.
    fn is_timed(self) -> bool {
        !matches!(self, Self::Connect | Self::Read)
    }
}
