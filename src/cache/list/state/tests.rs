use proptest::prelude::*;

use super::*;

const LIFETIME: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

/// A page as it came so many seconds into the test.
#[derive(Clone, Copy, Debug)]
struct Came {
    at: u32,
    is_overtaken: bool,
    page: Observation<'static>,
}

fn page(number: u32, count: u64, first_row: Option<&'static str>) -> Observation<'static> {
    Observation {
        query: PageQuery {
            page: number,
            page_size: 20,
        },
        count,
        first_row,
        has_rows_of_before: false,
        doubled: None,
    }
}

/// Page 1.
fn first(at: u32, count: u64, row: &'static str) -> Came {
    let page = page(1, count, Some(row));
    Came {
        page,
        ..other(at, count)
    }
}

/// A page beyond the first.
fn other(at: u32, count: u64) -> Came {
    Came {
        at,
        is_overtaken: false,
        page: page(2, count, Some("c")),
    }
}

fn overtaken(came: Came) -> Came {
    Came {
        is_overtaken: true,
        ..came
    }
}

fn with_rows_of_before(came: Came) -> Came {
    let page = Observation {
        has_rows_of_before: true,
        ..came.page
    };
    Came { page, ..came }
}

fn doubling(came: Came, row: &'static str) -> Came {
    let page = Observation {
        doubled: Some(row),
        ..came.page
    };
    Came { page, ..came }
}

fn see(all: &[Came]) -> (ListState, Vec<Verdict>) {
    let (mut state, start) = (ListState::default(), Instant::now());
    let mut verdicts = Vec::new();
    for came in all {
        let now = start + came.at * SECOND;
        verdicts.push(state.observe(&came.page, came.is_overtaken, LIFETIME, now));
    }
    (state, verdicts)
}

/// What the last of these pages comes to.
fn last(all: &[Came]) -> Verdict {
    *see(all).1.last().unwrap()
}

const STAYS: Verdict = Verdict {
    moved: false,
    is_current: true,
};
const MOVES: Verdict = Verdict {
    moved: true,
    is_current: true,
};
/// Of a state that is not in force.
const ANOTHER: Verdict = Verdict {
    moved: false,
    is_current: false,
};
const MOVES_WITHOUT_IT: Verdict = Verdict {
    moved: true,
    is_current: false,
};

#[test]
fn what_a_page_comes_to_after_those_before_it() {
    let table: &[(&[Came], Verdict)] = &[
        (&[first(0, 5, "a"), first(1, 5, "a")], STAYS),
        (&[first(0, 5, "a"), first(1, 6, "n")], MOVES),
        (&[first(0, 5, "a"), other(1, 6)], MOVES),
        (&[first(0, 5, "a"), first(1, 4, "b")], MOVES),
        (&[first(0, 5, "a"), first(1, 5, "n")], MOVES),
        // Only page 1 tells the first row.
        (&[first(0, 5, "a"), other(1, 5)], STAYS),
        (&[other(0, 5), first(1, 5, "a")], STAYS),
        // A newcomer below the head.
        (&[first(0, 5, "a"), first(1, 6, "a")], MOVES),
        // The first page of the new state tells its first row, and moves nothing more.
        (&[first(0, 5, "a"), other(1, 6), first(2, 6, "n")], STAYS),
        (
            &[
                first(0, 5, "a"),
                other(1, 6),
                first(2, 6, "n"),
                first(3, 6, "m"),
            ],
            MOVES,
        ),
        // Rows of before, and a count one higher: the list moves once.
        (
            &[first(0, 5, "a"), with_rows_of_before(first(1, 6, "a"))],
            MOVES_WITHOUT_IT,
        ),
        (
            &[
                first(0, 5, "a"),
                with_rows_of_before(first(1, 6, "a")),
                first(2, 6, "n"),
            ],
            STAYS,
        ),
        (
            &[first(0, 5, "a"), first(1, 6, "a"), first(2, 6, "n")],
            STAYS,
        ),
        // A page that was overtaken moves nothing, whatever it shows.
        (
            &[first(0, 5, "a"), first(1, 6, "n"), overtaken(other(2, 5))],
            ANOTHER,
        ),
        (
            &[first(0, 5, "a"), first(1, 6, "n"), overtaken(other(2, 7))],
            ANOTHER,
        ),
        (
            &[
                first(0, 5, "a"),
                first(1, 6, "n"),
                overtaken(first(2, 6, "m")),
            ],
            ANOTHER,
        ),
        (
            &[first(0, 5, "a"), first(1, 6, "n"), overtaken(other(2, 6))],
            STAYS,
        ),
        (
            &[
                first(0, 5, "a"),
                first(1, 6, "n"),
                overtaken(first(2, 6, "n")),
            ],
            STAYS,
        ),
        (
            &[
                first(0, 5, "a"),
                first(1, 6, "n"),
                overtaken(with_rows_of_before(other(2, 6))),
            ],
            ANOTHER,
        ),
        (&[overtaken(other(0, 5))], ANOTHER),
        // A row on both sides of a seam.
        (&[first(0, 5, "a"), doubling(other(1, 5), "c")], MOVES),
        (
            &[
                first(0, 5, "a"),
                doubling(other(1, 5), "c"),
                first(2, 5, "n"),
            ],
            STAYS,
        ),
        // Once: an upstream that doubles rows for good costs no call for each page.
        (
            &[
                first(0, 5, "a"),
                doubling(other(1, 5), "c"),
                doubling(other(2, 5), "c"),
            ],
            STAYS,
        ),
        // There and back within a lifetime is no second move, and from then on the list is unsettled.
        (&[other(0, 5), other(1, 6), other(31, 5)], STAYS),
        (&[other(0, 5), other(1, 6), other(32, 5)], MOVES),
        (
            &[first(0, 5, "a"), first(1, 5, "n"), first(2, 5, "a")],
            STAYS,
        ),
        (&[other(0, 5), other(1, 6), other(2, 5), other(3, 6)], STAYS),
        (
            &[other(0, 5), other(1, 6), other(2, 5), other(61, 5)],
            STAYS,
        ),
        (
            &[other(0, 5), other(1, 6), other(2, 5), other(62, 5)],
            MOVES,
        ),
        (
            &[
                first(0, 5, "a"),
                first(1, 6, "n"),
                first(2, 5, "a"),
                first(3, 6, "a"),
            ],
            STAYS,
        ),
        (
            &[
                other(0, 5),
                other(1, 6),
                other(2, 5),
                doubling(other(3, 6), "c"),
            ],
            STAYS,
        ),
        // A replica that is further behind; and a list that grows meanwhile.
        (&[other(0, 4), other(1, 5), other(2, 6), other(3, 4)], STAYS),
        (&[other(0, 5), other(1, 6), other(2, 5), other(3, 7)], MOVES),
        (
            &[
                other(0, 5),
                other(1, 6),
                other(2, 5),
                other(3, 7),
                other(4, 6),
            ],
            STAYS,
        ),
    ];
    for (came, expected) in table {
        assert_eq!(last(came), *expected, "{came:?}");
    }
}

#[test]
fn a_first_row_that_vanished_for_a_while_still_counts() {
    let (_, verdicts) = see(&[first(0, 5, "a"), other(1, 5), first(2, 5, "b")]);
    assert_eq!(verdicts, [STAYS, STAYS, MOVES]);
}

#[test]
fn only_a_move_that_the_count_does_not_tell_has_a_marker() {
    let marker = |came: &[Came]| see(came).0.marker.map(String::from);
    assert_eq!(marker(&[first(0, 5, "a"), first(1, 6, "n")]), None);
    let by_first_row = [first(0, 5, "a"), first(1, 5, "n")];
    assert_eq!(marker(&by_first_row), Some("n".to_owned()));
    let by_seam = [first(0, 5, "a"), doubling(other(1, 5), "c")];
    assert_eq!(marker(&by_seam), Some("c".to_owned()));
    assert_eq!(marker(&[by_seam[0], by_seam[1], other(2, 6)]), None);
}

proptest! {
    /// Replicas behind the upstream, of which some always lag: one move for each state that is new.
    #[test]
    fn a_list_moves_once_for_each_state_however_its_replicas_lag(
        steps in prop::collection::vec((0_u32..=30, 1_u64..4, prop::bool::weighted(0.1)), 1..200),
    ) {
        let (mut at, mut newest, mut moves) = (0, 10, 0);
        let mut state = ListState::default();
        let start = Instant::now();
        for (later, lag, grows) in steps {
            at += later;
            newest += u64::from(grows);
            for count in [newest - lag, newest] {
                let page = other(at, count).page;
                let verdict = state.observe(&page, false, LIFETIME, start + at * SECOND);
                prop_assert!(verdict.is_current);
                moves += u64::from(verdict.moved);
            }
        }
        // The first page was of a replica that lags.
        prop_assert!(moves <= newest - 10 + 1, "{moves} moves from 10 to {newest}");
    }

    /// Whatever comes, a page is called current only if it may be of the state in force or the list is unsettled.
    #[test]
    fn no_page_is_current_that_contradicts_a_settled_state(
        pages in prop::collection::vec(
            (0_u32..100, any::<bool>(), 1_u64..5, prop::option::of(0_usize..3), any::<bool>()),
            1..60,
        ),
    ) {
        let (mut state, mut now) = (ListState::default(), Instant::now());
        for (later, is_overtaken, count, row, has_rows_of_before) in pages {
            now += later * SECOND;
            let first_row = row.map(|row| ["a", "b", "c"][row]);
            let page = Observation { has_rows_of_before, ..page(1, count, first_row) };
            let verdict = state.observe(&page, is_overtaken, LIFETIME, now);
            let unsettled = state.unsettled_until.is_some_and(|until| now < until);
            let recently = state.changed_within(LIFETIME, now);
            if verdict.is_current && !unsettled && !recently {
                prop_assert!(state.head.allows(&page), "{state:?} {page:?}");
            }
            prop_assert!(!(verdict.moved && is_overtaken));
        }
    }
}
