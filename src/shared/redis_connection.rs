//! The one connection to Redis: maintained by a task of its own, and given up at the first failure.
//!
//! An operation is answered within `cache.redis.timeout`, or fails at once while there is no connection; only
//! [`RedisConnection::maintain`] waits for one. A Redis that is gone or hangs costs one timeout, then nothing until it answers again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use redis::{FromRedisValue, RedisError, ScriptInvocation, aio::MultiplexedConnection};
use tokio::{sync::Notify, time::Instant};
use tracing::warn;

use super::{Nonce, connect::Connection};
use crate::{
    config::cache::RedisConfig,
    telemetry::metrics::{Metrics, RedisOperation},
};

mod maintain;

/// For connecting and catching up: longer than for an operation, since nobody waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an upstream call counts after it has ended.
pub(super) const MINUTE: Duration = Duration::from_secs(60);
/// A replica without a heartbeat for this long counts as disconnected.
pub(super) const MEMBER_FOR: Duration = Duration::from_secs(5);

/// There is no connection to Redis: the replica continues alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Redis is unavailable")]
pub struct Unavailable;

/// The era that everything in a Redis was written in; values of another era are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Era {
    /// Given to an empty Redis: a new one means that Redis lost its data.
    pub birth: Nonce,
    /// Changes with each purge of everything.
    pub purge: Nonce,
}

/// Whether Redis answers, and for how long it has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub is_up: bool,
    pub since: Instant,
}

/// Holds copies of what is in Redis, and is told what other replicas publish.
pub trait Subscriber: Send + Sync {
    /// Handles a message of another replica. Must not block.
    fn heard(&self, message: &[u8]);

    /// Called every second while there is a connection, for what is left to do. Must not block.
    fn beat(&self);

    /// Catches up with what changed while there was no connection; the connection is not used before. Returns the purge in force if it
    /// purged everything itself.
    fn catch_up<'a>(
        &'a self,
        session: &'a Session,
    ) -> BoxFuture<'a, Result<Option<Nonce>, Unavailable>>;
}

/// The connection to the Redis that replicas share.
#[derive(Debug)]
pub struct RedisConnection {
    config: RedisConfig,
    /// Names this process among the replicas.
    replica: Nonce,
    live: ArcSwapOption<Live>,
    standing: Mutex<Standing>,
    /// Makes [`RedisConnection::maintain`] reconnect.
    failed: Notify,
    /// Notified whenever the connection is lost.
    lost: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Live {
    connection: Connection,
    era: Mutex<Era>,
    /// How far Redis' clock is ahead of ours, in milliseconds.
    clock: AtomicI64,
    /// Whether the last heartbeat showed a purge that this replica has not heard of.
    purge_is_unheard: AtomicBool,
}

#[derive(Debug)]
struct Standing {
    health: Health,
    /// The era of the last connection.
    last_era: Option<Era>,
    /// When the connection was last lost, and whether Redis has lost its data since.
    lost: Option<(Instant, bool)>,
}

/// A connection that is not in general use yet, for [`Subscriber::catch_up`].
#[derive(Debug)]
pub struct Session {
    commands: MultiplexedConnection,
    pub era: Era,
    /// The era of the connection before, where there was one.
    pub before: Option<Era>,
}

impl Live {
    fn era(&self) -> Era {
        *self.era.lock()
    }
}

impl Session {
    /// Runs `script`, as part of connecting.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] where it fails.
    pub async fn ask<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, Unavailable> {
        let mut commands = self.commands.clone();
        let answer = script.invoke_async(&mut commands);
        let answer = tokio::time::timeout(CONNECT_TIMEOUT, answer).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(Unavailable),
        }
    }
}

impl RedisConnection {
    /// Not connected yet: [`RedisConnection::maintain`] does that.
    #[must_use]
    pub fn new(config: RedisConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.shared.up(false);
        Arc::new(Self {
            config,
            replica: Nonce::fresh(),
            live: ArcSwapOption::empty(),
            standing: Mutex::new(Standing {
                health: Health {
                    is_up: false,
                    since: Instant::now(),
                },
                last_era: None,
                lost: None,
            }),
            failed: Notify::new(),
            lost: Notify::new(),
            metrics,
        })
    }

    /// A key or channel name with the configured prefix.
    #[must_use]
    pub fn name(&self, rest: &str) -> String {
        format!("{}{rest}", self.config.prefix)
    }

    /// The channel on which replicas publish.
    #[must_use]
    pub fn channel(&self) -> String {
        self.name("news")
    }

    /// The key of the era in force.
    #[must_use]
    pub fn era_key(&self) -> String {
        self.name("era")
    }

    pub(super) fn members_key(&self) -> String {
        self.name("members")
    }

    /// The name of this process among the replicas.
    #[must_use]
    pub fn replica(&self) -> Nonce {
        self.replica
    }

    /// The configured number of replicas.
    #[must_use]
    pub fn replicas(&self) -> u32 {
        self.config.replicas.get()
    }

    #[must_use]
    pub fn is_up(&self) -> bool {
        self.live.load().is_some()
    }

    /// Waits until there is no connection.
    pub async fn until_lost(&self) {
        let lost = self.lost.notified();
        tokio::pin!(lost);
        lost.as_mut().enable();
        if self.is_up() {
            lost.await;
        }
    }

    #[must_use]
    pub fn health(&self) -> Health {
        self.standing.lock().health
    }

    /// The era of the connection there is.
    #[must_use]
    pub fn era(&self) -> Option<Era> {
        self.live.load().as_ref().map(|live| live.era())
    }

    /// Adopts a purge after which everything older was dropped here.
    pub fn purged(&self, purge: Nonce) {
        if let Some(live) = self.live.load_full() {
            let mut era = live.era.lock();
            era.purge = purge;
            self.standing.lock().last_era = Some(*era);
        }
    }

    /// When the connection was last lost, and whether Redis has lost its data since.
    #[must_use]
    pub fn lost(&self) -> Option<(Instant, bool)> {
        self.standing.lock().lost
    }

    /// Redis' clock in Unix milliseconds, which all replicas use.
    #[must_use]
    pub fn unix_ms(&self) -> Option<u64> {
        let live = self.live.load();
        let ahead = live.as_ref()?.clock.load(Ordering::Relaxed);
        Some(unix_ms().saturating_add_signed(ahead))
    }

    /// Counts a value that is damaged or foreign.
    pub fn unreadable(&self) {
        self.metrics.shared.failed(RedisOperation::Read);
    }

    /// Runs `script`.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] at once without a connection, or after `cache.redis.timeout` at most.
    pub async fn ask<T: FromRedisValue>(
        &self,
        operation: RedisOperation,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, Unavailable> {
        let live = self.live.load_full().ok_or(Unavailable)?;
        let mut commands = live.connection.commands.clone();
        let answer = script.invoke_async(&mut commands);
        let reason = match tokio::time::timeout(self.config.timeout, answer).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => reason(&error),
            Err(_) => "timeout",
        };
        self.metrics.shared.failed(operation);
        self.give_up(&live, reason);
        Err(Unavailable)
    }

    /// Gives up the connection because Redis and this replica disagree: reconnecting finds out.
    pub fn doubt(&self) {
        if let Some(live) = self.live.load_full() {
            self.give_up(&live, "another era");
        }
    }

    /// Retires `live` and makes [`RedisConnection::maintain`] reconnect.
    fn give_up(&self, live: &Arc<Live>, reason: &'static str) {
        let seen = self
            .live
            .compare_and_swap(Arc::as_ptr(live), None)
            .as_ref()
            .is_some_and(|seen| Arc::ptr_eq(seen, live));
        // Many may see it fail; the first one reports.
        if !seen {
            return;
        }
        let now = Instant::now();
        let mut standing = self.standing.lock();
        standing.health = Health {
            is_up: false,
            since: now,
        };
        // Lost data count for as long as they could have mattered.
        let forgot_lately = standing
            .lost
            .is_some_and(|(lost, forgot)| forgot && now - lost < MINUTE + MEMBER_FOR);
        standing.lost = Some((now, forgot_lately));
        drop(standing);
        self.metrics.shared.up(false);
        warn!(
            redis.reason = reason,
            "Redis connection lost, continuing without it"
        );
        self.failed.notify_one();
        self.lost.notify_waiters();
    }
}

/// The kind of an error, without anything of what was sent.
fn reason(error: &RedisError) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_io_error() || error.is_connection_dropped() {
        "disconnected"
    } else {
        "refused"
    }
}

pub(super) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, ms)
}
