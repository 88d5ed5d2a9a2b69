use proptest::prelude::*;

use super::*;
use crate::domain::{CredentialId, ListId, ListKey, PageQuery, SpaceKey, SpaceToken};

const SECOND: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(10);
const OPEN_FOR: Duration = Duration::from_secs(5);

/// A breaker and the time of its own.
struct Bench {
    breaker: Breaker,
    now: Instant,
}

impl Bench {
    fn new(failure_ratio: f64, min_calls: u32) -> Self {
        let now = Instant::now();
        let config = CircuitConfig {
            enabled: true,
            failure_ratio,
            min_calls,
            window: WINDOW,
            open_for: OPEN_FOR,
        };
        Self {
            breaker: Breaker::new(&config, now),
            now,
        }
    }

    fn opened() -> Self {
        let mut bench = Self::new(0.5, 1);
        assert_eq!(bench.call(Evidence::Fails), opened_for_space());
        bench
    }

    fn half_open() -> Self {
        let mut bench = Self::opened();
        bench.pass(OPEN_FOR);
        bench
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn admit(&mut self) -> Result<Ticket, Duration> {
        self.admit_for(&page(1))
    }

    fn admit_for(&mut self, page: &PageKey) -> Result<Ticket, Duration> {
        self.breaker.admit(&page.list.space.space, self.now)
    }

    fn record(&mut self, ticket: Ticket, evidence: Evidence) -> Option<Change> {
        self.breaker.record(ticket, evidence, &page(1), self.now)
    }

    fn call(&mut self, evidence: Evidence) -> Option<Change> {
        self.call_for(&page(1), evidence)
    }

    fn call_for(&mut self, page: &PageKey, evidence: Evidence) -> Option<Change> {
        let ticket = self.admit_for(page).unwrap();
        self.breaker.record(ticket, evidence, page, self.now)
    }

    fn state(&self) -> CircuitState {
        self.breaker.state(self.now)
    }

    /// Calls of the window and how many of them failed.
    fn totals(&self) -> (u32, u32) {
        self.breaker.window.totals(self.now)
    }
}

fn page(number: u32) -> PageKey {
    page_of("SPACE", number)
}

fn opened_for_space() -> Option<Change> {
    let space = SpaceToken::new("SPACE").unwrap();
    Some(Change::Opened(Scope::Space(space)))
}

fn page_of(space: &str, number: u32) -> PageKey {
    PageKey {
        list: ListKey {
            space: SpaceKey {
                credential: CredentialId(0),
                space: SpaceToken::new(space).unwrap(),
            },
            id: ListId::TASKS,
        },
        query: PageQuery {
            page: number,
            page_size: 20,
        },
    }
}

#[test]
fn it_opens_at_the_share_of_enough_calls() {
    // `F` fails, `W` works, `-` tells nothing; which call opens it.
    for (failure_ratio, min_calls, calls, opened_by) in [
        (0.5, 10, "FFFFFFFFF", None),
        (0.5, 10, "FFFFFFFFFF", Some(10)),
        (0.5, 10, "WWWWWFFFFF", Some(10)),
        (0.5, 10, "FFFFFWWWWW", None),
        (0.5, 10, "FFFFFWWWWWF", Some(11)),
        (0.5, 10, "WWWWWWFFFFF", None),
        (0.5, 10, "WWWWWWFFFFFF", Some(12)),
        (0.5, 10, "--F-F-F-F-F-F-F-F-F-", None),
        (0.5, 1, "WF", Some(2)),
        (1.0, 2, "WFFFFFFFF", None),
        (1.0, 2, "FF", Some(2)),
        (0.0, 4, "WWWWW", None),
        (0.0, 4, "WWWF", Some(4)),
    ] {
        let mut bench = Bench::new(failure_ratio, min_calls);
        let opened = calls.chars().position(|call| {
            let evidence = match call {
                'F' => Evidence::Fails,
                'W' => Evidence::Works,
                _ => Evidence::Nothing,
            };
            bench.call(evidence).is_some()
        });
        let opened = opened.map(|position| position + 1);
        assert_eq!(opened, opened_by, "{failure_ratio} of {min_calls}: {calls}");
    }
}

#[test]
fn a_share_is_met_exactly() {
    let mut bench = Bench::new(0.07, 100);
    for _ in 0..93 {
        bench.call(Evidence::Works);
    }
    for _ in 0..6 {
        assert_eq!(bench.call(Evidence::Fails), None);
    }
    assert_eq!(bench.call(Evidence::Fails), opened_for_space());
}

#[test]
fn what_lies_a_window_back_does_not_count() {
    for (passed, opens) in [
        (Duration::ZERO, true),
        (WINDOW * 9 / 10 - SECOND / 100, true),
        (WINDOW, false),
        (WINDOW * 7, false),
        (WINDOW * 1_000_000, false),
    ] {
        let mut bench = Bench::new(0.5, 2);
        bench.pass(SECOND * 3);
        bench.call(Evidence::Fails);
        bench.pass(passed);
        let change = bench.call(Evidence::Fails);
        assert_eq!(change.is_some(), opens, "{passed:?}");
    }
}

#[test]
fn failures_in_a_row_open_it_however_rare_calls_are() {
    // As above, `P` fails for its page alone; each call a window after the one before it.
    for (calls, opened_by) in [
        ("FFF", Some(3)),
        ("FF", None),
        ("FFWFF", None),
        ("FFWFFF", Some(6)),
        ("F-F-F", Some(5)),
        ("FPFF", Some(4)),
        ("PPPP", None),
    ] {
        let mut bench = Bench::new(0.5, 10);
        let opened = calls.chars().position(|call| {
            bench.pass(WINDOW);
            let evidence = match call {
                'F' => Evidence::Fails,
                'P' => Evidence::PageFails,
                'W' => Evidence::Works,
                _ => Evidence::Nothing,
            };
            bench.call(evidence).is_some()
        });
        let opened = opened.map(|position| position + 1);
        assert_eq!(opened, opened_by, "{calls}");
    }
    // For one space, or for all.
    for (second, opens_for_all) in [("SPACE", false), ("OTHER", true)] {
        let mut bench = Bench::new(0.5, 10);
        let mut change = None;
        for space in ["SPACE", second, "SPACE"] {
            bench.pass(WINDOW);
            change = bench.call_for(&page_of(space, 1), Evidence::Fails);
        }
        let is_for_all = change == Some(Change::Opened(Scope::All));
        assert_eq!(is_for_all, opens_for_all, "{change:?}");
    }
    // Within a window `min_calls` rules.
    let mut bench = Bench::new(0.5, 10);
    for _ in 0..9 {
        bench.pass(SECOND);
        assert_eq!(bench.call(Evidence::Fails), None);
    }
}

#[test]
fn the_window_slides() {
    let mut bench = Bench::new(1.0, 10);
    for _ in 0..9 {
        assert_eq!(bench.call(Evidence::Fails), None);
        bench.pass(SECOND);
    }
    // One leaves with each second, once the first is a window back.
    for (passed, failures) in [(0, 9), (5, 4), (3, 1), (2, 0)] {
        bench.pass(SECOND * passed);
        assert_eq!(bench.totals(), (failures, failures), "{passed}");
    }
}

#[test]
fn while_open_it_says_how_long_and_lets_nobody_through() {
    let mut bench = Bench::opened();
    assert_eq!(bench.state(), CircuitState::Open);
    for (passed, wait) in [(Duration::ZERO, OPEN_FOR), (SECOND * 2, SECOND * 3)] {
        bench.pass(passed);
        assert_eq!(bench.admit().unwrap_err(), wait);
    }
    bench.pass(SECOND * 3 - Duration::from_nanos(1));
    assert!(bench.admit().is_err());
    bench.pass(Duration::from_nanos(1));
    assert_eq!(bench.state(), CircuitState::HalfOpen);
    assert!(bench.admit().is_ok());
}

#[test]
fn half_open_lets_one_through_at_a_time() {
    let mut bench = Bench::half_open();
    let probe = bench.admit().unwrap();
    assert_eq!(bench.state(), CircuitState::HalfOpen);
    assert_eq!(bench.admit().unwrap_err(), PROBE_UNDER_WAY);
    // A probe that told nothing, or was dropped before it was sent, leaves its position to the next.
    assert_eq!(bench.record(probe, Evidence::Nothing), None);
    let probe = bench.admit().unwrap();
    assert!(bench.admit().is_err());
    assert_eq!(bench.record(probe, Evidence::Works), Some(Change::Closed));
    assert_eq!(bench.state(), CircuitState::Closed);
    let (first, second) = (bench.admit(), bench.admit());
    assert!(first.is_ok() && second.is_ok());
}

#[test]
fn a_failed_probe_opens_it_for_as_long_again() {
    let mut bench = Bench::half_open();
    assert_eq!(bench.call(Evidence::Fails), Some(Change::StaysOpen));
    assert_eq!(bench.admit().unwrap_err(), OPEN_FOR);
    bench.pass(OPEN_FOR);
    assert_eq!(bench.call(Evidence::Works), Some(Change::Closed));
}

#[test]
fn once_closed_what_was_before_is_forgotten() {
    let mut bench = Bench::new(0.5, 10);
    for _ in 0..10 {
        bench.call(Evidence::Fails);
    }
    bench.pass(OPEN_FOR);
    assert_eq!(bench.call(Evidence::Works), Some(Change::Closed));
    for _ in 0..9 {
        assert_eq!(bench.call(Evidence::Fails), None);
    }
    assert_eq!(bench.call(Evidence::Fails), opened_for_space());
}

#[test]
fn what_was_let_through_before_tells_nothing_about_now() {
    for evidence in [Evidence::Works, Evidence::Fails, Evidence::Nothing] {
        let mut bench = Bench::new(0.5, 1);
        let mut late: Vec<Ticket> = (0..3).map(|_| bench.admit().unwrap()).collect();
        let mut late = |bench: &mut Bench| bench.record(late.pop().unwrap(), evidence);
        bench.call(Evidence::Fails);
        assert_eq!(late(&mut bench), None);
        assert_eq!(bench.state(), CircuitState::Open);
        bench.pass(OPEN_FOR);
        let probe = bench.admit().unwrap();
        assert_eq!(late(&mut bench), None);
        assert!(bench.admit().is_err(), "the probe still has its position");
        bench.record(probe, Evidence::Works);
        assert_eq!(late(&mut bench), None);
        assert_eq!(bench.state(), CircuitState::Closed);
        assert_eq!(bench.totals(), (0, 0));
    }
}

#[test]
fn one_bad_page_counts_once_a_window() {
    let mut bench = Bench::new(0.5, 2);
    for _ in 0..100 {
        assert_eq!(bench.call_for(&page(7), Evidence::PageFails), None);
    }
    assert_eq!(bench.totals(), (1, 1));
    bench.pass(WINDOW);
    assert_eq!(bench.call_for(&page(7), Evidence::PageFails), None);
    let other = bench.call_for(&page(8), Evidence::PageFails);
    assert_eq!(other, opened_for_space());
}

#[test]
fn what_fails_for_one_space_opens_it_for_that_space_alone() {
    for evidence in [Evidence::PageFails, Evidence::Fails] {
        let mut bench = Bench::new(0.5, 10);
        for number in 1..10 {
            assert_eq!(bench.call_for(&page(number), evidence), None);
        }
        assert_eq!(bench.call_for(&page(10), evidence), opened_for_space());
        assert!(bench.admit_for(&page(11)).is_err());
        // Others are asked for as ever, work, and fail now and then.
        for number in 0..30 {
            let other = page_of("OTHER", number);
            let evidence = [Evidence::Works, evidence][usize::from(number % 3 == 0)];
            assert_eq!(bench.call_for(&other, evidence), None, "{number}");
        }
        bench.pass(OPEN_FOR);
        assert_eq!(
            bench.call_for(&page(1), Evidence::Works),
            Some(Change::Closed)
        );
    }
}

#[test]
fn what_fails_for_several_spaces_opens_it_for_all() {
    let all = Some(Change::Opened(Scope::All));
    let mut bench = Bench::new(0.5, 10);
    for number in 1..10 {
        assert_eq!(bench.call_for(&page(number), Evidence::Fails), None);
    }
    let other = page_of("OTHER", 1);
    assert_eq!(bench.call_for(&other, Evidence::Fails), all);
    for space in ["SPACE", "OTHER", "THIRD"] {
        assert!(bench.admit_for(&page_of(space, 1)).is_err(), "{space}");
    }

    // Open for one, then another keeps failing too.
    let mut bench = Bench::opened();
    assert_eq!(bench.call_for(&other, Evidence::Fails), all);
    assert!(bench.admit_for(&page_of("THIRD", 1)).is_err());
    bench.pass(OPEN_FOR);
    let third = page_of("THIRD", 1);
    assert_eq!(
        bench.call_for(&third, Evidence::Works),
        Some(Change::Closed)
    );
    assert!(bench.admit().is_ok());
}

#[test]
fn a_probe_of_one_space_holds_up_nobody_else() {
    let mut bench = Bench::half_open();
    let other = page_of("OTHER", 1);
    let probe = bench.admit().unwrap();
    assert!(bench.admit().is_err());
    assert_eq!(bench.call_for(&other, Evidence::Works), None);
    assert_eq!(bench.call_for(&other, Evidence::Nothing), None);
    assert!(bench.admit().is_err(), "the probe still has its position");
    assert_eq!(bench.record(probe, Evidence::Works), Some(Change::Closed));
}

#[test]
fn one_bad_page_does_not_fail_probe_after_probe() {
    let mut bench = Bench::half_open();
    let failed = bench.call_for(&page(7), Evidence::PageFails);
    assert_eq!(failed, Some(Change::StaysOpen));
    bench.pass(OPEN_FOR);
    // Within the window it tells nothing more, so that the next call is the probe.
    assert_eq!(bench.call_for(&page(7), Evidence::PageFails), None);
    let next = bench.call_for(&page(8), Evidence::Works);
    assert_eq!(next, Some(Change::Closed));
}

#[test]
fn bad_pages_are_remembered_up_to_a_bound() {
    let mut bench = Bench::new(0.9, CircuitConfig::MOST_MIN_CALLS);
    let most = CircuitConfig::MOST_MIN_CALLS;
    // One that works for each that fails keeps it closed.
    for number in 1..=2 * most {
        bench.call_for(&page(number), Evidence::PageFails);
        bench.call(Evidence::Works);
    }
    assert_eq!(bench.totals(), (3 * most, most));
    let buckets = bench.breaker.window.buckets.iter();
    let noted: usize = buckets.map(|bucket| bucket.pages.len()).sum();
    assert_eq!(noted, MOST_PAGES);
    // The window makes room again.
    bench.pass(WINDOW);
    bench.call_for(&page(1), Evidence::PageFails);
    assert_eq!(bench.totals(), (1, 1));
}

#[test]
fn the_failures_of_pages_alone_open_it_at_the_largest_min_calls() {
    let most = CircuitConfig::MOST_MIN_CALLS;
    let mut bench = Bench::new(1.0, most);
    for number in 1..most {
        assert_eq!(bench.call_for(&page(number), Evidence::PageFails), None);
    }
    let last = bench.call_for(&page(most), Evidence::PageFails);
    assert_eq!(last, opened_for_space());
}

#[test]
fn no_length_of_time_is_too_long_or_too_short() {
    for length in [Duration::MAX, Duration::from_nanos(1)] {
        let now = Instant::now();
        let config = CircuitConfig {
            enabled: true,
            failure_ratio: 0.5,
            min_calls: 1,
            window: length,
            open_for: length,
        };
        let mut breaker = Breaker::new(&config, now);
        let later = now + WINDOW * 100_000_000;
        let space = page(1).list.space.space;
        let ticket = breaker.admit(&space, later).unwrap();
        let change = breaker.record(ticket, Evidence::PageFails, &page(1), later);
        assert_eq!(change, opened_for_space());
        assert_eq!(breaker.admit(&space, later).unwrap_err(), length);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(Duration),
    Admit,
    /// Ends one of the calls under way.
    End(usize, Evidence),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let evidence = prop_oneof![
        Just(Evidence::Works),
        Just(Evidence::Fails),
        Just(Evidence::PageFails),
        Just(Evidence::Nothing),
    ];
    let step = prop_oneof![
        (0..4000_u64).prop_map(|millis| Step::Pass(Duration::from_millis(millis))),
        Just(Step::Admit),
        (any::<usize>(), evidence).prop_map(|(which, evidence)| Step::End(which, evidence)),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn however_calls_end_there_is_one_probe_at_most_and_a_next_one_in_time(steps in steps()) {
        let mut bench = Bench::new(0.5, 3);
        let mut under_way: Vec<(Ticket, CircuitState)> = Vec::new();
        for step in steps {
            match step {
                Step::Pass(time) => bench.pass(time),
                Step::Admit => {
                    let (state, refused) = {
                        let space = page(1).list.space.space;
                        (bench.state(), bench.breaker.refuses(Some(&space), bench.now))
                    };
                    match bench.admit() {
                        Ok(ticket) => {
                            prop_assert!(refused.is_none() && state != CircuitState::Open);
                            under_way.push((ticket, state));
                        }
                        Err(wait) => {
                            prop_assert_eq!(Some(wait), refused);
                            prop_assert!(!wait.is_zero() && wait <= OPEN_FOR);
                        }
                    }
                }
                Step::End(which, evidence) if !under_way.is_empty() => {
                    let (ticket, _) = under_way.swap_remove(which % under_way.len());
                    bench.record(ticket, evidence);
                }
                Step::End(..) => {}
            }
            let now = bench.breaker.epoch;
            let probes = under_way.iter().filter(|(ticket, state)| {
                ticket.epoch == now && *state == CircuitState::HalfOpen
            });
            prop_assert!(probes.count() <= 1);
        }
        // When all have ended, the next call goes through within `open_for`.
        for (ticket, _) in under_way {
            bench.record(ticket, Evidence::Nothing);
        }
        bench.pass(OPEN_FOR);
        prop_assert!(bench.admit().is_ok());
    }
}
