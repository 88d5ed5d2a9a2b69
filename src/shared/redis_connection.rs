//! The one connection to Redis: kept up by a task of its own, and given up at the first failure.
//!
//! Whoever asks over it is answered within `cache.redis.timeout` or told at once that it is lost; only [`RedisConnection::keep`] waits for it
//! to come back. So a Redis that is gone or hangs costs one timeout, and then nothing until it answers again.

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
use redis::{
    FromRedisValue, Msg, PushInfo, PushKind, RedisError, Script, ScriptInvocation,
    aio::MultiplexedConnection,
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Nonce,
    connect::{Connection, DialError, dial},
};
use crate::{
    config::cache::RedisConfig,
    telemetry::metrics::{Metrics, RedisOperation},
};

/// Connecting and taking up what changed: longer than an operation, since nobody waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks whether it still answers.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// For how long a call of the upstream counts after it has ended.
pub(super) const MINUTE: Duration = Duration::from_secs(60);
/// A replica that has not been heard of for so long counts as disconnected.
pub(super) const MEMBER_FOR: Duration = Duration::from_secs(5);
/// Pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A connection that held for so long was a good one.
const STEADY: Duration = Duration::from_secs(10);
/// What was published and not looked at yet; beyond it the connection is begun anew.
const MOST_NEWS: usize = 4096;

/// `KEYS`: era. `ARGV`: a birth and a purge for a Redis that has none. Answers the era.
const HELLO: &str = r"
redis.call('HSETNX', KEYS[1], 'birth', ARGV[1])
redis.call('HSETNX', KEYS[1], 'purge', ARGV[2])
return redis.call('HMGET', KEYS[1], 'birth', 'purge')";

/// `KEYS`: era, members. `ARGV`: this replica, how long a member counts. Answers the era and the time.
const HEARTBEATS: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[1])
local era = redis.call('HMGET', KEYS[1], 'birth', 'purge')
return {era[1], era[2], now}";

/// Birth, purge, and Redis' time in Unix milliseconds.
type Beat = (Option<Nonce>, Option<Nonce>, i64);

/// Redis is not there to answer: go on alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Redis is lost")]
pub struct Unavailable;

/// Under what everything in a Redis was written: what bears another is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Era {
    /// Given to a Redis that holds nothing: another one has forgotten everything.
    pub birth: Nonce,
    /// Changed when everything is dropped.
    pub purge: Nonce,
}

/// Whether Redis answers, and for how long it has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub is_up: bool,
    pub since: Instant,
}

/// Who keeps copies of what Redis holds.
pub trait Subscriber: Send + Sync {
    /// Takes note of what another replica published. Must not block.
    fn heard(&self, message: &[u8]);

    /// Does what is left to do, now and then while there is a connection. Must not block.
    fn beat(&self);

    /// Takes up what changed while there was no connection; until it has, nobody is told that there is one. Returns the purge in force
    /// where it dropped everything itself.
    fn catch_up<'a>(
        &'a self,
        session: &'a Session,
    ) -> BoxFuture<'a, Result<Option<Nonce>, Unavailable>>;
}

/// The connection to what replicas share.
#[derive(Debug)]
pub struct RedisConnection {
    config: RedisConfig,
    /// Tells this process from the others.
    replica: Nonce,
    live: ArcSwapOption<Live>,
    standing: Mutex<Standing>,
    /// Has [`RedisConnection::keep`] connect anew.
    failed: Notify,
    /// Told whenever a connection is lost.
    lost: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Live {
    connection: Connection,
    era: Mutex<Era>,
    /// Redis' clock less ours, in milliseconds.
    clock: AtomicI64,
    /// Whether Redis knew of a purge at the last beat that this replica had not heard of.
    purge_is_unheard: AtomicBool,
}

#[derive(Debug)]
struct Standing {
    health: Health,
    /// The era of the last connection.
    last_era: Option<Era>,
    /// When a connection was lost last, and whether Redis has forgotten since what was done by then.
    lost: Option<(Instant, bool)>,
}

/// A connection before it is used by all: what [`Subscriber::catch_up`] asks over.
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
    /// Not connected yet: [`RedisConnection::keep`] does that.
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

    /// The channel or key of this name.
    #[must_use]
    pub fn name(&self, rest: &str) -> String {
        format!("{}{rest}", self.config.prefix)
    }

    /// Where replicas tell each other.
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

    /// What this process is called among the others.
    #[must_use]
    pub fn replica(&self) -> Nonce {
        self.replica
    }

    /// How many gateways share it.
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

    /// Goes by another purge: everything of before is dropped here.
    pub fn purged(&self, purge: Nonce) {
        if let Some(live) = self.live.load_full() {
            let mut era = live.era.lock();
            era.purge = purge;
            self.standing.lock().last_era = Some(*era);
        }
    }

    /// When a connection was lost last, and whether Redis has forgotten since what was done by then.
    #[must_use]
    pub fn lost(&self) -> Option<(Instant, bool)> {
        self.standing.lock().lost
    }

    /// Redis' clock, in Unix milliseconds: the one that replicas go by, whatever their own say.
    #[must_use]
    pub fn unix_ms(&self) -> Option<u64> {
        let live = self.live.load();
        let ahead = live.as_ref()?.clock.load(Ordering::Relaxed);
        Some(unix_ms().saturating_add_signed(ahead))
    }

    /// Counts a value that is damaged or not ours.
    pub fn unreadable(&self) {
        self.metrics.shared.failed(RedisOperation::Read);
    }

    /// Runs `script`, if Redis is there.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] where it is not, at once, or is not any more, after `cache.redis.timeout` at most.
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

    /// Takes the connection for lost, since what it said is not what this replica knows: to be found out by connecting anew.
    pub fn doubt(&self) {
        if let Some(live) = self.live.load_full() {
            self.give_up(&live, "another era");
        }
    }

    /// Lets nobody ask over `live` any more, and has [`RedisConnection::keep`] connect anew.
    fn give_up(&self, live: &Arc<Live>, reason: &'static str) {
        let seen = self
            .live
            .compare_and_swap(Arc::as_ptr(live), None)
            .as_ref()
            .is_some_and(|seen| Arc::ptr_eq(seen, live));
        // Of many who see it fail, the first tells.
        if !seen {
            return;
        }
        let now = Instant::now();
        let mut standing = self.standing.lock();
        standing.health = Health {
            is_up: false,
            since: now,
        };
        // What it forgot once counts until it would not have mattered any more.
        let forgot_lately = standing
            .lost
            .is_some_and(|(lost, forgot)| forgot && now - lost < MINUTE + MEMBER_FOR);
        standing.lost = Some((now, forgot_lately));
        drop(standing);
        self.metrics.shared.up(false);
        warn!(redis.reason = reason, "Redis is lost, going on without it");
        self.failed.notify_one();
        self.lost.notify_waiters();
    }

    /// Connects, and connects anew whenever the connection is lost, until `end`. `first` is told when the first attempt has ended,
    /// one way or the other.
    pub async fn keep(
        self: Arc<Self>,
        subscriber: Arc<dyn Subscriber>,
        first: Arc<Notify>,
        end: CancellationToken,
    ) {
        let keeping = async {
            let mut pause = FIRST_PAUSE;
            let mut told = None;
            loop {
                let connected = self.connect(&*subscriber).await;
                first.notify_one();
                match connected {
                    Ok((live, news)) => {
                        told = None;
                        let began = Instant::now();
                        self.watch(&live, &*subscriber, news).await;
                        if began.elapsed() >= STEADY {
                            pause = FIRST_PAUSE;
                        }
                    }
                    Err(error) => {
                        self.metrics.shared.failed(RedisOperation::Connect);
                        let text = error.to_string();
                        // Each reason once: it may try for hours.
                        if told.as_ref() != Some(&text) {
                            let source = std::error::Error::source(&error).map(source_text);
                            warn!(
                                redis.error = text,
                                redis.source = source,
                                "cannot connect to Redis"
                            );
                            told = Some(text);
                        }
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        end.run_until_cancelled(keeping).await;
    }

    async fn connect(
        &self,
        subscriber: &dyn Subscriber,
    ) -> Result<(Arc<Live>, mpsc::Receiver<PushInfo>), DialError> {
        let config = self.config.clone();
        // It may be in a file.
        let address = tokio::task::spawn_blocking(move || config.read_address())
            .await
            .unwrap_or_else(|_| Err("reading it ended in a bug".to_owned()))
            .map_err(DialError::Address)?;
        let (pushes, news) = mpsc::channel(MOST_NEWS);
        let connecting = async {
            let mut connection = dial(&address, pushes).await?;
            // First: what is published from now on is heard, and what was before is found by catching up.
            connection
                .commands
                .subscribe(self.channel())
                .await
                .map_err(DialError::Refused)?;
            let era = self.hello(&mut connection).await?;
            // One that is too slow to be asked is none: it would be lost again with the first question.
            let ping = redis::cmd("PING");
            let answered = ping.query_async(&mut connection.commands);
            let answered: Result<(), _> = tokio::time::timeout(self.config.timeout, answered)
                .await
                .map_err(|_| DialError::Timeout(self.config.timeout))?;
            answered.map_err(DialError::Refused)?;
            Ok((connection, era))
        };
        let (connection, era) = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or(Err(DialError::Timeout(CONNECT_TIMEOUT)))?;
        let before = self.standing.lock().last_era;
        let session = Session {
            commands: connection.commands.clone(),
            era,
            before,
        };
        let purge = subscriber
            .catch_up(&session)
            .await
            .map_err(|Unavailable| DialError::CatchUp)?;
        let era = Era {
            purge: purge.unwrap_or(era.purge),
            ..era
        };
        // Not before the others know what it did alone: as a member it has a share of the quota.
        let sent = now_ms();
        let (birth, purge, now): Beat = session
            .ask(&self.heartbeat(&Script::new(HEARTBEATS)))
            .await
            .map_err(|Unavailable| DialError::CatchUp)?;
        if (birth, purge) != (Some(era.birth), Some(era.purge)) {
            return Err(DialError::CatchUp);
        }
        let live = Arc::new(Live {
            connection,
            era: Mutex::new(era),
            clock: AtomicI64::new(ahead(now, sent, now_ms())),
            purge_is_unheard: AtomicBool::new(false),
        });
        self.connected(&live, before);
        Ok((live, news))
    }

    /// Asks for the era in force, or begins one where there is none: what this replica knows of as purged stays so.
    async fn hello(&self, connection: &mut Connection) -> Result<Era, DialError> {
        let script = Script::new(HELLO);
        let before = self.standing.lock().last_era;
        let mut hello = script.key(self.era_key());
        hello
            .arg(Nonce::fresh())
            .arg(before.map_or_else(Nonce::fresh, |before| before.purge));
        let (birth, purge) = hello
            .invoke_async(&mut connection.commands)
            .await
            .map_err(DialError::Refused)?;
        Ok(Era { birth, purge })
    }

    fn heartbeat<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut beat = script.key(self.era_key());
        beat.key(self.members_key())
            .arg(self.replica)
            .arg(ms(MEMBER_FOR));
        beat
    }

    fn connected(&self, live: &Arc<Live>, before: Option<Era>) {
        let mut standing = self.standing.lock();
        let down_for = standing.health.since.elapsed();
        standing.health = Health {
            is_up: true,
            since: Instant::now(),
        };
        let era = live.era();
        standing.last_era = Some(era);
        let forgot = before.is_some_and(|before| before.birth != era.birth);
        if let Some((_, forgotten)) = &mut standing.lost {
            *forgotten |= forgot;
        }
        drop(standing);
        self.live.store(Some(live.clone()));
        self.metrics.shared.up(true);
        info!(
            redis.down_ms = u64::try_from(down_for.as_millis()).unwrap_or(u64::MAX),
            redis.forgot = forgot,
            "Redis answers"
        );
    }

    /// Hears what others publish until the connection is lost.
    async fn watch(
        &self,
        live: &Arc<Live>,
        subscriber: &dyn Subscriber,
        mut news: mpsc::Receiver<PushInfo>,
    ) {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.live.load().is_some() {
            tokio::select! {
                push = news.recv() => match push {
                    Some(push) if push.kind == PushKind::Disconnection => {
                        self.give_up(live, "disconnected");
                    }
                    Some(push) => {
                        if let Some(message) = Msg::from_push_info(push) {
                            subscriber.heard(message.get_payload_bytes());
                        }
                    }
                    None => self.give_up(live, "too much news"),
                },
                _ = heartbeat.tick() => {
                    subscriber.beat();
                    self.beat(live).await;
                }
                () = self.failed.notified() => {}
            }
        }
    }

    async fn beat(&self, live: &Arc<Live>) {
        let script = Script::new(HEARTBEATS);
        let beat = self.heartbeat(&script);
        let sent = now_ms();
        let answer: Result<Beat, Unavailable> = self.ask(RedisOperation::Heartbeat, &beat).await;
        let Ok((birth, purge, now)) = answer else {
            return;
        };
        live.clock
            .store(ahead(now, sent, now_ms()), Ordering::Relaxed);
        let era = live.era();
        // Word of a purge may still be on its way: unheard at two beats it was missed.
        let is_unheard = purge != Some(era.purge);
        let was_unheard = live.purge_is_unheard.swap(is_unheard, Ordering::Relaxed);
        if birth != Some(era.birth) || is_unheard && was_unheard {
            self.give_up(live, "another era");
        }
    }
}

/// What went wrong, in words that hold nothing of what was sent.
fn reason(error: &RedisError) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_io_error() || error.is_connection_dropped() {
        "disconnected"
    } else {
        "refused"
    }
}

/// The code of a refusal such as `WRONGPASS`; of anything else its kind. Never what a server says at length: it may repeat what it got.
fn source_text(source: &(dyn std::error::Error + 'static)) -> String {
    match source.downcast_ref::<RedisError>() {
        Some(error) => error.code().unwrap_or_else(|| error.category()).to_owned(),
        None => source.to_string(),
    }
}

/// How far a clock is ahead of ours that said `now` between `sent` and `received`, as likely halfway as not.
fn ahead(now: i64, sent: i64, received: i64) -> i64 {
    now - sent - (received - sent) / 2
}

pub(super) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, ms)
}

fn now_ms() -> i64 {
    i64::try_from(unix_ms()).unwrap_or(i64::MAX)
}
