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

fn limit(max: usize) -> Arc<ConcurrencyLimit> {
    ConcurrencyLimit::new(max, |_| 0)
}

fn is_given_away(permit: &mut Permit) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    permit.poll_given_away(&mut cx).is_ready()
}

/// A permit whose holder has begun to wait.
fn waiting(limit: &Arc<ConcurrencyLimit>, account: &Account) -> Option<Permit> {
    let mut permit = limit.take(account)?;
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
        let limit = limit(names.len());
        let mut taken: Vec<_> = names
            .iter()
            .map(|name| waiting(&limit, &accounts.named(name)).unwrap())
            .collect();

        let permit = limit.take(&accounts.named(newcomer));

        assert_eq!(permit.is_some(), turned_away.is_some(), "{why}");
        let given_away = taken.iter_mut().position(is_given_away);
        assert_eq!(given_away, turned_away, "{why}");
    }
}

#[test]
fn what_a_client_holds_elsewhere_counts_as_its_own() {
    let mut accounts = Accounts::default();
    let limit = ConcurrencyLimit::new(1, |account| account.answers().count());
    let a = accounts.named("a");
    let mut held = waiting(&limit, &a).unwrap();
    assert!(limit.take(&accounts.named("b")).is_none(), "one each");
    assert!(a.answers().begin(7, 1));

    assert!(limit.take(&accounts.named("b")).is_some());

    assert!(is_given_away(&mut held));
}

#[test]
fn a_permit_that_was_given_away_is_not_given_back() {
    let mut accounts = Accounts::default();
    let (a, b) = (accounts.named("a"), accounts.named("b"));
    let limit = limit(2);
    let kept = waiting(&limit, &a).unwrap();
    let lost = waiting(&limit, &a).unwrap();
    let newcomer = limit.take(&b).unwrap();

    assert!(lost.keep().is_none());
    assert!(limit.take(&accounts.named("c")).is_none(), "both are taken");
    let kept = kept.keep().unwrap();
    drop((kept, newcomer));
    assert_eq!(limit.taken.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn who_is_turned_away_is_told_while_it_waits() {
    let mut accounts = Accounts::default();
    let limit = limit(2);
    let mut kept = waiting(&limit, &accounts.named("a")).unwrap();
    let mut lost = waiting(&limit, &accounts.named("a")).unwrap();
    let waits = tokio::spawn(async move { lost.given_away().await });
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());

    let mut newcomer = limit.take(&accounts.named("b")).unwrap();

    waits.await.unwrap();
    assert!(!is_given_away(&mut kept) && !is_given_away(&mut newcomer));
}

proptest! {
    /// Whoever comes, waits, goes on and leaves: as many are taken as are held, never more than there are, and nothing is left of who is
    /// gone.
    #[test]
    fn every_permit_is_held_by_somebody(steps in proptest::collection::vec((0..4_usize, 0..3_u8), 1..80)) {
        let mut accounts = Accounts::default();
        let limit = limit(5);
        let (mut waiters, mut keepers) = (Vec::new(), Vec::new());
        for (who, what) in steps {
            let account = accounts.named(["a", "b", "c", "d"][who]);
            match what {
                0 if !waiters.is_empty() => drop(waiters.swap_remove(who % waiters.len())),
                0 => drop(keepers.pop()),
                1 if !waiters.is_empty() => {
                    let permit: Permit = waiters.swap_remove(who % waiters.len());
                    keepers.extend(permit.keep());
                }
                _ => waiters.extend(waiting(&limit, &account)),
            }
            waiters.retain_mut(|permit| !is_given_away(permit));
            let held = waiters.len() + keepers.len();
            prop_assert_eq!(limit.taken.load(Ordering::Relaxed), held);
            prop_assert!(held <= 5);
        }
        drop((waiters, keepers));
        prop_assert!(limit.waiting.lock().by_client.is_empty());
        prop_assert_eq!(limit.taken.load(Ordering::Relaxed), 0);
    }
}
