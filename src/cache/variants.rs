//! What is made of a page when it is first asked for, and kept with the page.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

/// Values made of one page, by what they were made for, each made once. The oldest goes first.
#[derive(Debug)]
pub(super) struct Variants<K, V> {
    made_for: Mutex<Vec<(K, Arc<OnceLock<V>>)>>,
    most: usize,
}

impl<K: Clone + PartialEq, V: Clone> Variants<K, V> {
    /// None yet, and never more than `most`.
    pub(super) fn new(most: usize) -> Self {
        Self {
            made_for: Mutex::default(),
            most,
        }
    }

    /// The value for `key`, and whether it was made by this call. Others that ask for the same one meanwhile wait for it.
    pub(super) fn get_or_make(&self, key: &K, make: impl FnOnce() -> V) -> (V, bool) {
        let cell = self.cell(key);
        let mut is_new = false;
        let value = cell.get_or_init(|| {
            is_new = true;
            make()
        });
        (value.clone(), is_new)
    }

    /// The value for `key`, if it was made already.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let made_for = self.made_for.lock();
        let (_, cell) = made_for.iter().find(|(known, _)| known == key)?;
        cell.get().cloned()
    }

    /// All that were made so far.
    pub(super) fn made(&self) -> Vec<V> {
        let made_for = self.made_for.lock();
        let made = made_for.iter().filter_map(|(_, cell)| cell.get());
        made.cloned().collect()
    }

    fn cell(&self, key: &K) -> Arc<OnceLock<V>> {
        let mut made_for = self.made_for.lock();
        if let Some((_, cell)) = made_for.iter().find(|(known, _)| known == key) {
            return cell.clone();
        }
        if made_for.len() >= self.most {
            made_for.remove(0);
        }
        let cell = Arc::<OnceLock<_>>::default();
        made_for.push((key.clone(), cell.clone()));
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(variants: &Variants<u32, Arc<u32>>, key: u32) -> (Arc<u32>, bool) {
        variants.get_or_make(&key, || Arc::new(key))
    }

    #[test]
    fn each_is_made_once() {
        let variants = Variants::new(9);
        let (first, is_new) = get(&variants, 1);
        assert!(is_new);
        let (again, is_new) = get(&variants, 1);
        assert!(!is_new && Arc::ptr_eq(&first, &again));
        assert!(get(&variants, 2).1);
        assert_eq!(variants.get(&2).as_deref(), Some(&2));
        assert_eq!(variants.get(&3), None);
    }

    #[test]
    fn however_many_ask_at_once_one_makes_it() {
        let variants = Variants::new(9);
        let made: Vec<_> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| get(&variants, 1))).collect();
            let asking = asking.into_iter();
            asking.map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|(_, is_new)| *is_new).count(), 1);
        assert!(made.iter().all(|(one, _)| Arc::ptr_eq(one, &made[0].0)));
    }

    #[test]
    fn the_oldest_makes_room_for_new_ones() {
        let variants = Variants::new(4);
        assert!((0..12).all(|key| get(&variants, key).1));
        assert_eq!(variants.made().len(), 4);
        assert!(!get(&variants, 11).1);
        assert!(get(&variants, 0).1);
    }
}
