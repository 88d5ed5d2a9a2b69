use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn waiter(client: &str, need: Need) -> Waiter {
    Waiter {
        client: client.into(),
        need,
    }
}

fn of(waiters: &[(&str, Need)]) -> Candidate {
    Candidate {
        waiters: waiters
            .iter()
            .map(|(client, need)| waiter(client, *need))
            .collect(),
        is_attended: true,
        is_failing: false,
    }
}

fn one(client: &str) -> Candidate {
    of(&[(client, Need::Nothing)])
}

fn unattended(client: &str) -> Candidate {
    Candidate {
        is_attended: false,
        ..one(client)
    }
}

fn failing(client: &str) -> Candidate {
    Candidate {
        is_failing: true,
        ..one(client)
    }
}

/// Serves all of `waiting`; returns their first clients in order.
fn order(turns: &mut Turns, mut waiting: Vec<Candidate>, now: Instant) -> Vec<String> {
    let mut order = Vec::new();
    while let Some((index, turn)) = turns.choose(waiting.iter(), false, now) {
        turns.served(&turn);
        order.push(waiting.remove(index).waiters[0].client.to_string());
    }
    order
}

#[test]
fn clients_take_turns_and_refreshes_alternate() {
    let now = Instant::now();
    let due = |seconds| Need::Refresh(now + seconds * SECOND);
    let overdue = Need::Refresh(now);
    let table: Vec<(&str, Vec<Candidate>, &str)> = vec![
        ("by arrival", vec![one("a"), one("b")], "a b"),
        (
            "by turns",
            vec![one("a"), one("a"), one("a"), one("b"), one("b")],
            "a b a b a",
        ),
        (
            "who is there goes first",
            vec![unattended("a"), one("a")],
            "a a",
        ),
        (
            "a refresh after each client",
            vec![
                of(&[("r", due(9))]),
                of(&[("s", due(5))]),
                one("a"),
                one("b"),
            ],
            "a s b r",
        ),
        (
            "due first",
            vec![of(&[("r", due(9))]), of(&[("s", due(5))])],
            "s r",
        ),
        (
            "overdue in its client's turn",
            vec![one("a"), one("a"), of(&[("b", overdue)])],
            "a b a",
        ),
        (
            "the oldest first in its client's turn",
            vec![one("b"), of(&[("b", Need::Oldest)]), one("a")],
            "b a b",
        ),
        (
            "who walks old pages delays another by one call",
            vec![
                of(&[("b", Need::Oldest)]),
                of(&[("b", Need::Oldest)]),
                of(&[("b", Need::Oldest)]),
                one("a"),
            ],
            "b a b b",
        ),
        (
            "what has begun goes on",
            vec![one("a"), of(&[("b", Need::Begun)])],
            "b a",
        ),
        (
            "a forced fill in its client's turn",
            vec![
                of(&[("a", Need::Forced)]),
                of(&[("a", Need::Forced)]),
                one("b"),
            ],
            "a b a",
        ),
        (
            "at the best of several turns",
            vec![
                one("a"),
                one("a"),
                of(&[("a", Need::Nothing), ("b", Need::Nothing)]),
            ],
            "a a a",
        ),
        (
            "failing pages last",
            vec![failing("a"), failing("a"), one("b"), one("b")],
            "b b a a",
        ),
        (
            "a failing refresh too",
            vec![
                Candidate {
                    is_failing: true,
                    ..of(&[("a", due(1))])
                },
                one("b"),
            ],
            "b a",
        ),
    ];
    for (what, waiting, expected) in table {
        let order = order(&mut Turns::default(), waiting, now);
        assert_eq!(order.join(" "), expected, "{what}");
    }
}

#[test]
fn one_fill_of_several_clients_is_served_at_the_first_turn_of_any() {
    let now = Instant::now();
    let mut turns = Turns::default();
    turns.served(&Turn::Client("a".into()));
    let both = of(&[("a", Need::Nothing), ("b", Need::Nothing)]);
    let (index, turn) = turns.choose([one("a"), both].iter(), false, now).unwrap();
    assert_eq!((index, turn), (1, Turn::Client("b".into())));
}

#[test]
fn what_a_client_had_while_it_was_away_counts() {
    let now = Instant::now();
    let mut turns = Turns::default();
    // Both ask; only the crawler is there each time a call comes free.
    let mut crawler = 0;
    for round in 0..40 {
        let mut waiting = vec![one("crawler")];
        if round % 2 == 1 {
            waiting.push(one("poller"));
        }
        let (_, turn) = turns.choose(waiting.iter(), false, now).unwrap();
        crawler += u32::from(turn == Turn::Client("crawler".into()));
        turns.served(&turn);
    }
    assert_eq!(crawler, 20, "the poller gets every call it waits for");
}

#[test]
fn a_failing_page_is_served_beside_others_within_its_share() {
    let now = Instant::now();
    let waiting = [failing("a"), one("b")];
    let chosen = |may_fail| {
        Turns::default()
            .choose(waiting.iter(), may_fail, now)
            .unwrap()
            .0
    };
    assert_eq!((chosen(false), chosen(true)), (1, 0));
}

#[test]
fn what_is_ahead_is_what_is_served_before() {
    let now = Instant::now();
    let due = |seconds| Need::Refresh(now + seconds * SECOND);
    for (waiting, expected) in [
        (vec![], 0),
        (vec![one("a")], 1),
        (vec![one("b")], 1),
        (vec![one("b"), one("b"), one("b")], 1),
        (
            vec![one("a"), one("a"), one("b"), one("b"), one("b"), one("c")],
            6,
        ),
        (vec![of(&[("r", due(1))]), of(&[("r", due(2))])], 0),
        (
            vec![one("b"), of(&[("r", due(1))]), of(&[("r", due(2))])],
            2,
        ),
        (
            vec![of(&[("b", Need::Oldest)]), of(&[("b", Need::Oldest)])],
            1,
        ),
        (
            vec![of(&[("b", Need::Begun)]), of(&[("b", Need::Begun)])],
            2,
        ),
    ] {
        let turns = Turns::default();
        let newcomer = waiter("a", Need::Nothing);
        let ahead = turns.ahead_of(&newcomer, waiting.iter(), now);
        assert_eq!(ahead, expected, "{waiting:?}");
    }
}

#[test]
fn a_full_queue_makes_room_for_who_has_less() {
    let now = Instant::now();
    let due = |seconds| Need::Refresh(now + seconds * SECOND);
    let (soon, late) = (of(&[("r", due(1))]), of(&[("r", due(9))]));
    for (waiting, newcomer, expected) in [
        (
            vec![one("a"), late.clone(), soon.clone()],
            waiter("b", Need::Nothing),
            Some(1),
        ),
        (vec![one("a"), late.clone()], waiter("b", due(5)), Some(1)),
        (vec![one("a"), soon.clone()], waiter("b", due(5)), None),
        (
            vec![one("a"), one("a"), one("a"), one("b")],
            waiter("c", Need::Nothing),
            Some(2),
        ),
        (
            vec![one("a"), one("a"), one("a"), one("b")],
            waiter("b", Need::Nothing),
            Some(2),
        ),
        (
            vec![one("a"), one("a"), one("b")],
            waiter("b", Need::Nothing),
            None,
        ),
        (
            vec![one("a"), one("a"), one("b")],
            waiter("a", Need::Nothing),
            None,
        ),
        (vec![one("a")], waiter("b", Need::Nothing), None),
        (vec![], waiter("b", Need::Nothing), None),
    ] {
        let turns = Turns::default();
        let last = turns.displaceable(waiting.iter(), &[newcomer], now);
        assert_eq!(last, expected, "{waiting:?}");
    }
}

proptest! {
    /// Whoever waits is served, each client no more than once more than another that waits as long.
    #[test]
    fn no_client_is_passed_by_twice(arrivals in prop::collection::vec(0..4_usize, 1..40)) {
        let now = Instant::now();
        let names = ["a", "b", "c", "d"];
        let mut waiting: Vec<_> = arrivals.iter().map(|client| one(names[*client])).collect();
        let mut turns = Turns::default();
        let mut served = [0_usize; 4];
        while let Some((index, turn)) = turns.choose(waiting.iter(), false, now) {
            let name = waiting.remove(index).waiters[0].client.clone();
            turns.served(&turn);
            served[names.iter().position(|known| **known == *name).unwrap()] += 1;
            for (client, name) in names.iter().enumerate() {
                if waiting.iter().any(|left| &*left.waiters[0].client == *name) {
                    let most = served.iter().max().unwrap();
                    prop_assert!(served[client] + 1 >= *most, "{served:?}");
                }
            }
        }
        prop_assert!(turns.next.len() <= 4);
    }
}
