-- The calls of a credential, counted for all replicas by the policy of `CallWindow`.
--
-- KEYS: a sorted set: calls by when they end; below zero, negated, the `pace` (when all calls so far would have been made at an even
-- pace), the `limit` that it was counted by, and until when the upstream asked to `hold` calls.
-- ARGV: what to do, and the time in milliseconds, or nothing for Redis' own; then
--   grant      the call, the limit, its lease. Answers 0, or the milliseconds until there may be a call.
--   end        the call. It ended now.
--   give_back  the call. It was never made.
--   report     for how long to hold, then pairs of a call and how long ago it ended, or less than nothing for the rest of its lease.
local calls, minute, week = KEYS[1], 60000, 604800000
local time = redis.call('TIME')
local now = tonumber(ARGV[2]) or time[1] * 1000 + math.floor(time[2] / 1000)

local function known(name)
    local score = redis.call('ZSCORE', calls, name)
    return score and -score
end
local function keep(name, value)
    redis.call('ZADD', calls, -value, name)
end

local function grant(call, limit, lease)
    local burst = math.max(math.floor(limit / 6), math.min(limit - 1, 3), 1)
    local interval = minute / limit
    local slack = interval * (burst - 1)
    local pace = known('pace')
    -- No call lasts longer: these are of before the clock was set back.
    for _, late in ipairs(redis.call('ZRANGEBYSCORE', calls, '(' .. now + lease, '+inf')) do
        redis.call('ZADD', calls, now, late)
    end
    local used = redis.call('ZCOUNT', calls, 0, '+inf')
    local old = redis.call('ZRANGEBYSCORE', calls, 0, now - minute, 'WITHSCORES')
    for at = 2, #old, 2 do
        -- While the minute was full, no more than one call was saved up.
        if pace and used >= limit then
            pace = math.max(pace, old[at] + minute + slack)
        end
        used = used - 1
    end
    redis.call('ZREMRANGEBYSCORE', calls, 0, now - minute)
    if not pace then
        -- Nobody knows what was spent: at most a burst, and the pace until now.
        pace = now + interval * (2 * burst - 1)
    elseif known('limit') ~= limit then
        -- What was spent of the pace stays spent, in calls: replicas may know of different limits.
        local spent = math.max(pace - now, 0) / (minute / (known('limit') or limit))
        pace = now + interval * math.min(spent, burst)
    end
    -- No more is ever spent of it, unless the clock was set back.
    pace = math.min(pace, now + interval * (2 * burst - 1))
    -- Nothing is saved up during a hold.
    pace = math.max(pace, (known('hold') or 0) + slack)
    local wait = pace - slack - now
    if used >= limit then
        local first = redis.call('ZRANGEBYSCORE', calls, 0, now, 'WITHSCORES', 'LIMIT', used - limit, 1)
        wait = math.max(wait, (first[2] or now) + minute - now)
    end
    keep('limit', limit)
    -- Far less than a call: what adding fractions may miss.
    if wait < 0.01 then
        wait = 0
        pace = math.max(pace, now) + interval
        redis.call('ZADD', calls, now + lease, call)
    end
    keep('pace', pace)
    return math.ceil(wait)
end

local answer = 0
if ARGV[1] == 'grant' then
    answer = grant(ARGV[3], tonumber(ARGV[4]), ARGV[5])
elseif ARGV[1] == 'end' then
    redis.call('ZADD', calls, now, ARGV[3])
elseif ARGV[1] == 'give_back' then
    local pace, limit = known('pace'), known('limit')
    if redis.call('ZREM', calls, ARGV[3]) == 1 and pace and limit then
        keep('pace', pace - minute / limit)
    end
else
    if tonumber(ARGV[3]) > 0 then
        keep('hold', math.max(known('hold') or 0, now + ARGV[3]))
    end
    for at = 4, #ARGV, 2 do
        redis.call('ZADD', calls, now - ARGV[at + 1], ARGV[at])
    end
end
redis.call('PEXPIRE', calls, week)
return answer
