//! Connects, listens to the other replicas, checks that Redis still answers, and connects again.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::{Msg, PushInfo, PushKind, RedisError, Script, ScriptInvocation};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    CONNECT_TIMEOUT, Era, Health, Live, MEMBER_FOR, RedisConnection, Session, Subscriber,
    Unavailable, ms, unix_ms,
};
use crate::{
    shared::{
        Nonce,
        connect::{Connection, DialError, dial},
    },
    telemetry::metrics::RedisOperation,
};

/// How often Redis is checked.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Pauses between attempts to connect, doubled after each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A connection that lasted this long resets the pause.
const STEADY: Duration = Duration::from_secs(10);
/// Published messages that are not handled yet; beyond it the connection starts over.
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

impl RedisConnection {
    /// Connects, and reconnects whenever the connection is lost, until `end`. `first` is notified when the first attempt has ended,
    /// successful or not.
    pub async fn maintain(
        self: Arc<Self>,
        subscriber: Arc<dyn Subscriber>,
        first: Arc<Notify>,
        end: CancellationToken,
    ) {
        let maintaining = async {
            let mut pause = FIRST_PAUSE;
            let mut told = None;
            loop {
                let connected = self.connect(&*subscriber).await;
                first.notify_one();
                match connected {
                    Ok((live, messages)) => {
                        told = None;
                        let began = Instant::now();
                        self.watch(&live, &*subscriber, messages).await;
                        if began.elapsed() >= STEADY {
                            pause = FIRST_PAUSE;
                        }
                    }
                    Err(error) => {
                        self.metrics.shared.failed(RedisOperation::Connect);
                        let text = error.to_string();
                        // Each reason once: this may go on for hours.
                        if told.as_ref() != Some(&text) {
                            let source = error.source().map(source_text);
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
        end.run_until_cancelled(maintaining).await;
    }

    async fn connect(
        &self,
        subscriber: &dyn Subscriber,
    ) -> Result<(Arc<Live>, mpsc::Receiver<PushInfo>), DialError> {
        let config = self.config.clone();
        // Blocking: the address may be in a file.
        let address = tokio::task::spawn_blocking(move || config.read_address())
            .await
            .unwrap_or_else(|_| Err("reading it ended in a bug".to_owned()))
            .map_err(DialError::Address)?;
        let (pushes, messages) = mpsc::channel(MOST_NEWS);
        let connecting = async {
            let mut connection = dial(&address, pushes).await?;
            // First of all: later messages are heard, and what was published before is found by catching up.
            connection
                .commands
                .subscribe(self.channel())
                .await
                .map_err(DialError::Refused)?;
            let era = self.hello(&mut connection).await?;
            // Too slow for one operation is too slow: it would be lost again with the first one.
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
        // Only after the other replicas know what this one did alone: a member has a share of the quota.
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
        Ok((live, messages))
    }

    /// Returns the era in force, or begins one with the last purge that this replica knows of.
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

    /// Handles what other replicas publish until the connection is lost.
    async fn watch(
        &self,
        live: &Arc<Live>,
        subscriber: &dyn Subscriber,
        mut messages: mpsc::Receiver<PushInfo>,
    ) {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.live.load().is_some() {
            tokio::select! {
                push = messages.recv() => match push {
                    Some(push) if push.kind == PushKind::Disconnection => {
                        self.give_up(live, "disconnected");
                    }
                    Some(push) => {
                        if let Some(message) = Msg::from_push_info(push) {
                            subscriber.heard(message.get_payload_bytes());
                        }
                    }
                    None => self.give_up(live, "too many messages"),
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
        // The message about a purge may be under way; missing at two heartbeats in a row, it was lost.
        let is_unheard = purge != Some(era.purge);
        let was_unheard = live.purge_is_unheard.swap(is_unheard, Ordering::Relaxed);
        if birth != Some(era.birth) || is_unheard && was_unheard {
            self.give_up(live, "another era");
        }
    }
}

/// The code of a refusal such as `WRONGPASS`, or the kind of any other error. Never the server's text, which may repeat what was sent.
fn source_text(source: &(dyn Error + 'static)) -> String {
    match source.downcast_ref::<RedisError>() {
        Some(error) => error.code().unwrap_or_else(|| error.category()).to_owned(),
        None => source.to_string(),
    }
}

/// How far ahead of ours a clock is that said `now` between `sent` and `received`, taken as halfway.
fn ahead(now: i64, sent: i64, received: i64) -> i64 {
    now - sent - (received - sent) / 2
}

fn now_ms() -> i64 {
    i64::try_from(unix_ms()).unwrap_or(i64::MAX)
}
