use unpod_gateway::simulator::world::{ARCHIVE, SUPPORT};

use super::*;
use crate::call::Page;

/// Moments of a run, by seconds.
struct Clock(Instant);

impl Clock {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn at(&self, seconds: f64) -> Instant {
        self.0 + Duration::from_secs_f64(seconds)
    }

    fn outage(&self, kind: OutageKind, from: f64, to: Option<f64>) -> Outage {
        let (from, to) = (self.at(from), to.map(|to| self.at(to)));
        Outage { kind, from, to }
    }

    /// Sent at 10 s, answered at 11 s.
    fn purge(&self, by: Option<usize>) -> Invalidation {
        Invalidation {
            space: Some(SUPPORT),
            cause: self.at(10.0),
            known: self.at(11.0),
            by,
            is_pending: false,
        }
    }

    fn call(&self, page: u64, at: f64) -> Call {
        Call {
            key: Key {
                space: SUPPORT,
                page,
                size: 20,
            },
            started: self.at(at),
            ended: Some(self.at(at)),
            page: Some(Page {
                body: blake3::hash(b""),
                rows: Vec::new(),
                count: 0,
            }),
        }
    }
}

const REDIS: OutageKind = OutageKind::Redis;
const KILLED: OutageKind = OutageKind::Killed;

#[test]
fn an_invalidation_must_be_heard_in_time() {
    let clock = Clock::new();
    let (by_first, by_anyone) = (clock.purge(Some(0)), clock.purge(None));
    let pending = Invalidation {
        is_pending: true,
        ..by_first
    };
    let none = || vec![Vec::new(), Vec::new()];
    let of = |gateway: usize, outages: &[(OutageKind, f64, Option<f64>)]| {
        let mut all = none();
        all[gateway] = outages
            .iter()
            .map(|(kind, from, to)| clock.outage(*kind, *from, *to))
            .collect();
        all
    };
    let (first, second) = (0, 1);
    let cases = [
        (
            "the gateway that was told, at once",
            by_first,
            first,
            none(),
            Some(11.0),
        ),
        (
            "another that is connected",
            by_first,
            second,
            none(),
            Some(12.0),
        ),
        (
            "an outage before",
            by_first,
            second,
            of(1, &[(REDIS, 1.0, Some(9.0))]),
            Some(12.0),
        ),
        (
            "cut off meanwhile",
            by_first,
            second,
            of(1, &[(REDIS, 9.0, Some(30.0))]),
            Some(31.0),
        ),
        (
            "cut off twice in a row",
            by_first,
            second,
            of(1, &[(REDIS, 9.0, Some(30.0)), (REDIS, 30.5, Some(40.0))]),
            Some(41.0),
        ),
        (
            "still cut off",
            by_first,
            second,
            of(1, &[(REDIS, 9.0, None)]),
            None,
        ),
        (
            "the teller was cut off",
            by_first,
            second,
            of(0, &[(REDIS, 11.5, Some(20.0))]),
            Some(21.0),
        ),
        (
            "the teller was killed, Redis was there",
            by_first,
            second,
            of(0, &[(KILLED, 11.5, Some(14.0))]),
            Some(15.0),
        ),
        (
            "the teller was killed before Redis was back",
            by_first,
            second,
            of(0, &[(REDIS, 9.0, Some(20.0)), (KILLED, 12.0, Some(14.0))]),
            None,
        ),
        (
            "the teller had not told yet when it was killed",
            pending,
            second,
            of(0, &[(KILLED, 11.5, Some(14.0))]),
            None,
        ),
        (
            "a pending one",
            pending,
            second,
            of(0, &[(REDIS, 9.0, Some(20.0))]),
            Some(21.0),
        ),
        (
            "a pending one, where it was sent",
            pending,
            first,
            of(0, &[(REDIS, 9.0, Some(20.0))]),
            Some(11.0),
        ),
        (
            "a restart forgets until it is connected",
            by_first,
            second,
            of(1, &[(KILLED, 20.0, Some(21.0)), (REDIS, 30.0, Some(40.0))]),
            Some(41.0),
        ),
        (
            "a refusal that anyone saw",
            by_anyone,
            second,
            none(),
            Some(12.0),
        ),
        (
            "whoever saw it may have died",
            by_anyone,
            second,
            of(0, &[(KILLED, 11.5, Some(14.0))]),
            None,
        ),
    ];
    for (case, invalidation, gateway, outages, from) in cases {
        let must = |seconds| must_be_heard(&invalidation, gateway, clock.at(seconds), &outages);
        match from {
            None => assert!(!must(1000.0), "{case}"),
            Some(from) => assert_eq!(
                (must(from - 0.01), must(from + 0.01)),
                (false, true),
                "{case}"
            ),
        }
    }
}

#[test]
fn a_minute_slides() {
    let clock = Clock::new();
    let busiest = |starts: &[f64]| busiest_minute(starts.iter().map(|start| clock.at(*start))).0;
    assert_eq!(busiest(&[]), 0);
    assert_eq!(busiest(&[0.0, 30.0, 59.9]), 3);
    assert_eq!(busiest(&[0.0, 30.0, 60.0]), 2);
    assert_eq!(busiest(&[0.0, 50.0, 61.0, 62.0, 109.0]), 4);
}

#[test]
fn a_second_fill_needs_an_excuse() {
    let clock = Clock::new();
    let calls = [
        clock.call(1, 10.0),
        clock.call(2, 10.5),
        clock.call(1, 11.0),
    ];
    let judged = |changes: &[Change], outages: &[Vec<Outage>]| {
        let times = times_between_fills(&calls, changes, outages);
        times
            .into_iter()
            .map(|(after, _)| after)
            .collect::<Vec<_>>()
    };
    let change = |space, at| {
        [Change {
            space,
            at: clock.at(at),
        }]
    };
    let one = [Duration::from_secs(1)];
    assert_eq!(judged(&[], &[]), one);
    assert_eq!(judged(&change(Some(ARCHIVE), 10.5), &[]), one);
    assert_eq!(judged(&change(Some(SUPPORT), 10.5), &[]), []);
    assert_eq!(judged(&change(None, 9.5), &[]), []);
    assert_eq!(judged(&change(None, 8.5), &[]), one);
    let outage = clock.outage(REDIS, 1.0, Some(9.5));
    assert_eq!(judged(&[], &[Vec::new(), vec![outage]]), []);
}

#[test]
fn pages_of_a_generation_make_up_one_list() {
    let key = |page| Key {
        space: SUPPORT,
        page,
        size: 2,
    };
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let mut generations = Generations::default();
    generations.note("g", key(1), 3, &ids(&["c", "b"])).unwrap();
    generations.note("g", key(2), 3, &ids(&["a"])).unwrap();
    generations.note("h", key(1), 4, &ids(&["d", "c"])).unwrap();
    for (page, count, rows) in [
        (1, 4, &["c", "b"][..]),
        (1, 3, &["c"]),
        (1, 3, &["c", "x"]),
        (2, 3, &["b"]),
    ] {
        generations
            .note("g", key(page), count, &ids(rows))
            .unwrap_err();
    }
}

#[test]
fn no_answer_is_excused_where_nobody_could_give_one() {
    let clock = Clock::new();
    let excused = |kind, sent: f64, failed: f64| {
        let outage = clock.outage(kind, 10.0, Some(20.0));
        outage.excuses_no_answer(clock.at(sent), clock.at(failed))
    };
    assert!(excused(KILLED, 9.0, 10.1));
    assert!(!excused(KILLED, 8.0, 9.0));
    assert!(!excused(OutageKind::Stopped, 9.0, 10.1));
    assert!(excused(OutageKind::Stopped, 10.1, 10.2));
    assert!(!excused(REDIS, 11.0, 12.0));
}
