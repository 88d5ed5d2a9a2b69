//! How many calls may be made, and when: a sliding minute, a pace within it, and what the upstream itself said.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use self::failing::FailingShare;
pub use self::snapshot::BudgetSnapshot;
use super::pause::CallLimits;

mod failing;
mod snapshot;

pub(super) const MINUTE: Duration = Duration::from_secs(60);
/// For how long a limit that the upstream's header told holds without being told again.
const LEARNED_FOR: Duration = Duration::from_secs(600);
/// The longest that an upstream's `Retry-After` is believed.
const LONGEST_BLOCK: Duration = Duration::from_secs(3600);
/// The shortest pause after a throttle that names none; it doubles while throttles follow each other, up to a minute.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Calls of the last minute that are remembered: no quota is larger.
const MOST_REMEMBERED: usize = 65_536;

/// The calls of the last minute, and what bounds the next.
#[derive(Debug)]
pub(super) struct CallWindow {
    in_flight: u32,
    /// Calls that were ever begun.
    begun: u64,
    /// When each call of the last minute ended, oldest first.
    ended: VecDeque<Instant>,
    /// Calls made with this credential by other programs, and until when they count.
    external_calls: Option<(u32, Instant)>,
    blocked_until: Option<Instant>,
    /// Throttles in a row. After one a single call tries whether it is over.
    throttles: u32,
    learned: Option<Learned>,
    /// The pace, by the generic cell rate algorithm (ITU-T I.371): when all calls so far would have been made at an even pace.
    paced_until: Instant,
    /// The limit that `paced_until` was counted by.
    paced_for: Option<u32>,
    /// Until then the previous process may have made calls that nobody knows of.
    cautious_until: Option<Instant>,
    failing: FailingShare,
}

/// A limit as an answer's header told it.
#[derive(Clone, Copy, Debug)]
struct Learned {
    limit: u32,
    /// When the call was sent whose answer told it: of answers that overtake each other the newer counts.
    sent: Instant,
    told: Instant,
}

/// How many calls may be made at once after a quiet time, of a `limit` a minute.
pub(super) fn burst(limit: u32) -> u32 {
    (limit / 6).max(limit.saturating_sub(1).min(3)).max(1)
}

/// By how much calls may be ahead of an even pace of `limit` a minute.
fn slack(limit: u32) -> Duration {
    MINUTE / limit.max(1) * (burst(limit) - 1)
}

impl CallWindow {
    /// The window of a process that cannot know what the one before it spent.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            in_flight: 0,
            begun: 0,
            ended: VecDeque::new(),
            external_calls: None,
            blocked_until: None,
            throttles: 0,
            learned: None,
            paced_until: now,
            paced_for: None,
            cautious_until: Some(now + MINUTE),
            failing: FailingShare::default(),
        }
    }

    /// Calls allowed a minute, as configured (0: not at all) or as the upstream says.
    pub(super) fn limit(&self, configured: u32, now: Instant) -> Option<u32> {
        let learned = self.learned.as_ref();
        let learned = learned.filter(|learned| now - learned.told < LEARNED_FOR);
        let learned = learned.map(|learned| learned.limit);
        match (configured, learned) {
            (0, learned) => learned,
            (configured, None) => Some(configured),
            (configured, Some(learned)) => Some(learned.min(configured)),
        }
    }

    /// Calls left in this minute of `limit`.
    pub(super) fn remaining(&mut self, limit: u32, now: Instant) -> u32 {
        self.forget(limit, now);
        if !self.blocked_for(now).is_zero() {
            return 0;
        }
        let allowed = match self.is_cautious(now) {
            true => limit.div_ceil(2),
            false => limit,
        };
        allowed.saturating_sub(self.used())
    }

    /// How long until the `nth` call from now may be sent, if the ones before it are sent as soon as they may; zero: now.
    ///
    /// `limit` is as [`CallWindow::limit`] says; `None`: no limit is known.
    pub(super) fn wait_for(&mut self, nth: u32, limit: Option<u32>, now: Instant) -> Duration {
        let blocked = self.blocked_for(now);
        let blocked = match self.throttles {
            0 => blocked,
            // The end of the one that tries tells.
            _ if self.in_flight > 0 => blocked.max(SHORTEST_PAUSE),
            _ => blocked,
        };
        let Some(limit) = limit.filter(|limit| *limit > 0) else {
            return match limit {
                Some(_) => blocked.max(MINUTE),
                None => blocked,
            };
        };
        self.forget(limit, now);
        self.keep_pace_for(limit, now);
        let room = self.wait_for_room(nth, limit, now);
        blocked.max(room).max(self.wait_for_pace(nth, limit, now))
    }

    /// How long the sliding minute is full for the `nth` call from now.
    fn wait_for_room(&self, nth: u32, limit: u32, now: Instant) -> Duration {
        let over = self.used().saturating_add(nth).saturating_sub(limit);
        let Some(blocking) = over.checked_sub(1) else {
            return Duration::ZERO;
        };
        let until = |index: u32| {
            let ended = self.ended.get(usize::try_from(index).unwrap_or(usize::MAX));
            // Those in flight end at the earliest now.
            ended.map_or(MINUTE, |ended| {
                (*ended + MINUTE).saturating_duration_since(now)
            })
        };
        // Those before it follow the first at the pace.
        let of_own = until(blocking).max(until(0) + self.interval(limit, now) * blocking);
        match self.external_calls {
            // External calls count for the whole minute: nobody knows when in it they were made.
            Some((_, until)) => of_own.min(until.saturating_duration_since(now)),
            None => of_own,
        }
    }

    fn wait_for_pace(&self, nth: u32, limit: u32, now: Instant) -> Duration {
        let interval = self.interval(limit, now);
        let at = self.paced_until.max(now) + interval * nth.saturating_sub(1);
        (at.checked_sub(slack(limit)).unwrap_or(now)).saturating_duration_since(now)
    }

    fn interval(&self, limit: u32, now: Instant) -> Duration {
        match self.is_cautious(now) {
            true => 2 * MINUTE / limit,
            false => MINUTE / limit,
        }
    }

    /// Counts the pace anew where the limit is another.
    fn keep_pace_for(&mut self, limit: u32, now: Instant) {
        if self.paced_for == Some(limit) {
            return;
        }
        let used = match self.paced_for.replace(limit) {
            // What was spent of the pace stays spent, in calls.
            Some(before) => {
                let spent = self.paced_until.saturating_duration_since(now);
                let spent = spent.div_duration_f64(MINUTE / before.max(1));
                spent.min(f64::from(burst(limit)))
            }
            // Nobody knows what was spent: as much as may have been.
            None if self.is_cautious(now) && self.own() == 0 => f64::from(burst(limit) + 1),
            None => f64::from(self.own().min(burst(limit))),
        };
        self.paced_until = now + (MINUTE / limit).mul_f64(used);
        self.save_nothing_while_blocked();
    }

    /// Leaves one call for the end of a block; the others follow at the pace.
    fn save_nothing_while_blocked(&mut self) {
        if let (Some(limit), Some(end)) = (self.paced_for, self.blocked_until) {
            self.paced_until = self.paced_until.max(end + slack(limit));
        }
    }

    /// Notes that it is known what was spent.
    pub(super) fn end_caution(&mut self) {
        if self.cautious_until.take().is_some() {
            self.paced_for = None;
        }
    }

    fn is_cautious(&self, now: Instant) -> bool {
        self.cautious_until.is_some_and(|until| until > now)
    }

    /// Notes that a call is sent; [`CallWindow::wait_for`] allowed it.
    pub(super) fn begin(&mut self, limit: Option<u32>, is_failing: bool, now: Instant) {
        self.in_flight += 1;
        self.begun += 1;
        self.failing.note(is_failing, now);
        if let Some(limit) = limit.filter(|limit| *limit > 0) {
            self.paced_until = self.paced_until.max(now) + self.interval(limit, now);
        }
    }

    /// Notes that a call ended: it counts for a minute from now.
    pub(super) fn end(&mut self, now: Instant) {
        // While it counts: a minute that it filled saves nothing up.
        self.forget(self.paced_for.unwrap_or(u32::MAX), now);
        self.in_flight -= 1;
        if self.ended.len() == MOST_REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(now);
    }

    /// Notes that a call which was begun was never sent.
    pub(super) fn give_back(&mut self, limit: Option<u32>, now: Instant) {
        self.in_flight -= 1;
        if let Some(limit) = limit.filter(|limit| *limit > 0) {
            let interval = self.interval(limit, now);
            self.paced_until = self.paced_until.checked_sub(interval).unwrap_or(now);
        }
    }

    /// How long until a failing page may be asked for although others wait.
    pub(super) fn wait_to_fail(&mut self, now: Instant) -> Duration {
        self.failing.wait(now)
    }

    /// Takes in what the header of an answer says that was asked for at `sent` and received at `now`.
    pub(super) fn learn(&mut self, limits: &CallLimits, sent: Instant, now: Instant) {
        if self.blocked_for(now).is_zero() {
            self.throttles = 0;
        }
        let reset = limits.reset_in.unwrap_or(MINUTE).min(MINUTE);
        self.note_limits(limits, now + reset, sent, now);
        if limits.is_spent() {
            self.block(reset, now);
        }
    }

    /// Takes in a throttle. Where it names no time, or one that has passed, there is a pause all the same, and a longer one each time.
    pub(super) fn throttled(
        &mut self,
        limits: &CallLimits,
        configured: u32,
        sent: Instant,
        now: Instant,
    ) {
        let asked = limits.pause();
        let until = now + asked.unwrap_or(MINUTE).min(MINUTE);
        self.note_limits(limits, until, sent, now);
        // Calls that were under way together are refused together: that is one throttle.
        let is_another = self.blocked_for(now).is_zero();
        let limit = self.limit(configured, now);
        let pause = asked.unwrap_or_else(|| match is_another {
            true => self.pause_of_its_own(limit),
            false => Duration::ZERO,
        });
        self.throttles = self.throttles.saturating_add(u32::from(is_another));
        self.block(pause, now);
    }

    fn pause_of_its_own(&self, limit: Option<u32>) -> Duration {
        let share = limit.map_or(Duration::ZERO, |limit| MINUTE / limit.max(1));
        (share.max(SHORTEST_PAUSE) * (1 << self.throttles.min(6))).min(MINUTE)
    }

    /// Makes no call for `pause`.
    fn block(&mut self, pause: Duration, now: Instant) {
        let until = now + pause.min(LONGEST_BLOCK);
        if self.blocked_until.is_none_or(|blocked| blocked < until) {
            self.blocked_until = Some(until);
        }
        self.save_nothing_while_blocked();
    }

    /// How long no call may be made because the upstream asked for it.
    pub(super) fn blocked_for(&self, now: Instant) -> Duration {
        let until = self.blocked_until.unwrap_or(now);
        until.saturating_duration_since(now)
    }

    /// Takes in what the upstream says of its count; external calls count until `until`.
    fn note_limits(&mut self, limits: &CallLimits, until: Instant, sent: Instant, now: Instant) {
        let is_newer = self.learned.is_none_or(|known| known.sent <= sent);
        let Some(limit) = limits.limit.filter(|limit| *limit > 0 && is_newer) else {
            return;
        };
        self.learned = Some(Learned {
            limit,
            sent,
            told: now,
        });
        let Some(remaining) = limits.remaining else {
            return;
        };
        self.end_caution();
        self.forget(limit, now);
        let spent = limit.saturating_sub(remaining);
        // This very call is still in flight, and in the upstream's count.
        let external = spent.saturating_sub(self.own());
        self.external_calls = (external > 0).then_some((external, until));
    }

    /// Drops what no longer counts, by `limit`.
    fn forget(&mut self, limit: u32, now: Instant) {
        if self.external_calls.is_some_and(|(_, until)| until <= now) {
            self.external_calls = None;
        }
        while let Some(ended) = self.ended.front().copied()
            && now - ended >= MINUTE
        {
            // While the minute was full, no more than one call was saved up.
            if self.used() >= limit {
                self.paced_until = self.paced_until.max(ended + MINUTE + slack(limit));
            }
            self.ended.pop_front();
        }
    }

    fn own(&self) -> u32 {
        let ended = u32::try_from(self.ended.len()).unwrap_or(u32::MAX);
        ended.saturating_add(self.in_flight)
    }

    /// Calls that count now: only after [`CallWindow::forget`].
    fn used(&self) -> u32 {
        let external = self.external_calls.map_or(0, |(count, _)| count);
        self.own().saturating_add(external)
    }

    /// How many calls were begun so far, and are under way.
    pub(super) fn activity(&self) -> (u64, u32) {
        (self.begun, self.in_flight)
    }
}

#[cfg(test)]
mod tests;
