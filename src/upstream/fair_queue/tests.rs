use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::upstream::fixtures;

use Priority::{Background, HasFallback, Retry, Waiting};

/// Comes to stand in line, as the only one who wants it.
fn join<'a>(
    queue: &'a FairQueue,
    (priority, name): (Priority, &str),
) -> Result<Position<'a>, QueueFull> {
    queue.join(&fixtures::waiters(priority, name))
}

/// The same for what several want.
fn join_together<'a>(
    queue: &'a FairQueue,
    all: &[(Priority, &str)],
) -> Result<Position<'a>, QueueFull> {
    queue.join(&together(all))
}

fn together(all: &[(Priority, &str)]) -> Waiters {
    let waiters = fixtures::waiters(all[0].0, all[0].1);
    all[1..].iter().for_each(|one| waiters.add(waiter(*one)));
    waiters
}

fn waiter((priority, name): (Priority, &str)) -> Waiter {
    let client = name.into();
    Waiter { priority, client }
}

/// Lets a client join those who want what has its position.
fn claim_too(position: &Position<'_>, one: (Priority, &str)) {
    position.waiters.add(waiter(one));
    // As the holder does once it is told.
    position.turn().unwrap();
}

/// Serves the queue empty: by whose turns, in order, and what each got. Who was turned away is served nothing.
fn serve_out(mut places: Vec<Position<'_>>) -> Vec<(String, TicketId)> {
    let mut order = Vec::new();
    while let Some((at, turn)) = places
        .iter()
        .enumerate()
        .find_map(|(at, position)| position.turn().ok().flatten().map(|turn| (at, turn)))
    {
        let mut position = places.remove(at);
        order.push((turn.client.to_string(), position.id));
        position.served = Some(turn);
    }
    order
}

/// Puts `all` into a queue in this order, then serves it empty: who was served, in order.
fn served(queue: &FairQueue, all: &[(Priority, &str)]) -> Vec<String> {
    let places = all
        .iter()
        .filter_map(|one| join(queue, *one).ok())
        .collect();
    serve_out(places)
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

fn is_unused(queue: &FairQueue) -> bool {
    let state = queue.state.lock();
    let is_unused = |rank: &Rank| rank.queues.is_empty() && rank.turns.is_empty();
    state.tickets.is_empty() && state.ranks.iter().all(is_unused)
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
        assert_eq!(served(&FairQueue::new(10), &all).join(" "), order);
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
        assert_eq!(served(&FairQueue::new(2), &all).join(" "), order, "{why}");
    }
}

#[test]
fn what_is_ahead_is_what_is_served_before() {
    let queue = FairQueue::new(100);
    let _places: Vec<_> = [
        (Waiting, "a"),
        (Waiting, "a"),
        (Waiting, "a"),
        (Waiting, "b"),
        (Retry, "c"),
    ]
    .map(|one| join(&queue, one).unwrap())
    .into();
    for (priority, name, ahead) in [
        (Waiting, "new", 2),
        (Waiting, "b", 3),
        (Waiting, "a", 4),
        (Retry, "new", 5),
        (Retry, "c", 5),
    ] {
        let waiters = fixtures::waiters(priority, name);
        assert_eq!(queue.ahead_of(&waiters), ahead, "{name}");
    }
}

#[test]
fn what_several_want_is_ahead_once_and_at_the_best_of_their_places() {
    let queue = FairQueue::new(100);
    let _shared: Vec<_> = (0..3)
        .map(|_| join_together(&queue, &[(Waiting, "a"), (Waiting, "b")]).unwrap())
        .collect();
    let _own = join(&queue, (Waiting, "a")).unwrap();
    for (all, ahead, why) in [
        (vec![(Waiting, "new")], 2, "one turn each"),
        (vec![(Waiting, "a")], 4, "behind all of its own"),
        (vec![(Retry, "new")], 4, "behind all"),
        (
            vec![(Retry, "new"), (Waiting, "c")],
            2,
            "as one of them would be",
        ),
    ] {
        assert_eq!(queue.ahead_of(&together(&all)), ahead, "{why}");
    }
}

#[test]
fn a_late_claim_moves_a_ticket_forward() {
    for (first, late, position, why) in [
        ((Waiting, "a"), (Waiting, "b"), 1, "to the turn of who came"),
        (
            (Background, "x"),
            (Waiting, "b"),
            1,
            "to who has nothing to show",
        ),
        (
            (Retry, "a"),
            (Waiting, "a"),
            3,
            "as the same client wants it more",
        ),
        (
            (Waiting, "a"),
            (Background, "x"),
            3,
            "or not, for who wants it less",
        ),
    ] {
        let queue = FairQueue::new(100);
        let mut places: Vec<_> = (0..3)
            .map(|_| join(&queue, (Waiting, "a")).unwrap())
            .collect();
        let behind = join(&queue, first).unwrap();
        let id = behind.id;

        claim_too(&behind, late);

        places.push(behind);
        let order = serve_out(places);
        assert_eq!(
            order.iter().position(|(_, served)| *served == id),
            Some(position),
            "{why}"
        );
        assert_eq!(order.len(), 4, "each once");
        assert!(is_unused(&queue), "{why}");
    }
}

#[test]
fn what_is_served_uses_one_turn_alone() {
    let queue = FairQueue::new(100);
    let shared = join_together(&queue, &[(Waiting, "a"), (Waiting, "b")]).unwrap();
    let mut places = vec![shared];
    for name in ["a", "b", "c", "b"] {
        places.push(join(&queue, (Waiting, name)).unwrap());
    }

    let order = serve_out(places);

    // By the turn of a: b still has its own, before c.
    let turns: Vec<_> = order.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(turns, ["a", "b", "c", "a", "b"]);
}

#[test]
fn what_somebody_with_less_wants_too_is_not_turned_away() {
    for (tickets, newcomer, turned_away, why) in [
        (
            vec![
                vec![(Waiting, "a")],
                vec![(Waiting, "a")],
                vec![(Waiting, "a"), (Waiting, "b")],
            ],
            (Waiting, "c"),
            Some(1),
            "the newest that a alone wants",
        ),
        (
            vec![
                vec![(Waiting, "a"), (Waiting, "b")],
                vec![(Waiting, "a"), (Waiting, "b")],
            ],
            (Waiting, "c"),
            Some(1),
            "both have more",
        ),
        (
            vec![
                vec![(Waiting, "a"), (Waiting, "b")],
                vec![(Waiting, "a"), (Waiting, "c")],
            ],
            (Waiting, "d"),
            None,
            "b and c have one each",
        ),
        (
            vec![
                vec![(Background, "x"), (Waiting, "a")],
                vec![(Waiting, "b")],
            ],
            (HasFallback, "c"),
            None,
            "a has nothing to show",
        ),
        (
            vec![
                vec![(Background, "x"), (HasFallback, "a")],
                vec![(Waiting, "b")],
            ],
            (Waiting, "c"),
            Some(0),
            "neither has nothing to show",
        ),
    ] {
        let queue = FairQueue::new(tickets.len());
        let places: Vec<_> = tickets
            .iter()
            .map(|all| join_together(&queue, all).unwrap())
            .collect();

        let position = join(&queue, newcomer);

        assert_eq!(position.is_ok(), turned_away.is_some(), "{why}");
        let gone = places.iter().position(|position| position.turn().is_err());
        assert_eq!(gone, turned_away, "{why}");
    }
}

#[test]
fn what_was_claimed_a_moment_ago_counts_where_room_is_made() {
    let queue = FairQueue::new(2);
    let refresh = join(&queue, (Background, "a")).unwrap();
    let other = join(&queue, (Background, "b")).unwrap();
    // Its holder has not looked yet.
    other.waiters.add(waiter((Waiting, "c")));
    let _newcomer = join(&queue, (Waiting, "d")).unwrap();
    assert_eq!(refresh.turn(), Err(QueueFull));
    assert!(other.turn().is_ok());
}

#[test]
fn who_leaves_leaves_all_queues() {
    let queue = FairQueue::new(100);
    let position = join_together(&queue, &[(Waiting, "a"), (Retry, "b")]).unwrap();
    claim_too(&position, (Waiting, "b"));
    assert_eq!(queue.len(), 1, "tickets are counted, not waiters");

    drop(position);

    assert!(is_unused(&queue));
}

/// A stock of things to wait for.
#[derive(Clone)]
struct Stock {
    queue: Arc<FairQueue>,
    there: Arc<AtomicUsize>,
}

impl Stock {
    fn empty(most: usize) -> Self {
        Self {
            queue: Arc::new(FairQueue::new(most)),
            there: Arc::default(),
        }
    }

    async fn take(&self, name: &str) -> Result<(), QueueFull> {
        self.take_for(&fixtures::waiters(Waiting, name)).await
    }

    async fn take_for(&self, waiters: &Waiters) -> Result<(), QueueFull> {
        let less = |there: usize| there.checked_sub(1);
        self.queue
            .wait(waiters, || async {
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
        self.queue.wake();
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
    assert!(stock.queue.is_empty());
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
    stock.queue.wake();
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
    assert_eq!(ends, [Ok(()), Err(QueueFull)]);
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_heard_while_its_ticket_waits() {
    let stock = Stock::empty(10);
    let last = fixtures::waiters(Waiting, "a");
    let mut waiting: Vec<_> = (0..3)
        .map(|_| {
            let stock = stock.clone();
            tokio::spawn(async move { stock.take("a").await })
        })
        .collect();
    tokio::task::yield_now().await;
    waiting.push(tokio::spawn({
        let (stock, last) = (stock.clone(), last.clone());
        async move { stock.take_for(&last).await }
    }));
    tokio::task::yield_now().await;

    last.add(waiter((Waiting, "b")));
    tokio::task::yield_now().await;
    stock.add(2);

    waiting.pop().unwrap().await.unwrap().unwrap();
    assert_eq!(stock.queue.len(), 2, "by its second turn");
}

/// What may happen to a queue.
#[derive(Clone, Copy, Debug)]
enum Step {
    Come(Priority, usize),
    Waiter(Priority, usize, usize),
    Leave(usize),
    Serve,
}

fn any_step() -> impl Strategy<Value = Step> {
    let priority = || proptest::sample::select(&Priority::ALL[..]);
    prop_oneof![
        3 => (priority(), 0..4_usize).prop_map(|(priority, who)| Step::Come(priority, who)),
        3 => (priority(), 0..4_usize, 0..8_usize).prop_map(|(priority, who, position)| Step::Waiter(priority, who, position)),
        1 => (0..8_usize).prop_map(Step::Leave),
        1 => Just(Step::Serve),
    ]
}

/// Those in line as the queue must have them: every ticket in the queue of each of its waiters and in no other, and every client that
/// waits has one turn to come.
fn assert_consistent(queue: &FairQueue, places: &[Position<'_>]) {
    let state = queue.state.lock();
    let ids: Vec<_> = places.iter().map(|position| position.id).collect();
    assert!(state.tickets.keys().all(|id| ids.contains(id)));
    assert!(state.tickets.len() <= queue.most);
    let mut queued = Vec::new();
    for (priority, rank) in Priority::ALL.into_iter().zip(&state.ranks) {
        for (client, queue) in &rank.queues {
            assert_eq!(
                rank.turns.iter().filter(|other| *other == client).count(),
                1
            );
            queued.extend(queue.iter().map(|id| (*id, priority, client.clone())));
        }
        assert_eq!(rank.turns.len(), rank.queues.len());
    }
    let waiters = |(id, ticket): (&TicketId, &Ticket)| {
        let id = *id;
        let held = ticket.waiters.present();
        held.into_iter()
            .map(move |held| (id, held.priority, held.client))
    };
    let mut claimed: Vec<_> = state.tickets.iter().flat_map(waiters).collect();
    queued.sort_unstable();
    claimed.sort_unstable();
    assert_eq!(queued, claimed);
}

proptest! {
    /// Whatever comes, is claimed, leaves and is served: nothing is lost, and nothing is left.
    #[test]
    fn every_ticket_is_where_its_claims_put_it(steps in proptest::collection::vec(any_step(), 1..60)) {
        const NAMES: [&str; 4] = ["a", "b", "c", "d"];
        let queue = FairQueue::new(6);
        let mut places: Vec<Position<'_>> = Vec::new();
        for step in steps {
            match step {
                Step::Come(priority, who) => places.extend(join(&queue, (priority, NAMES[who]))),
                Step::Waiter(priority, who, at) if at < places.len() => claim_too(&places[at], (priority, NAMES[who])),
                Step::Leave(at) if at < places.len() => drop(places.remove(at)),
                Step::Serve => if let Some(at) = places.iter().position(|position| position.turn().unwrap().is_some()) {
                    let mut position = places.remove(at);
                    position.served = position.turn().unwrap();
                },
                Step::Waiter(..) | Step::Leave(_) => {}
            }
            places.retain(|position| position.turn().is_ok());
            assert_consistent(&queue, &places);
            prop_assert_eq!(queue.len(), places.len());
        }
        let waiting = places.len();
        prop_assert_eq!(serve_out(places).len(), waiting);
        prop_assert!(is_unused(&queue));
    }

    /// Whatever comes and goes: nobody is lost, and none waits longer than all others have had one turn each.
    #[test]
    fn no_client_is_passed_by_twice(arrivals in proptest::collection::vec(0..4_usize, 1..40)) {
        let queue = FairQueue::new(100);
        let names = ["a", "b", "c", "d"];
        let all: Vec<_> = arrivals.iter().map(|who| (Waiting, names[*who])).collect();
        let order = served(&queue, &all);
        prop_assert_eq!(order.len(), all.len());
        prop_assert!(is_unused(&queue));
        for (position, name) in order.iter().enumerate() {
            let since = order[..position].iter().rev().take_while(|other| *other != name);
            for other in names {
                prop_assert!(since.clone().filter(|served| *served == other).count() <= 1 || other == name);
            }
        }
    }
}
