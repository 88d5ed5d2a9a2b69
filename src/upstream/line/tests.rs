use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;

use Urgency::{Background, Retry, Waiting};

fn client(name: &str) -> Arc<str> {
    name.into()
}

/// Puts `all` into a line in this order, then serves it empty: who was served, in order.
fn served(line: &Line, all: &[(Urgency, &str)]) -> Vec<String> {
    let mut places: Vec<_> = all
        .iter()
        .filter_map(|(urgency, name)| line.join(*urgency, &client(name)).ok())
        .collect();
    let mut order = Vec::new();
    while let Some(first) = places.iter().position(Place::is_first) {
        let mut place = places.remove(first);
        place.is_served = true;
        order.push(place.client.to_string());
    }
    order
}

#[test]
fn clients_take_turns_and_the_urgent_go_first() {
    for (all, order) in [
        (
            vec![
                (Waiting, "a"),
                (Waiting, "a"),
                (Waiting, "a"),
                (Waiting, "b"),
            ],
            "a b a a",
        ),
        (
            vec![
                (Waiting, "a"),
                (Waiting, "b"),
                (Waiting, "a"),
                (Waiting, "c"),
                (Waiting, "b"),
            ],
            "a b c a b",
        ),
        (
            vec![
                (Background, "x"),
                (Retry, "a"),
                (Waiting, "b"),
                (Waiting, "b"),
            ],
            "b b a x",
        ),
    ] {
        assert_eq!(served(&Line::new(10), &all).join(" "), order);
    }
}

#[test]
fn a_full_line_makes_room_for_the_urgent_and_for_who_has_less() {
    for (all, order, why) in [
        (
            vec![(Waiting, "a"), (Waiting, "a"), (Waiting, "a")],
            "a a",
            "nobody makes room for themselves",
        ),
        (
            vec![(Waiting, "a"), (Waiting, "b"), (Waiting, "c")],
            "a b",
            "nor for who would have as much",
        ),
        (
            vec![(Background, "x"), (Waiting, "a"), (Waiting, "b")],
            "a b",
            "a refresh makes room",
        ),
        (
            vec![(Waiting, "a"), (Waiting, "b"), (Background, "x")],
            "a b",
            "for no refresh",
        ),
        (
            vec![(Waiting, "a"), (Waiting, "a"), (Waiting, "b")],
            "a b",
            "who has two makes room for who has none",
        ),
    ] {
        assert_eq!(served(&Line::new(2), &all).join(" "), order, "{why}");
    }
}

#[test]
fn what_is_ahead_is_what_is_served_before() {
    let line = Line::new(100);
    let _places: Vec<_> = [
        (Waiting, "a"),
        (Waiting, "a"),
        (Waiting, "a"),
        (Waiting, "b"),
        (Retry, "c"),
    ]
    .map(|(urgency, name)| line.join(urgency, &client(name)).unwrap())
    .into();
    for (urgency, name, ahead) in [
        (Waiting, "new", 2),
        (Waiting, "b", 3),
        (Waiting, "a", 4),
        (Retry, "new", 5),
        (Retry, "c", 5),
    ] {
        assert_eq!(line.ahead_of(urgency, name), ahead, "{name}");
    }
}

/// A stock of things to wait for.
#[derive(Clone)]
struct Stock {
    line: Arc<Line>,
    there: Arc<AtomicUsize>,
}

impl Stock {
    fn empty(most: usize) -> Self {
        Self {
            line: Arc::new(Line::new(most)),
            there: Arc::default(),
        }
    }

    async fn take(&self, name: &str) -> Result<(), TurnedAway> {
        let less = |there: usize| there.checked_sub(1);
        self.line
            .stand(Waiting, &client(name), || async {
                match self
                    .there
                    .fetch_update(Ordering::AcqRel, Ordering::Acquire, less)
                {
                    Ok(_) => ControlFlow::Break(()),
                    Err(_) => ControlFlow::Continue(None),
                }
            })
            .await
    }

    fn add(&self, count: usize) {
        self.there.fetch_add(count, Ordering::AcqRel);
        self.line.wake();
    }
}

#[tokio::test]
async fn one_wake_serves_as_many_as_there_is_for() {
    let stock = Stock::empty(10);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let stock = stock.clone();
            tokio::spawn(async move { stock.take("a").await })
        })
        .collect();
    tokio::task::yield_now().await;

    stock.add(3);

    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert!(stock.line.is_empty());
}

#[tokio::test]
async fn who_leaves_after_being_woken_passes_it_on() {
    let stock = Stock::empty(10);
    let first = tokio::spawn({
        let stock = stock.clone();
        async move { stock.take("a").await }
    });
    tokio::task::yield_now().await;
    let second = tokio::spawn({
        let stock = stock.clone();
        async move { stock.take("b").await }
    });
    tokio::task::yield_now().await;

    stock.there.fetch_add(1, Ordering::AcqRel);
    stock.line.wake();
    first.abort();

    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_is_turned_away_is_told() {
    let stock = Stock::empty(2);
    let greedy: Vec<_> = (0..2)
        .map(|_| {
            let stock = stock.clone();
            tokio::spawn(async move { stock.take("greedy").await })
        })
        .collect();
    tokio::task::yield_now().await;
    let modest = tokio::spawn({
        let stock = stock.clone();
        async move { stock.take("modest").await }
    });
    tokio::task::yield_now().await;

    stock.add(2);

    modest.await.unwrap().unwrap();
    let mut ends = Vec::new();
    for task in greedy {
        ends.push(task.await.unwrap());
    }
    assert_eq!(ends, [Ok(()), Err(TurnedAway)]);
}

proptest! {
    /// Whatever comes and goes: nobody is lost, and none waits longer than all others have had one turn each.
    #[test]
    fn no_client_is_passed_by_twice(arrivals in proptest::collection::vec(0..4_usize, 1..40)) {
        let line = Line::new(100);
        let names = ["a", "b", "c", "d"];
        let all: Vec<_> = arrivals.iter().map(|who| (Waiting, names[*who])).collect();
        let order = served(&line, &all);
        prop_assert_eq!(order.len(), all.len());
        prop_assert!(line.is_empty());
        prop_assert!(line.lock().ranks.iter().all(|rank| rank.tickets.is_empty() && rank.turns.is_empty()));
        for (place, name) in order.iter().enumerate() {
            let since = order[..place].iter().rev().take_while(|other| *other != name);
            for other in names {
                prop_assert!(since.clone().filter(|served| *served == other).count() <= 1 || other == name);
            }
        }
    }
}
