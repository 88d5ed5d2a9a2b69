//! What is done in Redis in one step each. Every script keeps to one space, and so to one slot of a cluster.
//!
//! `docs/replicas.md` says what the keys hold. Numbers only grow; whoever knows a larger one than Redis holds goes by that, so that a Redis
//! that lost writes is put right.

use std::{sync::LazyLock, time::Duration};

use redis::{Script, ScriptInvocation};

mod feed;

use self::feed::{COUNT_RANGES, FOLLOW, WRITE};
pub(super) use self::feed::{FollowAnswer, count_ranges, follow, write};
use super::{EPOCH_FOR, Known, REFUSED_FOR, RedisKeys, Wanted, lease::LOCK_FOR, ms};
use crate::{cache::list::SharedList, shared::Nonce};

/// All of them, to be loaded before they are needed.
pub(super) fn all() -> [&'static Script; 9] {
    [
        &LOOK,
        &RENEW,
        &UNLOCK,
        &STORE,
        &RAISE,
        &ASSERT,
        &FOLLOW,
        &WRITE,
        &COUNT_RANGES,
    ]
}

/// Epoch; generation, name, count and first row of the list; the page; for how long another holds the lock.
pub(super) type LookAnswer = (
    u64,
    Option<u64>,
    Option<Nonce>,
    Option<String>,
    Option<String>,
    Option<Vec<u8>>,
    i64,
);

/// Looks for a page, and takes the lock for `token` where it is `wanted`.
pub(super) fn look(
    keys: &RedisKeys,
    known: Known,
    token: Nonce,
    wanted: Wanted,
) -> ScriptInvocation<'static> {
    let mut look = LOOK.key(&keys.epoch);
    look.key(&keys.list)
        .key(&keys.page.value)
        .key(&keys.page.lock)
        .arg(known.epoch)
        .arg(known.generation)
        .arg(token)
        .arg(ms(LOCK_FOR))
        .arg(wanted as u8);
    look
}

/// What a fill leaves in Redis.
#[derive(Debug)]
pub(super) struct Stored<'a> {
    /// That in which it began.
    pub epoch: u64,
    pub list: &'a SharedList,
    pub list_for: Duration,
    /// That of its lock, where it has one.
    pub token: Option<Nonce>,
    /// The page; empty: none.
    pub value: &'a [u8],
    /// By Redis' clock, in Unix milliseconds.
    pub fresh_until: u64,
    pub keep_for: Duration,
}

/// Epoch, and whether Redis had an earlier one; whether the page is kept; generation, name, count and first row of the list.
pub(super) type StoreAnswer = (
    u64,
    bool,
    bool,
    Option<u64>,
    Option<Nonce>,
    Option<String>,
    Option<String>,
);

pub(super) fn store(keys: &RedisKeys, stored: &Stored<'_>) -> ScriptInvocation<'static> {
    let head = &stored.list.head;
    let count = head.count.map(|count| count.to_string());
    let mut store = STORE.key(&keys.epoch);
    store
        .key(&keys.list)
        .key(&keys.page.value)
        .key(&keys.page.lock)
        .arg(stored.epoch)
        .arg(ms(EPOCH_FOR))
        .arg(stored.list.generation)
        .arg(Nonce(stored.list.name))
        .arg(count.unwrap_or_default())
        .arg(head.first_row.as_deref().unwrap_or_default())
        .arg(ms(stored.list_for))
        .arg(stored.token.unwrap_or(Nonce(0)))
        .arg(stored.value)
        .arg(stored.fresh_until)
        .arg(ms(stored.keep_for).max(1));
    store
}

/// Begins a new epoch; `refused`: because the upstream refused the space, of which Redis may know nothing: clients may invent spaces.
pub(super) fn raise(
    key: &str,
    known: u64,
    keep_for: Option<Duration>,
    refused: bool,
) -> ScriptInvocation<'static> {
    let mut raise = RAISE.key(key);
    raise
        .arg(known)
        .arg(keep_for.map_or(0, ms))
        .arg(if refused { ms(REFUSED_FOR) } else { 0 });
    raise
}

/// Epoch; whether others may not have heard of it; whether Redis had lost it.
pub(super) type AssertAnswer = (u64, bool, bool);

/// Tells Redis of an epoch that it may have lost; `refused`: of a space that the upstream refused.
pub(super) fn assert_epoch(
    key: &str,
    known: u64,
    keep_for: Option<Duration>,
    refused: bool,
) -> ScriptInvocation<'static> {
    let mut assert = ASSERT.key(key);
    assert
        .arg(known)
        .arg(keep_for.map_or(0, ms))
        .arg(u8::from(refused));
    assert
}

pub(super) fn renew(lock: &str, token: Nonce) -> ScriptInvocation<'static> {
    let mut renew = RENEW.key(lock);
    renew.arg(token).arg(ms(LOCK_FOR));
    renew
}

pub(super) fn unlock(lock: &str, token: Nonce) -> ScriptInvocation<'static> {
    let mut unlock = UNLOCK.key(lock);
    unlock.arg(token);
    unlock
}

/// `KEYS`: epoch, list, page, lock. `ARGV`: the epoch and the generation that the replica knows; the token of the lock, for how long it is
/// held, and when it is wanted: where the page is not fresh (0), in any case (1), also from who holds it (2), or not at all (3). Answers the epoch; the list's generation,
/// name, count and first row; the page, if it is of the state in force; and of the lock 0 where it was taken, the milliseconds for
/// which another holds it, or -1 where it was not wanted.
static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local kept = redis.call('GET', KEYS[1])
local known, since = string.match(kept or '0', '^(%d+) ?(%d*)$')
local epoch = math.max(tonumber(known), tonumber(ARGV[1]))
local list = redis.call('HMGET', KEYS[2], 'generation', 'name', 'count', 'first', 'epoch')
-- Where the epoch was evicted, nobody knows what is of it.
if not kept or tonumber(list[5] or -1) ~= epoch then
    list = {}
end
local generation = math.max(tonumber(list[1] or 0), tonumber(ARGV[2]))
local page = redis.call('HMGET', KEYS[3], 'epoch', 'generation', 'fresh_until', 'stored')
local is_current = kept and tonumber(page[1] or -1) == epoch and tonumber(page[2] or -1) == generation
    and tonumber(page[4] or 0) >= (tonumber(since) or 0)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = -1
local is_missing = not (is_current and tonumber(page[3]) > now)
if ARGV[5] == '1' or ARGV[5] == '2' or ARGV[5] == '0' and is_missing then
    -- One without an end is nobody's, nor is one that lasts since the clock was set back.
    local left = redis.call('PTTL', KEYS[4])
    if ARGV[5] == '2' or left < 0 or left > tonumber(ARGV[4]) then
        redis.call('SET', KEYS[4], ARGV[3], 'PX', ARGV[4])
        held = 0
    else
        held = math.max(1, left)
    end
end
local value = is_current and redis.call('HGET', KEYS[3], 'page')
return {epoch, list[1] or false, list[2] or false, list[3] or false, list[4] or false, value, held}",
    )
});

/// `KEYS`: lock. `ARGV`: token, how long it is held from now. Answers whether it is still held.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])",
    )
});

/// `KEYS`: lock. `ARGV`: token.
static UNLOCK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return 0",
    )
});

/// `KEYS`: epoch, list, page, lock. `ARGV`: the epoch in which the fill began, how long epochs are kept; the newest generation that the
/// replica knows, the name, count and first row of the list's state that it saw, and how long a list is kept; the lock's token; the page
/// (empty: none), until when it is fresh and how long it is kept. Answers the epoch, whether Redis had lost it,
/// whether the page is kept, and the list's state in force.
///
/// An epoch that Redis knows nothing of is noted with the time: what was stored before that may have been dropped, and is not used.
///
/// What was dropped meanwhile stays dropped; a list that moved for another replica meanwhile did not move as this one says; and no page is
/// kept without the lock, which the fill that began last holds.
static STORE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local kept = redis.call('GET', KEYS[1])
local known = tonumber(string.match(kept or '0', '^%d+'))
local epoch, had_lock = tonumber(ARGV[1]), redis.call('GET', KEYS[4]) == ARGV[8]
if had_lock then
    redis.call('DEL', KEYS[4])
end
local list = redis.call('HMGET', KEYS[2], 'generation', 'name', 'count', 'first', 'epoch')
if known > epoch then
    return {known, 0, 0, false, false, false, false}
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
if not kept then
    redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. now)
elseif known < epoch then
    redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local was_behind = known < epoch and 1 or 0
if not kept or tonumber(list[5] or -1) ~= epoch then
    list = {}
    redis.call('DEL', KEYS[2])
end
local generation, before = tonumber(list[1] or 0), tonumber(ARGV[3])
if list[2] ~= ARGV[4] then
    if generation > before then
        return {epoch, was_behind, 0, list[1], list[2], list[3], list[4]}
    end
    redis.call('DEL', KEYS[2])
    generation = math.max(before + 1, tonumber(now))
else
    generation = math.max(generation, before)
end
local text = string.format('%.0f', generation)
redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'generation', text, 'name', ARGV[4])
if ARGV[5] ~= '' then
    redis.call('HSET', KEYS[2], 'count', ARGV[5])
end
if ARGV[6] ~= '' then
    redis.call('HSET', KEYS[2], 'first', ARGV[6])
end
redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), tonumber(ARGV[7])))
local is_kept = had_lock and ARGV[9] ~= ''
if is_kept then
    redis.call('DEL', KEYS[3])
    redis.call('HSET', KEYS[3], 'epoch', ARGV[1], 'generation', text, 'fresh_until', ARGV[10], 'stored', now, 'page', ARGV[9])
    redis.call('PEXPIRE', KEYS[3], ARGV[11])
end
list = redis.call('HMGET', KEYS[2], 'generation', 'name', 'count', 'first')
return {epoch, was_behind, is_kept and 1 or 0, list[1], list[2], list[3], list[4]}",
    )
});

/// `KEYS`: epoch. `ARGV`: the largest that the replica knows, how long it is kept (0: for ever), and how long where Redis knew none (0: the
/// same). Begins a new one; answers it, and whether it is kept for the former time.
static RAISE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local kept, time = redis.call('GET', KEYS[1]), redis.call('TIME')
local known = string.match(kept or '0', '^%d+')
local epoch = math.max(ARGV[1] + 1, known + 1, time[1] * 1000000 + time[2])
local is_brief = not kept and ARGV[3] ~= '0'
local keep_for = is_brief and ARGV[3] or ARGV[2]
redis.call('SET', KEYS[1], string.format('%.0f', epoch))
if keep_for ~= '0' then
    redis.call('PEXPIRE', KEYS[1], keep_for)
end
return {epoch, is_brief and 0 or 1}",
    )
});

/// `KEYS`: epoch. `ARGV`: the largest that the replica knows, how long it is kept (0: for ever), and whether the upstream refused the space,
/// of which nothing is written then where Redis knows nothing of it. Answers the one in force, whether others may not have heard of it (it was lost here, or is of the last minute, whose log may be lost), and whether it was lost here.
static ASSERT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local kept, known, time = redis.call('GET', KEYS[1]), tonumber(ARGV[1]), redis.call('TIME')
local before = tonumber(string.match(kept or '0', '^%d+'))
local was_lost = known > before
if was_lost and (kept or ARGV[3] == '0') then
    redis.call('SET', KEYS[1], ARGV[1])
    if ARGV[2] ~= '0' then
        redis.call('PEXPIRE', KEYS[1], ARGV[2])
    end
end
local is_news = was_lost or known == before and known > (time[1] - 60) * 1000000
return {math.max(known, before), is_news and 1 or 0, was_lost and 1 or 0}",
    )
});
