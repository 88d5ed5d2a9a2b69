//! A page as it goes out: whole, or as a view shows it, each with an entity tag and coded variants of its own.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::{
    forms::{Forms, Packed},
    memory::BodyMemory,
};
use crate::domain::{View, ViewId};

/// Bytes of a page as a client gets them.
#[derive(Debug)]
pub struct Rendition {
    /// Weak, always our own: a digest of the identity bytes, whichever coding goes out.
    pub etag: HeaderValue,
    pub forms: Forms,
}

impl Rendition {
    #[must_use]
    pub fn new(body: Bytes, now: Instant, memory: &BodyMemory) -> Self {
        Self {
            etag: etag(&body),
            forms: Forms::new(body, now, memory),
        }
    }
}

/// The same on every replica. 128 bits keep two pages from being called alike by chance; nothing is kept from who would make two
/// such pages on purpose, and could have what he wrote himself taken for unchanged.
fn etag(body: &[u8]) -> HeaderValue {
    HeaderValue::try_from(format!("W/\"{:032x}\"", xxh3_128(body)))
        .expect("hex digits and quotes are visible ASCII")
}

/// What views show of one page, each made when it is first asked for.
///
/// Kept by what a view shows, not by its name: a view that is configured anew is another one. The oldest goes first.
#[derive(Debug, Default)]
pub(super) struct Views {
    known: Mutex<Vec<Seen>>,
}

/// A page as one view shows it. The lock is not held while it is made: whoever else asks for the same waits, and nobody else does.
#[derive(Clone, Debug)]
struct Seen {
    through: ViewId,
    rendition: Arc<OnceLock<Arc<Rendition>>>,
}

impl Views {
    /// What `view` shows of the page that `plain` gives, and whether it was made by this call.
    pub(super) fn get(
        &self,
        view: &View,
        plain: impl FnOnce() -> Bytes,
        now: Instant,
        memory: &BodyMemory,
    ) -> (Arc<Rendition>, bool) {
        let place = self.place(view.id());
        let mut is_new = false;
        let rendition = place.get_or_init(|| {
            is_new = true;
            let shown = view.apply(&plain());
            let shown = shown.expect("a page was read as JSON before it became one");
            Arc::new(Rendition::new(shown, now, memory))
        });
        (rendition.clone(), is_new)
    }

    /// What `view` shows, if it was made already.
    pub(super) fn made_for(&self, view: &View) -> Option<Arc<Rendition>> {
        let known = self.known.lock();
        let seen = known.iter().find(|seen| seen.through == view.id())?;
        seen.rendition.get().cloned()
    }

    fn place(&self, id: ViewId) -> Arc<OnceLock<Arc<Rendition>>> {
        let mut known = self.known.lock();
        if let Some(seen) = known.iter().find(|seen| seen.through == id) {
            return seen.rendition.clone();
        }
        if known.len() >= View::MOST {
            known.remove(0);
        }
        let rendition = Arc::<OnceLock<_>>::default();
        known.push(Seen {
            through: id,
            rendition: rendition.clone(),
        });
        rendition
    }

    /// Bytes of all that was made so far.
    pub(super) fn weight(&self) -> usize {
        // The structs and the allocator's share.
        const OVERHEAD: usize = 512;
        let made = self.made().into_iter();
        made.map(|rendition| OVERHEAD + rendition.forms.weight())
            .sum()
    }

    /// As [`Forms::pack`], each view by itself.
    pub(super) fn pack(&self, now: Instant, cold_after: Duration) -> Packed {
        let made = self.made().into_iter();
        made.map(|rendition| rendition.forms.pack(now, cold_after))
            .fold(Packed::default(), Packed::and)
    }

    fn made(&self) -> Vec<Arc<Rendition>> {
        let known = self.known.lock();
        let made = known.iter().filter_map(|seen| seen.rendition.get());
        made.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::FieldPath;

    fn page() -> Bytes {
        Bytes::from_static(br#"{"count":1,"data":[{"a":1,"b":2}]}"#)
    }

    fn get(views: &Views, view: &View) -> (Arc<Rendition>, bool) {
        views.get(view, page, Instant::now(), &BodyMemory::default())
    }

    fn view(name: &str) -> View {
        View::new(&[FieldPath::dotted(name).unwrap()])
    }

    #[test]
    fn what_a_view_shows_is_made_once() {
        let views = Views::default();
        let (first, is_new) = get(&views, &view("a"));
        assert!(is_new);
        assert_eq!(first.forms.plain(), r#"{"count":1,"data":[{"a":1}]}"#);
        let (again, is_new) = get(&views, &view("a"));
        assert!(!is_new && Arc::ptr_eq(&first, &again));

        let (other, is_new) = get(&views, &view("b"));
        assert!(is_new);
        assert_ne!(first.etag, other.etag);
    }

    #[test]
    fn what_is_printed_holds_no_task() {
        let views = Views::default();
        let page = || Bytes::from_static(br#"{"data":[{"a":"secret"}]}"#);
        let _ = views.get(&view("a"), page, Instant::now(), &BodyMemory::default());
        let printed = format!("{views:?}");
        assert!(printed.contains("etag") && !printed.contains("secret"));
    }

    #[test]
    fn however_many_ask_at_once_one_makes_it() {
        let views = Views::default();
        let made: Vec<_> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| get(&views, &view("a"))))
                .collect();
            let asking = asking.into_iter();
            asking.map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|(_, is_new)| *is_new).count(), 1);
        assert!(made.iter().all(|(one, _)| Arc::ptr_eq(one, &made[0].0)));
    }

    #[test]
    fn views_of_old_make_room_for_new_ones() {
        let views = Views::default();
        for number in 0..3 * View::MOST {
            let (_, is_new) = get(&views, &view(&number.to_string()));
            assert!(is_new);
        }
        assert_eq!(views.known.lock().len(), View::MOST);
        let newest = (3 * View::MOST - 1).to_string();
        assert!(!get(&views, &view(&newest)).1);
        assert!(get(&views, &view("0")).1);
    }
}
