//! A client's rate limit across all replicas: GCRA by Redis' clock.

use std::{sync::Arc, time::Duration};

use redis::Script;

use super::{RedisConnection, Unavailable};
use crate::telemetry::metrics::RedisOperation;

/// `KEYS`: the time at which the budget is full again. `ARGV`: the period and the burst, in microseconds and requests.
/// Answers whether there was one, how many are left, and the microseconds until all are back, or until there is one.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local period, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
-- A budget that was larger once owes no more than it holds now.
full_at = math.min(full_at, now + period * burst)
local next_full_at = full_at + period
local allowed_at = next_full_at - period * burst
if allowed_at > now then
    return {0, 0, allowed_at - now}
end
redis.call('SET', KEYS[1], string.format('%.0f', next_full_at), 'PX', math.ceil((next_full_at - now) / 1000) + 1000)
local left = math.floor((now - allowed_at) / period)
return {1, left, next_full_at - now}";

/// The rate limit of one client on all replicas.
#[derive(Debug)]
pub struct SharedLimit {
    redis: Arc<RedisConnection>,
    key: String,
    script: Script,
}

/// Whether a request is within the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is; `left` more are, and all after `full_in`.
    Yes { left: u32, full_in: Duration },
    /// It is not; the next is after `wait`.
    No { wait: Duration },
}

impl SharedLimit {
    /// The budget of the client called `client`.
    #[must_use]
    pub fn new(redis: Arc<RedisConnection>, client: &str) -> Self {
        let digest = blake3::hash(client.as_bytes()).to_hex();
        Self {
            key: redis.name(&format!("limit:{}", &digest[..32])),
            redis,
            script: Script::new(TAKE),
        }
    }

    /// Takes one request out of the budget of `burst`, in which one comes back each `period`.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] without Redis.
    pub async fn take(&self, period: Duration, burst: u32) -> Result<Taken, Unavailable> {
        let mut take = self.script.key(&self.key);
        let period_us = u64::try_from(period.as_micros()).unwrap_or(u64::MAX).max(1);
        take.arg(period_us).arg(burst);
        let (allowed, left, time): (bool, u32, u64) =
            self.redis.ask(RedisOperation::Limit, &take).await?;
        let time = Duration::from_micros(time);
        Ok(if allowed {
            Taken::Yes {
                left,
                full_in: time,
            }
        } else {
            Taken::No { wait: time }
        })
    }
}
