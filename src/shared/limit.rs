//! A client's rate limit across all replicas: GCRA by Redis' clock.

use std::{sync::Arc, time::Duration};

use redis::Script;

use super::{RedisConnection, Unavailable};
use crate::telemetry::metrics::RedisOperation;

/// `KEYS`: the time at which the budget is full again. `ARGV`: the period and the burst, in microseconds and requests, and whether the
/// request was allowed already. Answers whether it is, and the microseconds until all are back.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local period, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
-- A budget that was larger once owes little more than it holds now, and one that replicas overdrew at once pays all of it back.
full_at = math.min(full_at, now + period * (2 * burst + 10))
if ARGV[3] == '0' and full_at + period > now + period * burst then
    return {0, full_at - now}
end
full_at = full_at + period
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000) + 1000)
return {1, full_at - now}";

/// The rate limit of one client on all replicas.
#[derive(Clone, Debug)]
pub struct SharedLimit {
    redis: Arc<RedisConnection>,
    key: String,
    script: Script,
}

/// Whether a request is within the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub is_allowed: bool,
    /// Until the budget is full again.
    pub full_in: Duration,
}

impl SharedLimit {
    /// The budget of the client called `client`.
    #[must_use]
    pub fn new(redis: Arc<RedisConnection>, client: &str) -> Self {
        let digest = blake3::hash(client.as_bytes()).to_hex();
        Self {
            key: redis.name(&format!("{{{}}}:limit", &digest[..32])),
            redis,
            script: Script::new(TAKE),
        }
    }

    /// Whether Redis can be asked.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.redis.is_up()
    }

    /// Takes one request, if there is one, out of the budget of `burst`, in which one comes back each `period`.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] without Redis.
    pub async fn take(&self, period: Duration, burst: u32) -> Result<Taken, Unavailable> {
        self.ask(period, burst, 0).await
    }

    /// Takes a request that was allowed already, into debt where need be.
    ///
    /// # Errors
    ///
    /// As [`SharedLimit::take`].
    pub async fn charge(&self, period: Duration, burst: u32) -> Result<Taken, Unavailable> {
        self.ask(period, burst, 1).await
    }

    async fn ask(
        &self,
        period: Duration,
        burst: u32,
        was_allowed: u8,
    ) -> Result<Taken, Unavailable> {
        let period = u64::try_from(period.as_micros()).unwrap_or(u64::MAX);
        let mut take = self.script.key(&self.key);
        take.arg(period.max(1)).arg(burst).arg(was_allowed);
        let (is_allowed, full_in) = self.redis.ask(RedisOperation::Limit, &take).await?;
        Ok(Taken {
            is_allowed,
            full_in: Duration::from_micros(full_in),
        })
    }
}
