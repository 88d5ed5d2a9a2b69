//! Connects, checks that Redis still answers, and connects again.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::{RedisError, Script};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Backlog, CONNECT_TIMEOUT, Health, Live, RedisConnection, Session, Subscriber, Unavailable,
    members, unix_ms,
};
use crate::{
    shared::connect::{DialError, dial, reason},
    telemetry::metrics::RedisOperation,
};

/// How often Redis is checked.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// After so many failed heartbeats in a row Redis is lost.
const MOST_FAILURES: u32 = 2;
/// The longest pauses before connecting again: doubled after each failure, and any part of one, so that replicas do not come all at once.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A connection that lasts for so long is no part of what failed before it.
const LASTING: Duration = Duration::from_secs(5);

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
                    Ok(live) => {
                        told = None;
                        let since = Instant::now();
                        self.watch(&live, &*subscriber).await;
                        self.log_position.lock().step_back();
                        pause = pause_after(pause, since.elapsed());
                    }
                    Err(error) => {
                        self.metrics.shared.failed(RedisOperation::Connect);
                        self.tell(&error, &mut told);
                    }
                }
                tokio::time::sleep(pause.mul_f64(fastrand::f64())).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        end.run_until_cancelled(maintaining).await;
        self.leave().await;
    }

    /// Each reason once: this may go on for hours.
    fn tell(&self, error: &DialError, told: &mut Option<(String, Option<String>)>) {
        let text = (error.to_string(), error.source().map(source_text));
        if told.as_ref() != Some(&text) {
            warn!(
                redis.error = text.0,
                redis.source = text.1,
                "cannot connect to Redis"
            );
            *told = Some(text);
        }
    }

    async fn connect(&self, subscriber: &dyn Subscriber) -> Result<Arc<Live>, DialError> {
        let config = self.config.clone();
        // Blocking: the address may be in a file.
        let address = tokio::task::spawn_blocking(move || config.read_address())
            .await
            .map_err(|_| DialError::Address("reading it ended in a bug".to_owned()))?
            .map_err(|problems| DialError::Address(problems.to_string()))?;
        let connecting = async {
            let (mut commands, reader) = tokio::try_join!(dial(&address), dial(&address))?;
            let backlog = self.find_position(&mut commands).await?;
            // Too slow for one operation is too slow: it would be lost again with the first one.
            let ping = redis::cmd("PING");
            let answered = ping.query_async(&mut commands);
            let answered: Result<(), _> = tokio::time::timeout(self.config.timeout, answered)
                .await
                .map_err(|_| DialError::Timeout(self.config.timeout))?;
            answered?;
            Ok((commands, reader, backlog))
        };
        let (commands, mut reader, backlog) = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or(Err(DialError::Timeout(CONNECT_TIMEOUT)))?;
        let session = Session {
            commands: commands.clone(),
            log: self.log_key(),
        };
        let told = subscriber.catch_up(&session, backlog).await;
        told.map_err(|Unavailable| DialError::CatchUp)?;
        let heard = self.read_backlog(&mut reader, subscriber);
        tokio::time::timeout(CONNECT_TIMEOUT, heard)
            .await
            .unwrap_or(Err(DialError::Timeout(CONNECT_TIMEOUT)))?;
        // Only after the other replicas know what this one did alone: a member has a share of the quota.
        let script = Script::new(members::HEARTBEAT);
        let sent = now_ms();
        let answer = session.ask(&self.heartbeat(&script)).await;
        let now = self.saw(answer.map_err(|Unavailable| DialError::CatchUp)?);
        let live = Arc::new(Live {
            commands,
            reader,
            clock: AtomicI64::new(ahead(now, sent, now_ms())),
            failures: AtomicU32::new(0),
            told: Mutex::default(),
        });
        self.connected(&live, backlog);
        Ok(live)
    }

    fn connected(&self, live: &Arc<Live>, backlog: Backlog) {
        let mut standing = self.standing.lock();
        let down_for = standing.health.since.elapsed();
        standing.health = Health {
            is_up: true,
            since: Instant::now(),
        };
        drop(standing);
        self.live.store(Some(live.clone()));
        self.metrics.shared.up(true);
        info!(
            redis.down_ms = u64::try_from(down_for.as_millis()).unwrap_or(u64::MAX),
            redis.forgot = backlog == Backlog::Forgotten,
            "Redis answers"
        );
    }

    /// Hears what replicas log, until the connection is lost.
    async fn watch(&self, live: &Arc<Live>, subscriber: &dyn Subscriber) {
        let lost = async {
            while self.live.load().is_some() {
                self.failed.notified().await;
            }
        };
        tokio::select! {
            () = lost => {}
            () = self.follow_log(live, subscriber) => {}
            () = self.beat(live, subscriber) => {}
        }
    }

    async fn beat(&self, live: &Arc<Live>, subscriber: &dyn Subscriber) {
        let mut interval = tokio::time::interval(HEARTBEAT);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let script = Script::new(members::HEARTBEAT);
        let mut failures = 0;
        while failures < MOST_FAILURES {
            interval.tick().await;
            subscriber.beat();
            let beat = self.heartbeat(&script);
            let sent = now_ms();
            match self.ask(RedisOperation::Heartbeat, &beat).await {
                Ok(seen) => {
                    failures = 0;
                    let now = self.saw(seen);
                    live.clock
                        .store(ahead(now, sent, now_ms()), Ordering::Relaxed);
                }
                Err(Unavailable) => failures += 1,
            }
        }
        self.give_up(live, "no heartbeat");
    }
}

/// The longest pause after a connection that lasted for so long; `before`: that of the failures before it.
fn pause_after(before: Duration, lasted: Duration) -> Duration {
    match lasted < LASTING {
        true => before,
        false => FIRST_PAUSE,
    }
}

fn source_text(source: &(dyn Error + 'static)) -> String {
    let error = source.downcast_ref::<RedisError>();
    error.map_or_else(|| source.to_string(), reason)
}

/// How far ahead of ours a clock is that said `now` between `sent` and `received`, taken as halfway.
fn ahead(now: i64, sent: i64, received: i64) -> i64 {
    now - sent - (received - sent) / 2
}

fn now_ms() -> i64 {
    i64::try_from(unix_ms()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_ends_at_once_is_one_more_failure() {
        for (lasted, pause) in [
            (Duration::ZERO, LONGEST_PAUSE),
            (LASTING - Duration::from_millis(1), LONGEST_PAUSE),
            (LASTING, FIRST_PAUSE),
        ] {
            assert_eq!(pause_after(LONGEST_PAUSE, lasted), pause, "{lasted:?}");
        }
    }
}
