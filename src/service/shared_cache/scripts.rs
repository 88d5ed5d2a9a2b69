//! What is done in Redis in one step each.
//!
//! The state of a space is a hash: `epoch`, which names what is stored of it and is another after it was dropped; `generation`, which
//! names what its list looked like; `count` and `first`, by which a move of the list is seen; and `guessed` where the epoch is that of
//! the first who came, not knowing of another, and gives way to one that a replica knew before Redis forgot it. Pages are values of their own, which
//! carry the names under which they were written.

/// `KEYS`: era, state, page. `ARGV`: an epoch and a generation for a space that has none, how long the state is kept.
pub(super) const LOOK: &str = r"
if redis.call('HSETNX', KEYS[2], 'epoch', ARGV[1]) == 1 then
    redis.call('HSET', KEYS[2], 'guessed', '1')
end
redis.call('HSETNX', KEYS[2], 'generation', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
local era = redis.call('HMGET', KEYS[1], 'birth', 'purge')
local state = redis.call('HMGET', KEYS[2], 'epoch', 'generation', 'count', 'first')
return {era[1], era[2], state[1], state[2], state[3], state[4], redis.call('GET', KEYS[3])}";

/// `KEYS`: lock. `ARGV`: token, how long it is held. Answers 0, or the milliseconds for which another holds it.
pub(super) const LOCK: &str = r"
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return 0
end
return math.max(1, redis.call('PTTL', KEYS[1]))";

/// `KEYS`: lock. `ARGV`: token, how long it is held from now. Answers whether it is still held.
pub(super) const RENEW: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// `KEYS`: lock. `ARGV`: token, channel, what is told there.
pub(super) const UNLOCK: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
    redis.call('PUBLISH', ARGV[2], ARGV[3])
end
return 0";

/// `KEYS`: era, state, page, lock. `ARGV`: birth, purge, epoch; the generation known before and that of the page; count, first; the
/// page and how long it is kept; the lock's token; channel, what is told of a move, and what is told at the end.
///
/// What was dropped meanwhile stays dropped; a list that moved for another replica meanwhile did not move as this one says.
pub(super) const STORE: &str = r"
local era = redis.call('HMGET', KEYS[1], 'birth', 'purge')
local state = redis.call('HMGET', KEYS[2], 'epoch', 'generation', 'count', 'first')
if era[1] == ARGV[1] and era[2] == ARGV[2] and state[1] == ARGV[3] then
    if state[2] == ARGV[4] and ARGV[4] ~= ARGV[5] then
        redis.call('HDEL', KEYS[2], 'count', 'first')
        redis.call('HSET', KEYS[2], 'generation', ARGV[5])
        redis.call('PUBLISH', ARGV[11], ARGV[12])
        state[2] = ARGV[5]
    end
    if state[2] == ARGV[5] then
        if ARGV[6] ~= '' then
            redis.call('HSET', KEYS[2], 'count', ARGV[6])
        end
        if ARGV[7] ~= '' then
            redis.call('HSET', KEYS[2], 'first', ARGV[7])
        end
        redis.call('SET', KEYS[3], ARGV[8], 'PX', ARGV[9])
    end
end
if redis.call('GET', KEYS[4]) == ARGV[10] then
    redis.call('DEL', KEYS[4])
end
redis.call('PUBLISH', ARGV[11], ARGV[13])
state = redis.call('HMGET', KEYS[2], 'epoch', 'generation', 'count', 'first')
if not state[1] or not state[2] then
    return false
end
return state";

/// `KEYS`: state. `ARGV`: another epoch, how long the state is kept, channel, what is told there.
pub(super) const DROP: &str = r"
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
redis.call('HDEL', KEYS[1], 'count', 'first', 'guessed')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 0";

/// `KEYS`: era. `ARGV`: another purge, channel, what is told there.
pub(super) const PURGE: &str = r"
redis.call('HSET', KEYS[1], 'purge', ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 0";

/// `KEYS`: channel. `ARGV`: what is told there. Answers how many were told.
pub(super) const TELL: &str = "return redis.call('PUBLISH', KEYS[1], ARGV[1])";

/// `KEYS`: states. `ARGV`: how long they are kept, then for each an epoch and a generation, should it have none, and whether those were
/// known before.
pub(super) const STILL: &str = r"
local found = {}
for place, key in ipairs(KEYS) do
    local epoch, generation, is_known = ARGV[3 * place - 1], ARGV[3 * place], ARGV[3 * place + 1] == '1'
    local state = redis.call('HMGET', key, 'epoch', 'guessed')
    if not state[1] or is_known and state[2] then
        redis.call('DEL', key)
        redis.call('HSET', key, 'epoch', epoch, 'generation', generation)
        if not is_known then
            redis.call('HSET', key, 'guessed', '1')
        end
    end
    redis.call('PEXPIRE', key, ARGV[1])
    found[place] = redis.call('HMGET', key, 'epoch', 'generation')
end
return found";
