//! Places for those who wait for a fill: a bounded number, of which no client keeps the others out.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// A place for each waiter. Fewer than the requests that may be under way: however many wait for an upstream that hangs, there
/// is room for those who need not.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What each client holds, oldest first; no client without any.
    held: HashMap<Arc<str>, BTreeMap<u64, Arc<Notify>>>,
    taken: usize,
    next_id: u64,
}

impl Places {
    /// Room for `most` at once.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
        }
    }

    /// Takes a place for `client`; where all are taken, the newest of whoever has most, if that is more than `client` would have.
    ///
    /// `None` where there is none for it.
    pub(super) fn take(&self, client: &Arc<str>) -> Option<Place<'_>> {
        let mut state = self.lock();
        if state.taken >= self.most {
            let heaviest = state.who_gives_way_to(client)?;
            state.turn_away_newest(&heaviest);
        }
        let (id, given_away) = state.add(client);
        Some(Place {
            places: self,
            client: client.clone(),
            id,
            given_away,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The client with the most places, where even one fewer is no less than `client` would have with one more: any less, and the
    /// two would take the same place from each other by turns.
    fn who_gives_way_to(&self, client: &str) -> Option<Arc<str>> {
        let ours = self.held.get(client).map_or(0, BTreeMap::len);
        let (heaviest, theirs) = self.held.iter().max_by_key(|(_, theirs)| theirs.len())?;
        (theirs.len() > ours + 1).then(|| heaviest.clone())
    }

    fn turn_away_newest(&mut self, client: &Arc<str>) {
        let newest = self.held.get(client).and_then(BTreeMap::last_key_value);
        if let Some((id, given_away)) = newest.map(|(id, told)| (*id, told.clone())) {
            given_away.notify_one();
            self.remove(client, id);
        }
    }

    fn add(&mut self, client: &Arc<str>) -> (u64, Arc<Notify>) {
        let id = self.next_id;
        let given_away = Arc::<Notify>::default();
        let ours = self.held.entry(client.clone()).or_default();
        ours.insert(id, given_away.clone());
        self.next_id += 1;
        self.taken += 1;
        (id, given_away)
    }

    /// Does nothing for a place that was given away before.
    fn remove(&mut self, client: &Arc<str>, id: u64) {
        let Some(ours) = self.held.get_mut(client) else {
            return;
        };
        if ours.remove(&id).is_some() {
            self.taken -= 1;
        }
        if ours.is_empty() {
            self.held.remove(client);
        }
    }
}

/// A place among those who wait, left when dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    places: &'a Places,
    client: Arc<str>,
    id: u64,
    given_away: Arc<Notify>,
}

impl Place<'_> {
    /// Waits until the place is another's.
    pub(super) async fn given_away(&self) {
        self.given_away.notified().await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.places.lock().remove(&self.client, self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn take<'a>(places: &'a Places, name: &str) -> Option<Place<'a>> {
        places.take(&name.into())
    }

    fn is_given_away(place: &Place<'_>) -> bool {
        place.given_away().now_or_never().is_some()
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
            let names: Vec<_> = held.split(' ').collect();
            let places = Places::new(names.len());
            let taken: Vec<_> = names
                .iter()
                .map(|name| take(&places, name).unwrap())
                .collect();

            let place = take(&places, newcomer);

            assert_eq!(place.is_some(), turned_away.is_some(), "{why}");
            assert_eq!(taken.iter().position(is_given_away), turned_away, "{why}");
        }
    }

    #[test]
    fn a_place_is_left_on_drop() {
        let places = Places::new(1);
        let place = take(&places, "a").unwrap();
        assert!(take(&places, "b").is_none());
        drop(place);
        assert!(take(&places, "b").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_turned_away_is_told_while_it_waits() {
        let places = Arc::new(Places::new(2));
        let kept = take(&places, "a").unwrap();
        let waits = tokio::spawn({
            let places = places.clone();
            async move { take(&places, "a").unwrap().given_away().await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());

        let newcomer = take(&places, "b").unwrap();

        waits.await.unwrap();
        assert!(!is_given_away(&kept) && !is_given_away(&newcomer));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_away_is_not_left_twice() {
        let places = Places::new(2);
        let kept = take(&places, "a").unwrap();
        let lost = take(&places, "a").unwrap();
        let newcomer = take(&places, "b").unwrap();
        lost.given_away().await;

        drop(lost);

        assert!(take(&places, "c").is_none(), "both are taken");
        drop((kept, newcomer));
        assert!(take(&places, "c").is_some());
    }

    proptest! {
        /// Whoever comes and goes: as many are taken as are held, never more than there are, and nothing is left of who is gone.
        #[test]
        fn every_place_is_held_by_somebody(steps in proptest::collection::vec((0..4_usize, any::<bool>()), 1..80)) {
            let places = Places::new(5);
            let mut taken = Vec::new();
            for (who, leaves) in steps {
                if leaves && !taken.is_empty() {
                    drop(taken.swap_remove(who % taken.len()));
                } else {
                    taken.extend(take(&places, ["a", "b", "c", "d"][who]));
                }
                taken.retain(|place| !is_given_away(place));
                prop_assert_eq!(places.lock().taken, taken.len());
                prop_assert!(taken.len() <= 5);
            }
            drop(taken);
            prop_assert!(places.lock().held.is_empty());
        }
    }
}
