//! What is done with the feed of a space's changes in one step each.

use std::{sync::LazyLock, time::Duration};

use redis::{Script, ScriptInvocation};

use super::{super::feed::FeedKeys, EPOCH_FOR, LOCK_FOR, ms};
use crate::shared::Nonce;

/// Epoch; the version and the feed, where there is another than is known; for how long another holds the lock, 0: it was taken.
pub(in super::super) type FollowAnswer = (u64, Option<Nonce>, Option<Vec<u8>>, i64);

/// Looks for a feed of another version than `known`, and takes the lock for `token` where it is free.
pub(in super::super) fn follow(
    keys: &FeedKeys,
    epoch: u64,
    known: Option<Nonce>,
    token: Nonce,
) -> ScriptInvocation<'static> {
    let known = known.map(|known| known.to_string());
    let mut follow = FOLLOW.key(&keys.epoch);
    follow
        .key(&keys.feed.value)
        .key(&keys.feed.lock)
        .arg(epoch)
        .arg(known.unwrap_or_default())
        .arg(token)
        .arg(ms(LOCK_FOR));
    follow
}

/// Puts a feed in place of what is there; answers whether it may.
pub(in super::super) fn write(
    keys: &FeedKeys,
    epoch: u64,
    token: Nonce,
    version: Nonce,
    value: &[u8],
    keep_for: Duration,
) -> ScriptInvocation<'static> {
    let mut write = WRITE.key(&keys.epoch);
    write
        .key(&keys.feed.value)
        .key(&keys.feed.lock)
        .arg(epoch)
        .arg(ms(EPOCH_FOR))
        .arg(token)
        .arg(version)
        .arg(value)
        .arg(ms(keep_for).max(1));
    write
}

/// Notes for `keep_for` that so many ranges of a space are watched; answers how many there are of all spaces.
pub(in super::super) fn count_ranges(
    keys: &FeedKeys,
    count: usize,
    keep_for: Duration,
) -> ScriptInvocation<'static> {
    let mut ranges = COUNT_RANGES.key(&keys.ranges);
    ranges.arg(&keys.space).arg(count).arg(ms(keep_for).max(1));
    ranges
}

/// `KEYS`: epoch, feed, lock. `ARGV`: the epoch and the version that the replica knows; the token of the lock, and for how long it is held.
/// Answers the epoch; the version and the feed, where they are others; and of the lock 0 where it was taken, or the milliseconds for which
/// another holds it.
///
/// Where the epoch was evicted, the space may have been dropped since the feed was stored.
pub(super) static FOLLOW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local kept = redis.call('GET', KEYS[1])
local known, since = string.match(kept or '0', '^(%d+) ?(%d*)$')
local epoch = math.max(tonumber(known), tonumber(ARGV[1]))
local feed = redis.pcall('GET', KEYS[2])
local version, stored, value
if kept and type(feed) == 'string' then
    version, stored, value = string.match(feed, '^(%x+) (%d+) (.*)$')
end
if not version or version == ARGV[2] or tonumber(stored) < (tonumber(since) or 0) then
    version, value = false, false
end
-- One without an end is nobody's, nor is one that lasts since the clock was set back.
local held = redis.call('PTTL', KEYS[3])
if held < 0 or held > tonumber(ARGV[4]) then
    redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
    held = 0
else
    held = math.max(1, held)
end
return {epoch, version, value, held}",
    )
});

/// `KEYS`: epoch, feed, lock. `ARGV`: the epoch of the feed, how long epochs are kept; the lock's token; the version, the feed, and how long it
/// is kept. Answers whether it is stored: not without the lock, nor where the space was dropped meanwhile.
pub(super) static WRITE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local kept = redis.call('GET', KEYS[1])
local known = tonumber(string.match(kept or '0', '^%d+'))
if redis.call('GET', KEYS[3]) ~= ARGV[3] or known > tonumber(ARGV[1]) then
    return 0
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
if not kept then
    redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. now)
elseif known < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[4] .. ' ' .. now .. ' ' .. ARGV[5], 'PX', ARGV[6])
return 1",
    )
});

/// `KEYS`: ranges of a credential, each with its end. `ARGV`: a space, how many of it are watched, and for how long. Answers how many are watched.
pub(super) static COUNT_RANGES: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for range = 1, tonumber(ARGV[2]) do
    redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1] .. ':' .. range)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[3])))
return redis.call('ZCARD', KEYS[1])",
    )
});
