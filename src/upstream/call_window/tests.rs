use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::upstream::Head;

mod replicas;

const SECOND: Duration = Duration::from_secs(1);

/// A window whose clock is set by hand.
struct Bench {
    window: CallWindow,
    quota: u32,
    now: Instant,
}

impl Bench {
    fn new(quota: u32) -> Self {
        let now = Instant::now() + Duration::from_secs(10_000);
        Self {
            window: CallWindow::new(now),
            quota,
            now,
        }
    }

    /// One whose first, cautious minute is over.
    fn settled(quota: u32) -> Self {
        let mut bench = Self::new(quota);
        bench.wait();
        bench.pass(2 * MINUTE);
        bench
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn limit(&self) -> Option<u32> {
        self.window.limit(self.quota, self.now)
    }

    fn wait_for(&mut self, nth: u32) -> Duration {
        let limit = self.limit();
        self.window.wait_for(nth, limit, self.now)
    }

    fn wait(&mut self) -> Duration {
        self.wait_for(1)
    }

    fn begin(&mut self) {
        assert_eq!(self.wait(), Duration::ZERO);
        let limit = self.limit();
        self.window.begin(limit, false, self.now);
    }

    /// A call that is answered at once.
    fn call(&mut self) {
        self.begin();
        self.window.end(self.now);
    }

    /// Calls for `time` as soon as they may be made, each taking `takes`; returns when they were sent, since the beginning.
    fn calls_for(&mut self, time: Duration, takes: Duration) -> Vec<Duration> {
        let (began, mut sent) = (self.now, Vec::new());
        while self.now < began + time {
            match self.wait() {
                wait if wait.is_zero() => {
                    self.begin();
                    sent.push(self.now - began);
                    self.pass(takes);
                    self.window.end(self.now);
                }
                wait => self.pass(wait),
            }
        }
        sent
    }

    fn learn(&mut self, fields: &[(&'static str, &str)]) {
        self.window.learn(&limits(fields), self.now, self.now);
    }

    fn throttled(&mut self, fields: &[(&'static str, &str)]) -> Duration {
        let (quota, now) = (self.quota, self.now);
        self.window.throttled(&limits(fields), quota, now, now);
        self.window.blocked_for(now)
    }

    fn remaining(&mut self) -> u32 {
        let limit = self.limit().expect("there is a limit");
        self.window.remaining(limit, self.now)
    }
}

/// What a header says that is received at 1800000000.
fn limits(fields: &[(&'static str, &str)]) -> CallLimits {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.insert(*name, HeaderValue::from_str(value).unwrap());
    }
    CallLimits::read(&Head {
        headers,
        received: Instant::now(),
        received_unix: 1_800_000_000,
        response_delay: Duration::ZERO,
    })
}

fn seconds(all: &[u64]) -> Vec<Duration> {
    all.iter().copied().map(Duration::from_secs).collect()
}

// The contract's examples: max(Q/6, min(3, Q - 1)) at once, then one each 60/Q seconds.
#[test]
fn a_burst_then_an_even_pace() {
    for (quota, expected) in [
        (60, seconds(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3])),
        (5, seconds(&[0, 0, 0, 12, 24, 60, 72, 84, 96])),
        (3, seconds(&[0, 0, 20, 60, 80, 100])),
        (2, seconds(&[0, 30, 60, 90])),
        (1, seconds(&[0, 60, 120])),
    ] {
        let mut bench = Bench::settled(quota);
        let sent = bench.calls_for(3 * MINUTE, Duration::ZERO);
        assert_eq!(sent[..expected.len()], expected, "quota {quota}");
    }
}

#[test]
fn a_process_that_knows_nothing_starts_empty_and_has_half_the_rate_for_a_minute() {
    for (quota, expected) in [(60, (1..=30).map(|n| 2 * n).collect()), (5, vec![24, 48])] {
        let mut bench = Bench::new(quota);
        let sent = bench.calls_for(MINUTE + SECOND, Duration::ZERO);
        let sent: Vec<_> = sent.into_iter().filter(|at| *at <= MINUTE).collect();
        assert_eq!(sent, seconds(&expected), "quota {quota}");
    }
}

#[test]
fn an_answer_that_tells_what_is_left_ends_the_caution() {
    let mut bench = Bench::new(60);
    assert_eq!(bench.wait(), 2 * SECOND);
    bench.learn(&[("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "60")]);
    assert_eq!(bench.remaining(), 60);
}

#[test]
fn a_call_counts_from_when_it_is_sent_until_a_minute_after_its_end() {
    let mut bench = Bench::settled(1);
    bench.begin();
    bench.pass(MINUTE);
    assert_eq!(bench.wait(), MINUTE, "it is still under way");
    bench.window.end(bench.now);
    bench.pass(MINUTE - SECOND);
    assert_eq!(bench.wait(), SECOND);
    bench.pass(SECOND);
    bench.call();
}

#[test]
fn nothing_is_saved_up_while_the_minute_is_full() {
    let mut bench = Bench::settled(60);
    let sent = bench.calls_for(MINUTE, 5 * SECOND);
    assert_eq!(sent.len(), 12);
    let mut bench = Bench::settled(6);
    // Three at once, one at 10, 20 and 30 s: full until the first three end at 60 s, and one at a time then.
    let sent = bench.calls_for(2 * MINUTE, Duration::ZERO);
    let expected = seconds(&[0, 0, 0, 10, 20, 30, 60, 70, 80, 90, 100, 110]);
    assert_eq!(sent, expected);
}

#[test]
fn the_wait_of_a_later_call_is_that_of_those_before_it() {
    let mut bench = Bench::settled(60);
    for (nth, wait) in [(1, 0), (10, 0), (11, 1), (12, 2), (60, 50), (61, 60)] {
        assert_eq!(bench.wait_for(nth), Duration::from_secs(wait), "{nth}");
    }
    let mut bench = Bench::settled(5);
    (0..3).for_each(|_| bench.call());
    for (nth, wait) in [(1, 12), (2, 24), (3, 60), (4, 72), (5, 84)] {
        assert_eq!(bench.wait_for(nth), Duration::from_secs(wait), "{nth}");
    }
}

#[test]
fn without_a_limit_nothing_is_held_back() {
    let mut bench = Bench::new(0);
    (0..1000).for_each(|_| bench.call());
    assert_eq!(bench.limit(), None);
    assert_eq!(bench.wait_for(1000), Duration::ZERO);
}

#[test]
fn a_limit_that_is_learned_counts_the_calls_before_it() {
    let mut bench = Bench::new(0);
    (0..30).for_each(|_| bench.call());
    bench.learn(&[("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "30")]);
    assert_eq!(bench.remaining(), 30);
    // What was made at once was a burst.
    assert_eq!(bench.wait(), SECOND);
    let sent = bench.calls_for(MINUTE, Duration::ZERO);
    assert_eq!(sent.len(), 30);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut bench = Bench::new(0);
    (0..70_000).for_each(|_| bench.call());
    assert_eq!(bench.window.ended.len(), MOST_REMEMBERED);
    bench.quota = 60;
    assert_eq!(bench.remaining(), 0);
    bench.pass(MINUTE);
    assert_eq!(bench.remaining(), 60);
}

#[test]
fn a_learned_limit_is_forgotten_after_ten_minutes_without_it() {
    for (quota, after) in [(0, None), (60, Some(60)), (3, Some(3))] {
        let mut bench = Bench::settled(quota);
        bench.learn(&[("x-ratelimit-limit", "5")]);
        let learned = if quota == 3 { 3 } else { 5 };
        bench.pass(LEARNED_FOR - SECOND);
        assert_eq!(bench.limit(), Some(learned), "the lower counts");
        bench.learn(&[]);
        bench.pass(SECOND);
        assert_eq!(bench.limit(), after);
    }
}

#[test]
fn of_answers_that_overtake_each_other_the_newer_call_counts() {
    let mut bench = Bench::settled(0);
    let (first, second) = (bench.now, bench.now + SECOND);
    bench.pass(2 * SECOND);
    let told = |limit| limits(&[("x-ratelimit-limit", limit), ("x-ratelimit-remaining", "1")]);
    bench.window.learn(&told("60"), second, bench.now);
    bench.window.learn(&told("5"), first, bench.now);
    assert_eq!(bench.limit(), Some(60));
    assert_eq!(bench.remaining(), 1);
}

#[test]
fn what_the_upstream_says_is_learned_whatever_the_clocks() {
    for skew in [-60, 0, 60] {
        let mut bench = Bench::new(0);
        let upstream_now = 1_800_000_000 + skew;
        let date = httpdate::fmt_http_date(
            std::time::UNIX_EPOCH + Duration::from_secs(upstream_now.try_into().unwrap()),
        );
        let reset = (upstream_now + 20).to_string();
        bench.learn(&[
            ("date", &date),
            ("x-ratelimit-limit", "5"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", &reset),
        ]);
        assert_eq!(bench.limit(), Some(5));
        assert_eq!(bench.wait(), 20 * SECOND, "skew {skew}");
    }
}

#[test]
fn calls_of_others_count_until_the_reset() {
    let mut bench = Bench::settled(10);
    bench.learn(&[
        ("x-ratelimit-limit", "10"),
        ("x-ratelimit-remaining", "3"),
        ("x-ratelimit-reset", "1800000030"),
    ]);
    assert_eq!(bench.remaining(), 3);
    (0..3).for_each(|_| bench.call());
    assert_eq!(bench.wait(), 30 * SECOND);
    bench.pass(30 * SECOND);
    assert_eq!(bench.remaining(), 7);
}

#[test]
fn a_throttle_blocks_for_as_long_as_it_says() {
    for (fields, seconds) in [
        (&[("retry-after", "7")][..], 7),
        (&[("x-ratelimit-reset", "7")], 7),
        (&[("x-ratelimit-reset", "1800000007")], 7),
        (&[("x-ratelimit-reset", "1800000007000")], 7),
        (&[("retry-after", "7"), ("x-ratelimit-reset", "50")], 7),
        (&[("retry-after", "0"), ("x-ratelimit-reset", "7")], 7),
        // Longer than a minute, and never longer than is believed.
        (&[("retry-after", "90")], 90),
        (&[("x-ratelimit-reset", "90")], 90),
        (&[("retry-after", "999999")], 3600),
        // The upstream's own count says no more than its pause.
        (
            &[
                ("retry-after", "7"),
                ("x-ratelimit-limit", "5"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "50"),
            ],
            7,
        ),
    ] {
        let mut bench = Bench::settled(0);
        let pause = Duration::from_secs(seconds);
        assert_eq!(bench.throttled(fields), pause, "{fields:?}");
        assert_eq!(bench.wait(), pause, "{fields:?}");
        bench.pass(pause);
        bench.begin();
    }
}

#[test]
fn a_throttle_that_names_no_pause_makes_one_that_doubles() {
    for (quota, seconds) in [
        (0, [1, 2, 4, 8, 16, 32, 60, 60, 60]),
        (60, [1, 2, 4, 8, 16, 32, 60, 60, 60]),
        (5, [12, 24, 48, 60, 60, 60, 60, 60, 60]),
        (1, [60; 9]),
    ] {
        let mut bench = Bench::settled(quota);
        for fields in [&[][..], &[("retry-after", "0")], &[("retry-after", "soon")]] {
            for seconds in seconds {
                let pause = bench.throttled(fields);
                assert_eq!(pause, Duration::from_secs(seconds), "quota {quota}");
                // Those that were under way are refused with it, and double nothing.
                let half = pause / 2;
                bench.pass(half);
                assert_eq!(bench.throttled(fields), pause - half, "quota {quota}");
                bench.pass(half);
                assert_eq!(bench.wait(), Duration::ZERO);
            }
            // A good answer begins again.
            bench.learn(&[]);
        }
    }
}

#[test]
fn a_block_is_never_shortened() {
    let mut bench = Bench::settled(0);
    for (asked, blocked) in [("60", 60), ("7", 60), ("90", 90), ("soon", 90)] {
        let told = bench.throttled(&[("retry-after", asked)]);
        assert_eq!(told, Duration::from_secs(blocked), "{asked}");
    }
}

#[test]
fn after_a_throttle_one_call_tries_and_nothing_was_saved_up() {
    for quota in [0, 60] {
        let mut bench = Bench::settled(quota);
        bench.throttled(&[("retry-after", "30")]);
        bench.pass(30 * SECOND);
        bench.begin();
        assert!(!bench.wait().is_zero(), "quota {quota}");
        bench.pass(SECOND / 2);
        bench.window.end(bench.now);
        bench.learn(&[]);
        let next = if quota == 0 {
            Duration::ZERO
        } else {
            SECOND / 2
        };
        assert_eq!(bench.wait(), next, "quota {quota}");
    }
}

#[test]
fn what_was_given_back_was_not_spent() {
    let mut bench = Bench::settled(2);
    for _ in 0..10 {
        bench.begin();
        let limit = bench.limit();
        bench.window.give_back(limit, bench.now);
    }
    assert_eq!(bench.remaining(), 2);
}

#[test]
fn a_reset_beyond_all_numbers_is_a_minute_at_most() {
    let mut bench = Bench::settled(5);
    for reset in [i64::MIN, i64::MAX] {
        bench.learn(&[
            ("x-ratelimit-limit", "5"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", &reset.to_string()),
        ]);
        bench.pass(MINUTE);
        assert_eq!(bench.remaining(), 5, "{reset}");
    }
}

#[test]
fn failing_pages_get_a_tenth_and_one_a_minute() {
    for (calls_a_minute, expected) in [(60, 60), (5, 10)] {
        let (mut share, mut now) = (FailingShare::default(), Instant::now());
        let mut failing = 0;
        // The first ten minutes fill the window.
        for call in 0..20 * calls_a_minute {
            let is_failing = share.wait(now).is_zero();
            share.note(is_failing, now);
            failing += u32::from(is_failing && call >= 10 * calls_a_minute);
            now += MINUTE / calls_a_minute;
        }
        assert!(failing.abs_diff(expected) <= 2, "{failing} of {expected}");
    }
}

#[test]
fn a_new_process_goes_on_where_the_last_one_ended() {
    let mut before = Bench::settled(60);
    (0..7).for_each(|_| before.call());
    before.begin();
    before.learn(&[("x-ratelimit-limit", "30"), ("x-ratelimit-remaining", "20")]);
    let spent = before.window.snapshot(before.now);
    // A burst and two seconds may be missing: with them half of a minute's calls are spent.
    for (missing, left) in [(None, 20), (Some(2 * SECOND), 0)] {
        let mut after = Bench::new(60);
        after.window.resume(&spent, missing, 60, after.now);
        assert_eq!(after.limit(), Some(30));
        assert_eq!(after.remaining(), left, "{missing:?}");
    }
}

#[test]
fn little_is_wasted() {
    for quota in 1..80_u32 {
        let mut bench = Bench::settled(quota);
        let sent = bench.calls_for(10 * MINUTE, Duration::ZERO).len();
        assert!(sent >= 10 * quota as usize, "{sent} of {quota} a minute");
    }
}

#[test]
fn a_limit_that_goes_up_and_down_starts_no_pace_anew() {
    let mut bench = Bench::settled(60);
    let mut made = Vec::new();
    for second in 0..300 {
        // As two replicas ask of which one has heard of another limit.
        bench.quota = [60, 50][second % 2];
        if bench.wait().is_zero() {
            bench.call();
            made.push(second);
        }
        bench.pass(SECOND);
    }
    let last_minute = made.iter().filter(|second| **second >= 240).count();
    assert!((45..=60).contains(&last_minute), "{last_minute}");
}

proptest! {
    #[test]
    fn no_minute_sees_more_calls_than_the_quota(
        quota in 1_u32..80,
        pauses in prop::collection::vec((0_u64..90_000, 0_u64..20_000), 1..20),
    ) {
        let mut bench = Bench::new(quota);
        let (began, mut made) = (bench.now, Vec::new());
        for (pause, takes) in pauses {
            bench.pass(Duration::from_millis(pause));
            while bench.wait().is_zero() && made.len() < 150 {
                bench.begin();
                made.push((bench.now - began, Duration::from_millis(takes)));
                bench.pass(Duration::from_millis(takes));
                bench.window.end(bench.now);
            }
        }
        // At any moment, calls under way and those that ended within the minute.
        for (at, _) in &made {
            let counted = made.iter().filter(|(sent, takes)| sent <= at && *at < *sent + *takes + MINUTE);
            prop_assert!(counted.count() <= quota as usize);
        }
    }

    #[test]
    fn after_a_crash_no_minute_sees_more_calls_than_the_quota(
        quota in 1_u32..80,
        before in prop::collection::vec(0_u64..20_000, 0..40),
        after_it_was_written in prop::collection::vec(0_u64..500, 0..40),
        restart in 0_u64..30_000,
    ) {
        const MISSING: Duration = Duration::from_secs(4);
        let mut bench = Bench::settled(quota);
        let (began, mut made) = (bench.now, Vec::new());
        let mut spend = |bench: &mut Bench, pauses: Vec<u64>, until: Option<Instant>| {
            for pause in pauses {
                bench.pass(Duration::from_millis(pause));
                if bench.wait().is_zero() && until.is_none_or(|until| bench.now <= until) {
                    bench.call();
                    made.push(bench.now - began);
                }
            }
        };
        spend(&mut bench, before, None);
        let (mut spent, written) = (bench.window.snapshot(bench.now), bench.now);
        spend(&mut bench, after_it_was_written, Some(written + MISSING));

        let mut next = Bench::new(quota);
        next.now = bench.now + Duration::from_millis(restart);
        next.window = CallWindow::new(next.now);
        for ago in &mut spent.ago {
            *ago = (*ago + (next.now - written)).saturating_sub(MISSING);
        }
        next.window.resume(&spent, Some(MISSING), quota, next.now);
        let since = next.now - began;
        let sent = next.calls_for(2 * MINUTE, Duration::ZERO);
        made.extend(sent.into_iter().map(|at| since + at));
        for at in &made {
            let counted = made.iter().filter(|sent| *sent <= at && *at < **sent + MINUTE);
            prop_assert!(counted.count() <= quota as usize);
        }
    }

}
