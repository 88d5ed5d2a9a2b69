//! What is done in Redis in one step each.
//!
//! The state of a space is a hash: `epoch`, which names what is stored of it and is another after it was dropped; and `guessed` where the
//! epoch is that of the first who came, not knowing of another, and gives way to one that a replica knew before Redis forgot it. Each
//! of its lists has a hash of its own: `epoch`, that of its space when it was written, without which it counts for nothing;
//! `generation`, which names what the list looked like; `count` and `first`, by which a move of it is seen. Pages are values of their
//! own, which carry the names under which they were written.

/// `KEYS`: era, state, list, page. `ARGV`: an epoch for a space and a generation for a list that has none, how long both are kept, and how
/// long a list is of which no page was stored: clients choose the ids of runs.
pub(super) const LOOK: &str = r"
if redis.call('HSETNX', KEYS[2], 'epoch', ARGV[1]) == 1 then
    redis.call('HSET', KEYS[2], 'guessed', '1')
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
local era = redis.call('HMGET', KEYS[1], 'birth', 'purge')
local epoch = redis.call('HGET', KEYS[2], 'epoch')
if redis.call('HGET', KEYS[3], 'epoch') ~= epoch then
    redis.call('DEL', KEYS[3])
    redis.call('HSET', KEYS[3], 'epoch', epoch, 'generation', ARGV[2])
end
local list = redis.call('HMGET', KEYS[3], 'generation', 'count', 'first')
redis.call('PEXPIRE', KEYS[3], list[2] and ARGV[3] or ARGV[4])
return {era[1], era[2], epoch, list[1], list[2], list[3], redis.call('GET', KEYS[4])}";

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

/// `KEYS`: era, state, list, page, lock. `ARGV`: birth, purge, epoch; the generation known before and that of the page; count, first;
/// the page and how long it is kept; the lock's token; channel, what is told of a move, and what is told at the end.
///
/// What was dropped meanwhile stays dropped; a list that moved for another replica meanwhile did not move as this one says.
pub(super) const STORE: &str = r"
local era = redis.call('HMGET', KEYS[1], 'birth', 'purge')
local epoch = redis.call('HGET', KEYS[2], 'epoch')
local list = redis.call('HMGET', KEYS[3], 'epoch', 'generation')
if era[1] == ARGV[1] and era[2] == ARGV[2] and epoch == ARGV[3] and list[1] == epoch then
    if list[2] == ARGV[4] and ARGV[4] ~= ARGV[5] then
        redis.call('HDEL', KEYS[3], 'count', 'first')
        redis.call('HSET', KEYS[3], 'generation', ARGV[5])
        redis.call('PUBLISH', ARGV[11], ARGV[12])
        list[2] = ARGV[5]
    end
    if list[2] == ARGV[5] then
        if ARGV[6] ~= '' then
            redis.call('HSET', KEYS[3], 'count', ARGV[6])
        end
        if ARGV[7] ~= '' then
            redis.call('HSET', KEYS[3], 'first', ARGV[7])
        end
        redis.call('SET', KEYS[4], ARGV[8], 'PX', ARGV[9])
        redis.call('PEXPIRE', KEYS[3], math.max(redis.call('PTTL', KEYS[2]), 1))
    end
end
if redis.call('GET', KEYS[5]) == ARGV[10] then
    redis.call('DEL', KEYS[5])
end
redis.call('PUBLISH', ARGV[11], ARGV[13])
list = redis.call('HMGET', KEYS[3], 'epoch', 'generation', 'count', 'first')
if not epoch then
    return false
end
if list[1] ~= epoch then
    return {epoch, ARGV[5], false, false}
end
return list";

/// `KEYS`: state. `ARGV`: another epoch, how long the state is kept, channel, what is told there.
pub(super) const DROP: &str = r"
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
redis.call('HDEL', KEYS[1], 'guessed')
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

/// `KEYS`: state and list, for each list. `ARGV`: how long they are kept, then for each an epoch and a generation, should it have none, and
/// whether those were known before.
pub(super) const STILL: &str = r"
local found = {}
for place = 1, #KEYS / 2 do
    local state_key, list_key = KEYS[2 * place - 1], KEYS[2 * place]
    local epoch, generation, is_known = ARGV[3 * place - 1], ARGV[3 * place], ARGV[3 * place + 1] == '1'
    local state = redis.call('HMGET', state_key, 'epoch', 'guessed')
    if not state[1] or is_known and state[2] then
        redis.call('DEL', state_key)
        redis.call('HSET', state_key, 'epoch', epoch)
        if not is_known then
            redis.call('HSET', state_key, 'guessed', '1')
        end
        state[1] = epoch
    end
    if redis.call('HGET', list_key, 'epoch') ~= state[1] then
        redis.call('DEL', list_key)
        redis.call('HSET', list_key, 'epoch', state[1], 'generation', generation)
    end
    redis.call('PEXPIRE', state_key, ARGV[1])
    redis.call('PEXPIRE', list_key, ARGV[1])
    found[place] = {state[1], redis.call('HGET', list_key, 'generation')}
end
return found";
