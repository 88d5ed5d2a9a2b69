//! The oracle: every state that a page has had, and since when older states must not be served.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use unpod_gateway::simulator::{Control, SplitMix64, world};

/// A page that clients request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Key {
    pub(crate) space: &'static str,
    pub(crate) page: u64,
    pub(crate) size: u64,
}

/// The spaces whose pages are read. Transcripts are megabytes, so few of them are requested at once.
const SPACES: [(&str, &[u64]); 6] = [
    (world::SUPPORT, &[1, 5, 20, 100]),
    (world::TRANSCRIPTS, &[2, 5]),
    (world::ARCHIVE, &[5, 20, 50]),
    (world::UNICODE, &[7, 20]),
    (world::EMPTY, &[20]),
    (world::LIVE, &[5, 20]),
];
const PAGES: u64 = 4;

/// A digest of a body and its length.
type State = (blake3::Hash, usize);

/// The oracle. It alone adds tasks to the live list.
pub(crate) struct Truth {
    upstream: Control,
    most_age: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    states: HashMap<Key, Vec<State>>,
    /// The bytes that each ETag was seen with.
    tags: HashMap<(Key, String), blake3::Hash>,
    purged: HashMap<&'static str, Instant>,
}

impl Truth {
    pub(crate) fn new(upstream: Control, most_age: Duration) -> Self {
        let truth = Self {
            upstream,
            most_age,
            known: Mutex::default(),
        };
        let mut known = truth.known.lock();
        for key in keys() {
            truth.note(&mut known, key);
        }
        drop(known);
        truth
    }

    /// Adds a task to the live list, which moves all its pages.
    pub(crate) fn grow(&self) {
        // No response is checked between the move and the note of it.
        let mut known = self.known.lock();
        self.upstream.add_task(world::LIVE);
        for key in keys().filter(|key| key.space == world::LIVE) {
            self.note(&mut known, key);
        }
    }

    fn note(&self, known: &mut Known, key: Key) {
        let body = self.upstream.expect_page(key.space, key.page, key.size);
        let states = known.states.entry(key).or_default();
        states.push((blake3::hash(&body), body.len()));
    }

    /// Whether the page has ever had these bytes.
    pub(crate) fn is_page(&self, key: Key, body: &[u8]) -> bool {
        let digest = blake3::hash(body);
        let known = self.known.lock();
        known.states[&key].iter().any(|(state, _)| *state == digest)
    }

    /// Whether the page has ever had this length.
    pub(crate) fn is_length(&self, key: Key, length: usize) -> bool {
        self.known.lock().states[&key]
            .iter()
            .any(|(_, known)| *known == length)
    }

    /// Whether `tag` was only ever seen with these bytes.
    pub(crate) fn is_tag_of(&self, key: Key, tag: &str, body: &[u8]) -> bool {
        let digest = blake3::hash(body);
        let mut known = self.known.lock();
        let first = known.tags.entry((key, tag.to_owned())).or_insert(digest);
        *first == digest
    }

    /// All pages of `spaces` were purged: responses to later requests must not be older.
    pub(crate) fn note_purged(&self, spaces: &[&'static str]) {
        let now = Instant::now();
        let mut known = self.known.lock();
        known
            .purged
            .extend(spaces.iter().map(|space| (*space, now)));
    }

    /// The maximum age of a response to a request sent at `asked`.
    pub(crate) fn most_age(&self, space: &str, asked: Instant) -> Duration {
        let purged = self.known.lock().purged.get(space).copied();
        let since_purge = purged
            .filter(|purged| asked > *purged)
            .map(|purged| purged.elapsed());
        since_purge.map_or(self.most_age, |since| since.min(self.most_age))
    }
}

/// Every page that clients request.
pub(crate) fn keys() -> impl Iterator<Item = Key> {
    SPACES.iter().flat_map(|(space, sizes)| {
        let of_size = |size: &u64| (1..=PAGES).map(|page| (page, *size)).collect::<Vec<_>>();
        sizes
            .iter()
            .flat_map(of_size)
            .map(|(page, size)| Key { space, page, size })
    })
}

/// One of the spaces that are read.
pub(crate) fn any_space(random: &mut SplitMix64) -> &'static str {
    random.pick(&SPACES).0
}

/// All of them.
pub(crate) fn spaces() -> [&'static str; SPACES.len()] {
    SPACES.map(|(space, _)| space)
}

/// A random page, all equally likely.
pub(crate) fn any_key(random: &mut SplitMix64) -> Key {
    let (space, sizes) = random.pick(&SPACES);
    Key {
        space,
        page: 1 + random.below(PAGES),
        size: random.pick(sizes),
    }
}
