//! When which range is read: pure functions of what is watched and of the quota.

use std::time::Duration;

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
/// No range is read more often.
pub(super) const SHORTEST_INTERVAL: Duration = Duration::from_secs(10);

/// How often each range is read: so that all `ranges` of a credential take no more than `share` of its `quota` of calls a minute.
pub(super) fn interval(ranges: usize, quota: Option<u32>, share: f64) -> Duration {
    let Some(quota) = quota else {
        return SHORTEST_INTERVAL;
    };
    let calls_a_minute = f64::from(quota.max(1)) * share;
    let ranges = f64::from(u32::try_from(ranges).unwrap_or(u32::MAX));
    MINUTE
        .mul_f64(ranges / calls_a_minute)
        .max(SHORTEST_INTERVAL)
}

/// The range that is read next, and when: the one that was read longest ago, those never read first.
pub(super) fn next_read(
    ranges: impl IntoIterator<Item = (u64, Option<Instant>)>,
    interval: Duration,
    now: Instant,
) -> Option<(u64, Instant)> {
    let next = ranges
        .into_iter()
        .min_by_key(|(range, read)| (*read, *range));
    next.map(|(range, read)| (range, read.map_or(now, |read| read + interval)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranges_of_a_credential_take_their_share_of_the_quota() {
        for (ranges, quota, share, seconds) in [
            (1, None, 0.5, 10),
            (400, None, 0.5, 10),
            (1, Some(60), 0.5, 10),
            (5, Some(60), 0.5, 10),
            (6, Some(60), 0.5, 12),
            (1, Some(5), 0.5, 24),
            (10, Some(5), 0.5, 240),
            (10, Some(5), 0.25, 480),
            (1, Some(0), 1.0, 60),
        ] {
            let interval = interval(ranges, quota, share);
            assert_eq!(interval.as_secs(), seconds, "{ranges} {quota:?} {share}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_range_that_was_read_longest_ago_is_next() {
        let start = Instant::now();
        let interval = Duration::from_secs(20);
        let second = Duration::from_secs(1);
        let now = start + 30 * second;
        let at = |seconds: u32| Some(start + seconds * second);
        assert_eq!(next_read([], interval, now), None);
        assert_eq!(
            next_read([(0, at(5)), (1, at(4)), (7, at(6))], interval, now),
            Some((1, start + 24 * second))
        );
        assert_eq!(
            next_read([(0, at(15)), (3, None)], interval, now),
            Some((3, now))
        );
        assert_eq!(
            next_read([(0, at(5)), (3, None)], interval, now),
            Some((3, now)),
            "however long the others have waited"
        );
        assert_eq!(
            next_read([(2, at(15)), (0, at(15))], interval, now),
            Some((0, start + 35 * second))
        );
    }
}
