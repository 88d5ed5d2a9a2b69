//! What is done in Redis in one step each. Every script keeps to one space, and so to one slot of a cluster.
//!
//! `docs/replicas.md` says what the keys hold. Numbers only grow; whoever knows a larger one than Redis holds goes by that, so that a Redis
//! that lost writes is put right.

/// `KEYS`: epoch, list, page, lock. `ARGV`: the epoch and the generation that the replica knows; the token of the lock that it wants where
/// the page is not fresh (empty: none), for how long, and whether it takes it from another. Answers the epoch; the list's generation,
/// name, count and first row; the page, if it is of the state in force; and of the lock 0 where it was taken, the milliseconds for
/// which another holds it, or -1 where it was not wanted.
pub(super) const LOOK: &str = r"
local kept = redis.call('GET', KEYS[1])
local epoch = math.max(tonumber(kept or 0), tonumber(ARGV[1]))
local list = redis.call('HMGET', KEYS[2], 'generation', 'name', 'count', 'first', 'epoch')
if tonumber(list[5] or -1) ~= epoch then
    list = {}
end
local generation = math.max(tonumber(list[1] or 0), tonumber(ARGV[2]))
local page = redis.call('HMGET', KEYS[3], 'epoch', 'generation', 'fresh_until')
-- Where the epoch was evicted, nobody knows whether the page is of it.
local is_current = kept and tonumber(page[1] or -1) == epoch and tonumber(page[2] or -1) == generation
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = -1
if ARGV[5] == '1' then
    redis.call('SET', KEYS[4], ARGV[3], 'PX', ARGV[4])
    held = 0
elseif ARGV[3] ~= '' and not (is_current and tonumber(page[3]) > now) then
    if redis.call('SET', KEYS[4], ARGV[3], 'NX', 'PX', ARGV[4]) then
        held = 0
    else
        held = math.max(1, redis.call('PTTL', KEYS[4]))
    end
end
local value = is_current and redis.call('HGET', KEYS[3], 'page')
return {epoch, list[1] or false, list[2] or false, list[3] or false, list[4] or false, value, held}";

/// `KEYS`: lock. `ARGV`: token, how long it is held from now. Answers whether it is still held.
pub(super) const RENEW: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// `KEYS`: lock. `ARGV`: token.
pub(super) const UNLOCK: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return 0";

/// `KEYS`: epoch, list, page, lock. `ARGV`: the epoch in which the fill began, how long epochs are kept; the newest generation that the
/// replica knows, the name, count and first row of the list's state that it saw, and how long a list is kept; the lock's token; the page
/// (empty: none), how long it is fresh and how long it is kept. Answers the epoch, and the list's state in force.
///
/// What was dropped meanwhile stays dropped; a list that moved for another replica meanwhile did not move as this one says; and no page is
/// kept without the lock, which the fill that began last holds.
pub(super) const STORE: &str = r"
local known = tonumber(redis.call('GET', KEYS[1]) or 0)
local epoch, had_lock = tonumber(ARGV[1]), redis.call('GET', KEYS[4]) == ARGV[8]
if had_lock then
    redis.call('DEL', KEYS[4])
end
local list = redis.call('HMGET', KEYS[2], 'generation', 'name', 'count', 'first', 'epoch')
if known > epoch then
    return {known, false, false, false, false}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if tonumber(list[5] or -1) ~= epoch then
    list = {}
    redis.call('DEL', KEYS[2])
end
local generation, before = tonumber(list[1] or 0), tonumber(ARGV[3])
if list[2] ~= ARGV[4] then
    if generation > before then
        return {epoch, list[1], list[2], list[3], list[4]}
    end
    redis.call('DEL', KEYS[2])
    local time = redis.call('TIME')
    generation = math.max(before + 1, time[1] * 1000 + math.floor(time[2] / 1000))
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
if had_lock and ARGV[9] ~= '' then
    redis.call('DEL', KEYS[3])
    redis.call('HSET', KEYS[3], 'epoch', ARGV[1], 'generation', text, 'page', ARGV[9])
    local time = redis.call('TIME')
    redis.call('HSET', KEYS[3], 'fresh_until', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[10]))
    redis.call('PEXPIRE', KEYS[3], ARGV[11])
end
list = redis.call('HMGET', KEYS[2], 'generation', 'name', 'count', 'first')
return {epoch, list[1], list[2], list[3], list[4]}";

/// `KEYS`: epoch. `ARGV`: the largest that the replica knows, how long it is kept (0: for ever), whether there is to be a new one, and whether
/// the upstream refused the space, of which nothing is written then where Redis knows nothing of it: clients may invent spaces. Answers
/// the epoch in force, and whether it is written.
pub(super) const RAISE: &str = r"
local known, epoch = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1])
if ARGV[3] == '1' then
    local time = redis.call('TIME')
    epoch = math.max(epoch + 1, known + 1, time[1] * 1000 + math.floor(time[2] / 1000))
else
    epoch = math.max(epoch, known)
end
if epoch == 0 or ARGV[4] == '1' and redis.call('EXISTS', KEYS[1]) == 0 then
    return {epoch, 0}
end
redis.call('SET', KEYS[1], string.format('%.0f', epoch))
if ARGV[2] ~= '0' then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return {epoch, 1}";
