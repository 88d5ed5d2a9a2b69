//! The calls of one upstream credential across all replicas: no more than its quota in any minute.
//!
//! Redis holds each call from its grant until a minute after its end, or after its lease if the end is never reported. Disconnected
//! replicas may use their share of the quota; the connected ones have the rest: quota × connected ÷ configured replicas.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::Script;
use tokio::{runtime::Handle, time::Instant};

use super::{
    RedisConnection, Session, Unavailable,
    redis_connection::{MEMBER_FOR, MINUTE, ms},
};
use crate::telemetry::metrics::RedisOperation;

/// How long a call may take; one whose end is never reported counts as ended then.
const LEASE: Duration = Duration::from_secs(60);

/// `KEYS`: calls, hold, members. `ARGV`: the quota, replicas, this call, its lease, whether all replicas must be there, how long a
/// member counts. Answers 0, or the milliseconds until there may be a call.
const GRANT: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local quota, replicas, minute = tonumber(ARGV[1]), tonumber(ARGV[2]), 60000
local hold = redis.call('PTTL', KEYS[2])
if hold > 0 then
    return hold
end
local members = redis.call('ZCOUNT', KEYS[3], now - ARGV[6], '+inf')
if ARGV[5] == '1' and members < replicas then
    return 1000
end
local allowed = math.floor(quota * math.min(members, replicas) / replicas)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - minute)
-- How long until one more keeps to `most` within `window`: what is in flight stays for all of it.
local function room(most, window)
    local from = '(' .. (now - window)
    local over = redis.call('ZCOUNT', KEYS[1], from, '+inf') - most + 1
    if over <= 0 then
        return 0
    end
    local ended = redis.call('ZRANGEBYSCORE', KEYS[1], from, now, 'WITHSCORES', 'LIMIT', over - 1, 1)
    if most <= 0 or not ended[2] then
        return window
    end
    return math.max(1, ended[2] + window - now)
end
local burst = math.ceil(quota / 2)
local wait = math.max(room(allowed, minute), room(math.min(burst, allowed), math.floor(minute * burst / quota)))
if wait > 0 then
    return math.ceil(wait)
end
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4] + 2 * minute)
return 0";

/// `KEYS`: calls. `ARGV`: this call. It ended now.
const END: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], 'XX', now, ARGV[1])
return 0";

/// `KEYS`: calls. `ARGV`: this call. It was never made.
const GIVE_BACK: &str = r"
return redis.call('ZREM', KEYS[1], ARGV[1])";

/// `KEYS`: hold. `ARGV`: how long there is no call. The longest that any replica was told holds.
const BLOCK: &str = r"
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
end
return 0";

/// `KEYS`: calls. `ARGV`: pairs of a call and how long ago it ended, or less than nothing for the rest of its lease.
const REPORT: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for place = 1, #ARGV, 2 do
    redis.call('ZADD', KEYS[1], now - ARGV[place + 1], ARGV[place])
end
redis.call('PEXPIRE', KEYS[1], 180000)
return 0";

/// The calls of one credential, as all replicas make them.
#[derive(Debug)]
pub struct Calls {
    redis: Arc<RedisConnection>,
    key: String,
    block_key: String,
    grant: Script,
    next: AtomicU64,
    /// This replica's calls of the last minute, to report to a Redis that does not know them.
    made: Mutex<HashMap<u64, Made>>,
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
    /// The calls of the credential `name` at `origin`: replacing its token does not reset the quota.
    #[must_use]
    pub fn new(redis: Arc<RedisConnection>, origin: &str, name: &str) -> Arc<Self> {
        let mut hasher = blake3::Hasher::new_derive_key("unpod-gateway shared quota");
        for part in [origin, name] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let digest = hasher.finalize().to_hex();
        let of = |kind| redis.name(&format!("{kind}:{}", &digest[..32]));
        Arc::new(Self {
            key: of("calls"),
            block_key: of("hold"),
            redis,
            grant: Script::new(GRANT),
            next: AtomicU64::new(0),
            made: Mutex::default(),
        })
    }

    /// The part of `quota` that this replica may use: all of it while Redis counts, else its share.
    #[must_use]
    pub fn share_of(&self, quota: u32) -> u32 {
        if self.redis.is_up() {
            quota
        } else {
            quota / self.redis.replicas()
        }
    }

    /// Whether Redis counts.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.redis.is_up()
    }

    /// How long no call may be made after Redis was lost: until the other replicas' last calls have expired and they count this one as
    /// disconnected.
    #[must_use]
    pub fn blocked_for(&self, now: Instant) -> Option<Duration> {
        if self.redis.is_up() {
            return None;
        }
        let (lost, _) = self.redis.lost()?;
        let until = lost + MINUTE + MEMBER_FOR;
        (until > now).then(|| until - now)
    }

    /// Requests a call within `quota`.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] without Redis: the caller then has its share.
    pub async fn ask(self: &Arc<Self>, quota: u32) -> Result<Grant, Unavailable> {
        let call = self.begin();
        // A Redis that lost its data knows only the replicas that are back.
        let needs_all = self
            .redis
            .lost()
            .is_some_and(|(lost, forgotten)| forgotten && lost.elapsed() < MINUTE + MEMBER_FOR);
        let mut grant = self.grant.key(&self.key);
        grant
            .key(&self.block_key)
            .key(self.redis.members_key())
            .arg(quota)
            .arg(self.redis.replicas())
            .arg(self.member(call.id))
            .arg(ms(LEASE))
            .arg(u8::from(needs_all))
            .arg(ms(MEMBER_FOR));
        // Dropped while waiting, it counts as made: it may have been granted.
        match self.redis.ask(RedisOperation::Quota, &grant).await {
            Ok(0_u64) => Ok(Grant::Granted(call)),
            Ok(wait) => {
                call.unmake();
                Ok(Grant::Refused(Duration::from_millis(wait)))
            }
            Err(Unavailable) => {
                call.unmake();
                Err(Unavailable)
            }
        }
    }

    /// Records a call that this replica makes alone.
    #[must_use]
    pub fn alone(self: &Arc<Self>) -> SharedCall {
        self.begin()
    }

    /// Blocks all replicas' calls for `time`, as the upstream asked.
    pub fn block_all(self: &Arc<Self>, time: Duration) {
        let calls = self.clone();
        self.in_background(async move {
            let script = Script::new(BLOCK);
            let mut block = script.key(&calls.block_key);
            block.arg(ms(time).max(1));
            let _: Result<u8, Unavailable> = calls.redis.ask(RedisOperation::Quota, &block).await;
        });
    }

    /// Reports all calls of the last minute; Redis counts none twice.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] where it fails.
    pub async fn report(&self, session: &Session) -> Result<(), Unavailable> {
        let script = Script::new(REPORT);
        let mut report = script.key(&self.key);
        let now = Instant::now();
        let lease = i64::try_from(ms(LEASE)).unwrap_or(i64::MAX);
        let elapsed = |at: Instant| i64::try_from(ms(now - at)).unwrap_or(i64::MAX);
        let made: Vec<_> = self
            .made
            .lock()
            .iter()
            .map(|(id, made)| (*id, *made))
            .collect();
        if made.is_empty() {
            return Ok(());
        }
        for (id, made) in made {
            let ago = match made {
                Made::Since(began) => elapsed(began) - lease,
                Made::EndedAt(ended) => elapsed(ended),
            };
            report.arg(self.member(id)).arg(ago);
        }
        let _: u8 = session.ask(&report).await?;
        Ok(())
    }

    fn begin(self: &Arc<Self>) -> SharedCall {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut made = self.made.lock();
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

    /// Runs a task that nobody waits for.
    fn in_background(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = self.redis.is_up().then(Handle::try_current) {
            // Outside a runtime the process is ending.
            let _ = runtime.map(|runtime| runtime.spawn(task));
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
        self.tell(GIVE_BACK);
        self.unmake();
    }

    /// Forgets it: no call was made.
    fn unmake(mut self) {
        self.is_made = false;
    }

    fn tell(&self, script: &'static str) {
        let (calls, id) = (self.calls.clone(), self.id);
        self.calls.in_background(async move {
            let script = Script::new(script);
            let mut told = script.key(&calls.key);
            told.arg(calls.member(id));
            let _: Result<u8, Unavailable> = calls.redis.ask(RedisOperation::Quota, &told).await;
        });
    }
}

impl Drop for SharedCall {
    fn drop(&mut self) {
        let mut made = self.calls.made.lock();
        if !self.is_made {
            made.remove(&self.id);
            return;
        }
        made.insert(self.id, Made::EndedAt(Instant::now()));
        drop(made);
        self.tell(END);
    }
}
