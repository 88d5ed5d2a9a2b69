//! The calls of one upstream credential across all replicas: no more than its quota in any minute, at the pace of one process.
//!
//! Redis holds each call from its grant until a minute after its end, or after its lease if the end is never reported. What replicas may
//! spend that Redis does not count, and what they leave to each other, is told in `docs/quota.md`.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use redis::Script;
use tokio::{runtime::Handle, time::Instant};

use self::share::{reserved, share, turn_after};
use super::{
    RedisConnection, Session, Unavailable,
    redis_connection::{MEMBER_FOR, MINUTE, ms},
};
use crate::telemetry::metrics::RedisOperation;

mod share;

/// How long a call may take; one whose end is never reported counts as ended then.
const LEASE: Duration = Duration::from_secs(60);
/// Without Redis there is no call for so long: until the others' calls have left the minute, and they have noticed that this replica is
/// gone. That takes them [`MEMBER_FOR`] and a heartbeat.
const SILENCE: Duration = MINUTE.saturating_add(MEMBER_FOR.saturating_mul(2));
/// How long replicas that lost a connection at once may differ in having another: the longest pause between attempts, and an attempt.
const SETTLE: Duration = Duration::from_secs(3);
/// How soon a Redis is asked again that answers but does not count.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const CALLS: &str = include_str!("calls/calls.lua");

/// The calls of one credential, as all replicas make them.
#[derive(Debug)]
pub struct Calls {
    redis: Arc<RedisConnection>,
    script: Script,
    began: Instant,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What they are called in Redis.
    key: String,
    /// This replica's calls of the last minute, to report to a Redis that does not know them.
    made: HashMap<u64, Made>,
    /// Until when the upstream asked this replica to make no call.
    held_until: Option<Instant>,
    /// Since when Redis does not count although it answers, and when it was asked last.
    failing: Option<(Instant, Instant)>,
}

/// The state of a call.
#[derive(Clone, Copy, Debug)]
enum Made {
    Since(Instant),
    EndedAt(Instant),
}

/// Redis' answer to a request for a call.
#[derive(Debug)]
pub enum Grant {
    Granted(SharedCall),
    /// There may be one after this time.
    Refused(Duration),
}

impl Calls {
    /// What is done in Redis, for the test that compares it with the policy of one process.
    #[cfg(test)]
    pub(crate) const SCRIPT: &str = CALLS;

    /// The calls with `token` at `origin`, whatever the configuration calls its credential.
    #[must_use]
    pub fn new(redis: Arc<RedisConnection>, origin: &[u8], token: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("unpod-gateway shared quota");
        for part in [origin, token] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let digest = hasher.finalize().to_hex();
        let key = redis.name(&format!("{{{}}}:calls", &digest[..32]));
        Self {
            redis,
            script: Script::new(CALLS),
            began: Instant::now(),
            next: AtomicU64::new(0),
            state: Mutex::new(State {
                key,
                made: HashMap::new(),
                held_until: None,
                failing: None,
            }),
        }
    }

    /// Counts as `other` does from now on: these calls go on with another token. Those of the last minute stay spent.
    pub(crate) fn go_on_as(self: &Arc<Self>, other: Self) {
        let key = other.state.into_inner().key;
        let before = std::mem::replace(&mut self.state.lock().key, key.clone());
        if before != key
            && let Some(report) = self.made(Instant::now())
        {
            self.tell(report);
        }
    }

    /// The calls of `quota` that this replica may count on: what Redis counts for all, or its share.
    #[must_use]
    pub fn limit(&self, quota: u32, now: Instant) -> u32 {
        let (absent, of) = (self.redis.members().absent, self.replicas());
        match self.counts(now) {
            true => quota.saturating_sub(reserved(quota, absent, of)).max(1),
            false => share(quota, of),
        }
    }

    /// Whether Redis counts.
    #[must_use]
    pub fn counts(&self, now: Instant) -> bool {
        let failing = self.state.lock().failing;
        self.redis.is_up() && failing.is_none_or(|(_, asked)| now - asked >= ASK_AGAIN)
    }

    /// How long no call is asked for after a lost connection: the others report theirs as they come back, which Redis may have lost.
    #[must_use]
    pub fn settles_for(&self, now: Instant) -> Duration {
        let health = self.redis.health();
        if !health.is_up || self.redis.lost().is_none() {
            return Duration::ZERO;
        }
        (health.since + SETTLE).saturating_duration_since(now)
    }

    /// How long this replica stays silent because Redis does not count.
    #[must_use]
    pub fn silent_for(&self, now: Instant) -> Duration {
        if self.counts(now) {
            return Duration::ZERO;
        }
        let failing = self.state.lock().failing.map(|(since, _)| since);
        let lost = self.redis.lost().filter(|_| !self.redis.is_up());
        let since = match lost.max(failing) {
            Some(since) => since,
            // Alone by what is configured, it is as any process that begins.
            None if self.redis.replicas() == 1 => return Duration::ZERO,
            None => self.began,
        };
        (since + SILENCE).saturating_duration_since(now)
    }

    /// How long until this replica's turn, where Redis does not count and `quota` is too small for a share.
    #[must_use]
    pub fn turn_after(&self, quota: u32, now: Instant) -> Duration {
        let (members, of) = (self.redis.members(), self.replicas());
        if self.counts(now) || quota >= of {
            return Duration::ZERO;
        }
        if members.places == 0 {
            // Nobody told it which turn is its own.
            return MINUTE;
        }
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        turn_after(members.index, of, quota, unix.unwrap_or_default())
    }

    fn replicas(&self) -> u32 {
        self.redis.replicas().max(self.redis.members().places)
    }

    /// Requests a call within `limit`.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] where Redis does not count: the caller then has its share.
    pub async fn ask(self: &Arc<Self>, limit: u32) -> Result<Grant, Unavailable> {
        let call = self.begin();
        let mut grant = self.script.key(self.key());
        grant
            .arg(&["grant", "", &self.member(call.id)])
            .arg(limit)
            .arg(ms(LEASE));
        // Dropped while waiting, it counts as made: it may have been granted.
        let answer = self.redis.ask(RedisOperation::Quota, &grant).await;
        let mut state = self.state.lock();
        let now = Instant::now();
        state.failing = match &answer {
            Ok(_) => None,
            Err(Unavailable) if self.redis.is_up() => {
                // Who has not asked for so long may have been counted by the others meanwhile.
                let before = state.failing.filter(|(_, asked)| now - *asked < MEMBER_FOR);
                Some((before.map_or(now, |(since, _)| since), now))
            }
            Err(Unavailable) => state.failing,
        };
        drop(state);
        match answer {
            Ok(0_u64) => Ok(Grant::Granted(call)),
            Ok(wait) => {
                call.unmake();
                Ok(Grant::Refused(Duration::from_millis(wait)))
            }
            Err(Unavailable) => {
                // It may have been granted.
                call.give_back();
                Err(Unavailable)
            }
        }
    }

    /// Records a call that this replica makes alone.
    #[must_use]
    pub fn alone(self: &Arc<Self>) -> SharedCall {
        self.begin()
    }

    /// Holds all replicas' calls for `time`, as the upstream asked.
    pub fn hold_all(self: &Arc<Self>, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state.lock();
        // Each answer of a burst says the same.
        if state.held_until.is_none_or(|held| held + ASK_AGAIN < until) {
            state.held_until = Some(until);
            drop(state);
            self.tell(
                ["report", "", &ms(time).to_string()]
                    .map(String::from)
                    .into(),
            );
        }
    }

    /// Reports all calls of the last minute, and until when there is none; Redis counts no call twice.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] where it fails.
    pub async fn report(&self, session: &Session) -> Result<(), Unavailable> {
        if let Some(made) = self.made(Instant::now()) {
            let mut report = self.script.key(self.key());
            report.arg(made);
            let _: u8 = session.ask(&report).await?;
        }
        Ok(())
    }

    /// What there is to report.
    fn made(&self, now: Instant) -> Option<Vec<String>> {
        let signed = |time: Duration| i64::try_from(ms(time)).unwrap_or(i64::MAX);
        let state = self.state.lock();
        let held = state.held_until.unwrap_or(now) - now;
        if state.made.is_empty() && held.is_zero() {
            return None;
        }
        let mut report = vec!["report".to_owned(), String::new(), ms(held).to_string()];
        for (id, made) in &state.made {
            let ago = match made {
                Made::Since(began) => signed(now - *began) - signed(LEASE),
                Made::EndedAt(ended) => signed(now - *ended),
            };
            report.extend([self.member(*id), ago.to_string()]);
        }
        Some(report)
    }

    fn key(&self) -> String {
        self.state.lock().key.clone()
    }

    fn begin(self: &Arc<Self>) -> SharedCall {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let made = &mut self.state.lock().made;
        made.retain(|_, made| match made {
            Made::Since(_) => true,
            Made::EndedAt(ended) => now - *ended < MINUTE,
        });
        made.insert(id, Made::Since(now));
        SharedCall {
            calls: self.clone(),
            id,
            is_made: true,
        }
    }

    fn member(&self, id: u64) -> String {
        format!("{}:{id}", self.redis.replica())
    }

    /// Tells Redis something that nobody waits for.
    fn tell(self: &Arc<Self>, words: Vec<String>) {
        let calls = self.clone();
        // Outside a runtime the process is ending.
        if let Some(Ok(runtime)) = self.redis.is_up().then(Handle::try_current) {
            runtime.spawn(async move {
                let mut told = calls.script.key(calls.key());
                told.arg(words);
                let _: Result<u8, Unavailable> =
                    calls.redis.ask(RedisOperation::Quota, &told).await;
            });
        }
    }
}

/// A call that counts for all replicas, until a minute after this is dropped.
#[derive(Debug)]
pub struct SharedCall {
    calls: Arc<Calls>,
    id: u64,
    is_made: bool,
}

impl SharedCall {
    /// Gives it back: it was granted and never made.
    pub fn give_back(self) {
        self.tell("give_back");
        self.unmake();
    }

    /// Forgets it: no call was made.
    fn unmake(mut self) {
        self.is_made = false;
    }

    fn tell(&self, what: &str) {
        let member = self.calls.member(self.id);
        self.calls
            .tell(vec![what.to_owned(), String::new(), member]);
    }
}

impl Drop for SharedCall {
    fn drop(&mut self) {
        let mut state = self.calls.state.lock();
        if !self.is_made {
            state.made.remove(&self.id);
            return;
        }
        let ended = Made::EndedAt(Instant::now());
        state.made.insert(self.id, ended);
        drop(state);
        self.tell("end");
    }
}
