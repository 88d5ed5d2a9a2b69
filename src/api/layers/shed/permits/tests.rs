use std::task::Waker;

use proptest::prelude::*;

use super::*;

/// Accounts by name: one name, one account.
#[derive(Default)]
struct Accounts(HashMap<String, Account>);

impl Accounts {
    fn named(&mut self, name: &str) -> Account {
        let account = self.0.entry(name.to_owned());
        account.or_insert_with(|| Account::new(name.into())).clone()
    }
}

fn is_given_away(permit: &mut Permit) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    permit.poll_given_away(&mut cx).is_ready()
}

/// A permit whose request has begun to wait.
fn waiting(permits: &Arc<InFlightLimit>, account: &Account) -> Option<Permit> {
    let mut permit = permits.take(account)?;
    assert!(!is_given_away(&mut permit));
    Some(permit)
}

#[test]
fn who_has_most_makes_room_for_who_has_fewer() {
    for (held, newcomer, turned_away, why) in [
        ("a a a", "b", Some(2), "who has none takes the newest"),
        ("a b a", "b", None, "to have as many is enough"),
        ("a a a b", "b", Some(2), "who has fewer takes one"),
        ("a a b b", "b", None, "who has as many takes none"),
        ("a a a", "a", None, "nobody makes room for themselves"),
        ("a b c", "d", None, "one each is fair"),
        ("a b b a b", "c", Some(4), "the heaviest of two"),
        (
            "a b b a b",
            "a",
            None,
            "where one more would turn the scales",
        ),
    ] {
        let mut accounts = Accounts::default();
        let names: Vec<_> = held.split(' ').collect();
        let permits = Arc::new(InFlightLimit::new(names.len()));
        let mut taken: Vec<_> = names
            .iter()
            .map(|name| waiting(&permits, &accounts.named(name)).unwrap())
            .collect();

        let permit = permits.take(&accounts.named(newcomer));

        assert_eq!(permit.is_some(), turned_away.is_some(), "{why}");
        let given_away = taken.iter_mut().position(is_given_away);
        assert_eq!(given_away, turned_away, "{why}");
    }
}

#[test]
fn half_of_the_permits_is_the_most_that_one_clients_answers_take_on_their_way_out() {
    for (most, expected) in [(1, 1), (2, 1), (3, 1), (4, 2), (9, 4)] {
        let mut accounts = Accounts::default();
        let permits = Arc::new(InFlightLimit::new(most));
        let taken: Vec<_> = (0..most)
            .map(|_| permits.take(&accounts.named("a")).unwrap())
            .collect();
        let sent: Vec<_> = taken
            .into_iter()
            .filter_map(|permit| permit.sending(7))
            .collect();
        assert_eq!(sent.len(), expected, "{most}");
        // The others' permits are free again.
        let others: Vec<_> = std::iter::from_fn(|| permits.take(&accounts.named("b"))).collect();
        assert_eq!(others.len(), most - expected, "{most}");
        drop(sent);
        let next = permits.take(&accounts.named("a")).unwrap();
        assert!(next.sending(7).is_some());
    }
}

#[test]
fn what_is_sent_counts_and_gives_way_to_nobody() {
    let mut accounts = Accounts::default();
    let (a, b) = (accounts.named("a"), accounts.named("b"));
    let permits = Arc::new(InFlightLimit::new(4));
    let sent: Vec<_> = (0..2)
        .map(|_| permits.take(&a).unwrap().sending(7).unwrap())
        .collect();
    let mut waits = waiting(&permits, &a).unwrap();
    let own = waiting(&permits, &b).unwrap();

    // Three of four are a's; the one that waits is b's now.
    let second = waiting(&permits, &b).unwrap();
    assert!(is_given_away(&mut waits));
    assert!(permits.take(&b).is_none(), "two each");
    drop((own, second));
    assert_eq!(permits.taken.load(Ordering::Relaxed), sent.len());
}

#[test]
fn an_answer_whose_place_was_given_away_has_none() {
    let mut accounts = Accounts::default();
    let (a, b) = (accounts.named("a"), accounts.named("b"));
    let permits = Arc::new(InFlightLimit::new(2));
    let kept = waiting(&permits, &a).unwrap();
    let lost = waiting(&permits, &a).unwrap();
    let newcomer = permits.take(&b).unwrap();

    assert!(lost.sending(7).is_none());
    assert!(
        permits.take(&accounts.named("c")).is_none(),
        "both are taken"
    );
    assert!(kept.sending(7).is_some());
    drop(newcomer);
    assert_eq!(permits.taken.load(Ordering::Relaxed), 0);
}

#[test]
fn who_is_turned_away_is_woken() {
    let mut accounts = Accounts::default();
    let permits = Arc::new(InFlightLimit::new(2));
    let woken = Arc::new(Woken::default());
    let waker = woken.clone().into();
    let mut lost: Vec<_> = (0..2)
        .map(|_| {
            let mut permit = permits.take(&accounts.named("a")).unwrap();
            let polled = permit.poll_given_away(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            permit
        })
        .collect();

    let _newcomer = permits.take(&accounts.named("b")).unwrap();

    assert!(woken.0.load(Ordering::Relaxed));
    assert!(is_given_away(&mut lost[1]));
}

#[derive(Default)]
struct Woken(AtomicBool);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

proptest! {
    /// Whoever comes, waits, is answered and goes: as many are taken as are held, never more than there are, and nothing is left of who is
    /// gone.
    #[test]
    fn every_place_is_held_by_somebody(steps in proptest::collection::vec((0..4_usize, 0..3_u8), 1..80)) {
        let mut accounts = Accounts::default();
        let permits = Arc::new(InFlightLimit::new(5));
        let mut taken: Vec<Permit> = Vec::new();
        for (who, what) in steps {
            let account = accounts.named(["a", "b", "c", "d"][who]);
            match what {
                0 if !taken.is_empty() => drop(taken.swap_remove(who % taken.len())),
                1 if !taken.is_empty() => {
                    let permit = taken.swap_remove(who % taken.len());
                    if !matches!(permit.state, State::Sending(_)) {
                        taken.extend(permit.sending(7));
                    }
                }
                _ => taken.extend(waiting(&permits, &account)),
            }
            taken.retain_mut(|permit| !is_given_away(permit));
            prop_assert_eq!(permits.taken.load(Ordering::Relaxed), taken.len());
            prop_assert!(taken.len() <= 5);
        }
        drop(taken);
        prop_assert!(permits.waiting().by_client.is_empty());
        prop_assert!(accounts.0.values().all(|account| account.answers().count() == 0 && account.answers().bytes() == 0));
    }
}
