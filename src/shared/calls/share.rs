//! What replicas may spend that Redis does not count, and what the others leave to them: `docs/quota.md`.

use std::time::Duration;

use crate::shared::redis_connection::MINUTE;

/// How much of its minute a member leaves unused at either end: clocks differ.
const TURN_MARGIN: Duration = Duration::from_secs(5);

/// What each of so many replicas may spend of `quota` without the others: a part of it, or half of it in its turn.
pub(super) fn share(quota: u32, replicas: u32) -> u32 {
    match quota / replicas {
        0 => (quota / 2).max(1),
        share => share,
    }
}

/// What `absent` of so many replicas may be spending without the others.
pub(super) fn reserved(quota: u32, absent: u32, replicas: u32) -> u32 {
    // No minute sees more than two turns.
    let spending = if quota < replicas {
        absent.min(2)
    } else {
        absent
    };
    spending.saturating_mul(share(quota, replicas))
}

/// How long it takes at `unix`, the time since 1970, until the turn of the member with this index: one minute after the other belongs to
/// the next one. With a quota of one, every other minute is nobody's.
pub(super) fn turn_after(index: u32, replicas: u32, quota: u32, unix: Duration) -> Duration {
    let step = if quota > 1 { 1 } else { 2 };
    let (turn, round) = (u64::from(index * step), u64::from(replicas * step));
    let (minute, into) = (
        unix.as_secs() / 60,
        Duration::from_secs(unix.as_secs() % 60),
    );
    let minutes = match (turn + round - minute % round) % round {
        0 if into < MINUTE - TURN_MARGIN => 0,
        0 => round,
        minutes => minutes,
    };
    let begins = Duration::from_secs(60 * minutes) + TURN_MARGIN;
    begins.saturating_sub(into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_redis_gone_replicas_spend_no_more_than_the_quota_together() {
        for (quota, replicas, expected) in [
            (60, 1, 60),
            (60, 4, 15),
            (5, 3, 1),
            // In turns: any minute sees two at most.
            (5, 10, 2),
            (1, 2, 1),
        ] {
            assert_eq!(share(quota, replicas), expected, "{quota} {replicas}");
            for absent in 0..=replicas {
                let left = quota.saturating_sub(reserved(quota, absent, replicas));
                assert!(quota >= replicas || absent == 0 || left < quota);
                assert!(left >= quota / replicas * (replicas - absent));
            }
        }
    }

    #[test]
    fn members_take_turns_by_minute() {
        for (index, replicas, quota, unix, expected) in [
            (0, 3, 2, 0, 5),
            (0, 3, 2, 5, 0),
            (0, 3, 2, 54, 0),
            // Too near to its end: the next round.
            (0, 3, 2, 55, 3 * 60 - 50),
            (1, 3, 2, 5, 60),
            (2, 3, 2, 61, 64),
            (1, 3, 2, 3 * 60 + 70, 0),
            (0, 1, 1, 30, 0),
            (1, 2, 1, 60, 65),
            (1, 2, 1, 130, 0),
        ] {
            let unix = Duration::from_secs(unix);
            let wait = turn_after(index, replicas, quota, unix);
            assert_eq!(
                wait.as_secs(),
                expected,
                "{index} {replicas} {quota} {unix:?}"
            );
        }
    }

    #[test]
    fn no_minute_sees_more_turns_than_the_quota_bears() {
        for (quota, replicas) in [(1, 2), (1, 5), (2, 3), (5, 10)] {
            let turns = |second| {
                (0..replicas)
                    .filter(|index| {
                        turn_after(*index, replicas, quota, Duration::from_secs(second)).is_zero()
                    })
                    .collect::<Vec<_>>()
            };
            for second in 0..u64::from(replicas) * 300 {
                let mut seen: Vec<_> = (second..second + 60).flat_map(turns).collect();
                seen.sort_unstable();
                seen.dedup();
                let most = u32::try_from(seen.len()).unwrap() * share(quota, replicas);
                assert!(most <= quota, "{quota} of {replicas} at {second}");
            }
        }
    }
}
