//! Which replicas share this Redis, as the last heartbeat saw them.
//!
//! A member has a place from its first heartbeat until it leaves. One that vanishes keeps it for a day: it may have lost its connection
//! alone and go on with its share of the quota. Once as many as `cache.redis.replicas` have a place, a process that starts later takes
//! the place of one that vanished before.

use std::time::Duration;

use redis::{Script, ScriptInvocation};

use super::{MEMBER_FOR, RedisConnection, Unavailable, ms};
use crate::{shared::Nonce, telemetry::metrics::RedisOperation};

/// How long a member that vanished keeps its place.
const PLACE_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// `KEYS`: members. `ARGV`: this replica, for how long a member is there, and has a place, in milliseconds, `replicas`, since when this
/// replica has been here, or 0 once it has taken a place; then each member known here and its last heartbeat, for a Redis that lost them.
/// Answers the time, whether it took a place, and all members by their last heartbeat.
pub(super) const HEARTBEAT: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    for at = 6, #ARGV, 2 do
        redis.pcall('ZADD', KEYS[1], 'NX', ARGV[at + 1], ARGV[at])
    end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
-- In a full Redis nobody is added.
local added = redis.pcall('ZADD', KEYS[1], now, ARGV[1])
if type(added) == 'table' and added.err and not string.find(added.err, 'OOM', 1, true) then
    return added
end
local took = 0
if redis.call('ZCARD', KEYS[1]) > tonumber(ARGV[4]) then
    local before = math.min(tonumber(ARGV[5]), now - ARGV[2])
    local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. before, 'LIMIT', 0, 1)
    if gone[1] then
        took = redis.call('ZREM', KEYS[1], gone[1])
    end
end
return {now, took, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')}";

/// `KEYS`: members. `ARGV`: this replica.
const LEAVE: &str = r"
return redis.call('ZREM', KEYS[1], ARGV[1])";

/// The time in Unix milliseconds, whether a place was taken, and all members by their last heartbeat.
pub(super) type Beat = (i64, bool, Vec<(Nonce, i64)>);

/// The members as this replica remembers them.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// When this replica had its first heartbeat.
    since: Option<i64>,
    took_a_place: bool,
    members: Vec<(Nonce, i64)>,
    last: Members,
}

/// How many replicas share a Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Those that have a place, this one among them; 0 before the first heartbeat.
    pub places: u32,
    /// Those of them that vanished.
    pub absent: u32,
    /// This one's place, in the order of their names.
    pub index: u32,
}

impl Members {
    /// Those that are connected.
    #[must_use]
    pub fn present(self) -> u32 {
        self.places - self.absent
    }
}

impl RedisConnection {
    /// The members at the last heartbeat, also while there is no connection.
    #[must_use]
    pub fn members(&self) -> Members {
        self.seen.lock().last
    }

    pub(super) fn heartbeat<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let seen = self.seen.lock();
        let mut beat = script.key(self.members_key());
        beat.arg(self.replica)
            .arg(ms(MEMBER_FOR))
            .arg(ms(PLACE_FOR))
            .arg(self.replicas())
            .arg(seen.since.filter(|_| !seen.took_a_place).unwrap_or(0));
        for (member, last) in &seen.members {
            beat.arg(member).arg(last);
        }
        beat
    }

    /// Takes in what a heartbeat answered; returns Redis' time.
    pub(super) fn saw(&self, (now, took, members): Beat) -> i64 {
        let count = |counts: &dyn Fn(&(Nonce, i64)) -> bool| {
            let all = members.iter().filter(|member| counts(member));
            u32::try_from(all.count()).unwrap_or(u32::MAX)
        };
        let gone = now - i64::try_from(ms(MEMBER_FOR)).unwrap_or(i64::MAX);
        let last = Members {
            places: count(&|_| true),
            absent: count(&|(member, last)| *last < gone && *member != self.replica),
            index: count(&|(member, _)| member.0 < self.replica.0),
        };
        self.metrics.shared.members(last.present());
        let mut seen = self.seen.lock();
        seen.since.get_or_insert(now);
        seen.took_a_place |= took;
        seen.members = members;
        seen.last = last;
        now
    }

    /// Gives up this replica's place: it is shut down.
    pub(super) async fn leave(&self) {
        let script = Script::new(LEAVE);
        let mut leave = script.key(self.members_key());
        leave.arg(self.replica);
        // Without Redis it keeps its place, as one that vanished.
        let _: Result<u8, Unavailable> = self.ask(RedisOperation::Heartbeat, &leave).await;
    }
}
