//! The connection to Redis: maintained by a task of its own. A second one reads the log that replicas write for each other.
//!
//! An operation is answered within `cache.redis.timeout`, or fails at once while there is no connection; only
//! [`RedisConnection::maintain`] waits for one. A command that Redis refuses fails alone. A Redis that is gone, or hangs three times in a row, is
//! done without until it answers again.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use redis::{ErrorKind, FromRedisValue, RedisError, Script, ScriptInvocation, ServerErrorKind};
use tokio::{sync::Notify, time::Instant};
use tracing::warn;

use super::{
    Nonce,
    connect::{Commands, reason},
};
use crate::{
    config::cache::RedisConfig,
    telemetry::metrics::{Metrics, RedisOperation, SharedMetrics},
};

mod log;
mod maintain;
mod members;

pub use self::members::Members;

/// For connecting and catching up: longer than for an operation, since nobody waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an upstream call counts after it has ended.
pub(super) const MINUTE: Duration = Duration::from_secs(60);
/// A replica without a heartbeat for this long counts as disconnected.
pub(super) const MEMBER_FOR: Duration = Duration::from_secs(5);
/// Keys of another version are not touched.
const FORMAT: &str = "v3";
/// After so many timeouts in a row Redis is lost.
const MOST_FAILURES: u32 = 3;

/// Redis has no answer: the replica continues alone, for now or for this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Redis is unavailable")]
pub struct Unavailable;

/// Whether Redis answers, and for how long it has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub is_up: bool,
    pub since: Instant,
}

/// Holds copies of what is in Redis, and hears what replicas log.
pub trait Subscriber: Send + Sync {
    /// Handles an entry of the log, of this replica or another, in the log's order; some more than once. Must not block.
    fn heard(&self, entry: &[u8]);

    /// Called every second while there is a connection, for what is left to do. Must not block.
    fn beat(&self);

    /// Tells Redis what it must know before the connection is used, and learns from it what the log tells no more.
    fn catch_up<'a>(
        &'a self,
        session: &'a Session,
        backlog: Backlog,
    ) -> BoxFuture<'a, Result<(), Unavailable>>;
}

/// What is there of the entries that were logged since a replica read the log last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backlog {
    Complete,
    /// Redis has lost what was read last, and maybe more.
    Forgotten,
    /// Entries were trimmed before this replica could read them.
    Trimmed,
}

/// The connection to the Redis that replicas share.
#[derive(Debug)]
pub struct RedisConnection {
    config: RedisConfig,
    /// Names this process among the replicas.
    replica: Nonce,
    live: ArcSwapOption<Live>,
    standing: Mutex<Standing>,
    seen: Mutex<members::Seen>,
    log_position: Mutex<log::Position>,
    /// Makes [`RedisConnection::maintain`] reconnect.
    failed: Notify,
    /// Notified whenever the connection is lost.
    lost: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Live {
    commands: Commands,
    /// Waits for entries of the log, and would hold up whatever else went over it.
    reader: Commands,
    /// How far Redis' clock is ahead of ours, in milliseconds.
    clock: AtomicI64,
    /// Failures in a row that alone mean nothing.
    failures: AtomicU32,
    /// What was logged of refusals.
    told: Mutex<HashSet<(&'static str, String)>>,
}

impl Live {
    /// Whether that was one failure too many.
    fn fails_again(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= MOST_FAILURES
    }
}

#[derive(Debug)]
struct Standing {
    health: Health,
    /// When the connection was last lost.
    lost: Option<Instant>,
}

/// A connection that is not in general use yet, for [`Subscriber::catch_up`].
#[derive(Debug)]
pub struct Session {
    commands: Commands,
    log: String,
}

impl Session {
    /// Has Redis know `script`, so that it can be run by its digest.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] where it fails.
    pub async fn load(&self, script: &Script) -> Result<(), Unavailable> {
        let mut commands = self.commands.clone();
        let invocation = script.prepare_invoke();
        in_time(invocation.load_async(&mut commands)).await?;
        Ok(())
    }

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
        in_time(script.invoke_async(&mut commands)).await
    }
}

/// An answer while connecting.
async fn in_time<T>(answer: impl Future<Output = Result<T, RedisError>>) -> Result<T, Unavailable> {
    match tokio::time::timeout(CONNECT_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(Unavailable),
    }
}

impl RedisConnection {
    /// Not connected yet: [`RedisConnection::maintain`] does that.
    #[must_use]
    pub fn new(config: RedisConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.shared.up(false);
        metrics.shared.members(0);
        Arc::new(Self {
            config,
            replica: Nonce::fresh(),
            live: ArcSwapOption::empty(),
            standing: Mutex::new(Standing {
                health: Health {
                    is_up: false,
                    since: Instant::now(),
                },
                lost: None,
            }),
            seen: Mutex::default(),
            log_position: Mutex::default(),
            failed: Notify::new(),
            lost: Notify::new(),
            metrics,
        })
    }

    /// A key with the configured prefix and the version of the format.
    #[must_use]
    pub fn name(&self, rest: &str) -> String {
        format!("{}{FORMAT}:{rest}", self.config.prefix)
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

    /// When the connection was last lost.
    #[must_use]
    pub fn lost(&self) -> Option<Instant> {
        self.standing.lock().lost
    }

    /// Redis' clock in Unix milliseconds, which all replicas use.
    #[must_use]
    pub fn unix_ms(&self) -> Option<u64> {
        let live = self.live.load();
        let ahead = live.as_ref()?.clock.load(Ordering::Relaxed);
        Some(unix_ms().saturating_add_signed(ahead))
    }

    /// Where whoever uses the connection counts what came of it.
    #[must_use]
    pub fn metrics(&self) -> &SharedMetrics {
        &self.metrics.shared
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
        let mut commands = live.commands.clone();
        let answer = script.invoke_async(&mut commands);
        self.answer(&live, operation, answer).await
    }

    /// Waits for an answer, for `cache.redis.timeout` at most. A failure is counted, and tells whether Redis is lost.
    async fn answer<T>(
        &self,
        live: &Arc<Live>,
        operation: RedisOperation,
        answer: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, Unavailable> {
        let asked = Instant::now();
        let answer = tokio::time::timeout(self.config.timeout, answer).await;
        self.metrics.shared.took(operation, asked.elapsed());
        let loss = match answer {
            Ok(Ok(answer)) => {
                live.failures.store(0, Ordering::Relaxed);
                return Ok(answer);
            }
            Ok(Err(error)) => {
                self.tell_refusal(live, operation, &error);
                // Of a cluster, one server may be gone.
                let is_lost = !live.commands.is_cluster() || live.fails_again();
                loss(&error).filter(|_| is_lost)
            }
            Err(_) => live.fails_again().then_some("timeout"),
        };
        self.metrics.shared.failed(operation);
        if let Some(reason) = loss {
            self.give_up(live, reason);
        }
        Err(Unavailable)
    }

    /// Each reason once a connection: whatever uses the key, or the command, meets it again.
    fn tell_refusal(&self, live: &Live, operation: RedisOperation, error: &RedisError) {
        let reason = reason(error);
        if live
            .told
            .lock()
            .insert((operation.as_str(), reason.clone()))
        {
            warn!(
                redis.operation = operation.as_str(),
                redis.error = reason,
                "Redis refused a command"
            );
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
        standing.lost = Some(now);
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

/// Why an error means that Redis is lost; `None`: it concerns its command alone.
fn loss(error: &RedisError) -> Option<&'static str> {
    match error.kind() {
        // Another server is in charge now, or none.
        ErrorKind::Server(
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading,
        ) => Some("not in charge"),
        _ if error.is_io_error() || error.is_connection_dropped() => Some("disconnected"),
        _ => None,
    }
}

pub(crate) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, ms)
}
