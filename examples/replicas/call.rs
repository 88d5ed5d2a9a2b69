//! A page of the upstream, and a call for it.

use tokio::time::Instant;
use unpod_gateway::simulator::{SplitMix64, world};

/// A page that clients request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Key {
    pub(crate) space: &'static str,
    pub(crate) page: u64,
    pub(crate) size: u64,
}

/// The spaces that are read, and pages of each size; none lies past the end of its list.
const SPACES: [(&str, &[(u64, u64)]); 4] = [
    (
        world::SUPPORT,
        &[(1, 20), (2, 20), (1, 10), (3, 10), (3, 20)],
    ),
    (world::ARCHIVE, &[(1, 20), (2, 20), (2, 10)]),
    (world::UNICODE, &[(1, 20), (1, 10)]),
    (world::LIVE, &[(1, 20), (2, 20), (1, 10)]),
];

/// Every page that clients request.
pub(crate) fn keys() -> impl Iterator<Item = Key> {
    SPACES.iter().flat_map(|(space, pages)| {
        let key = |(page, size): &(u64, u64)| Key {
            space,
            page: *page,
            size: *size,
        };
        pages.iter().map(key)
    })
}

pub(crate) fn any_key(random: &mut SplitMix64) -> Key {
    let keys: Vec<_> = keys().collect();
    random.pick(&keys)
}

pub(crate) fn any_space(random: &mut SplitMix64) -> &'static str {
    random.pick(&SPACES).0
}

/// The known space of that name.
pub(crate) fn space(name: &str) -> Option<&'static str> {
    let known = SPACES.iter().find(|(space, _)| *space == name);
    known.map(|(space, _)| *space)
}

/// A call that the upstream received.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) key: Key,
    pub(crate) started: Instant,
    pub(crate) ended: Option<Instant>,
    /// What was answered; `None` where nothing or no page was.
    pub(crate) page: Option<Page>,
}

/// A page as it was sent. Each row has the number of its call, so no two pages are alike.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) body: blake3::Hash,
    pub(crate) rows: Vec<blake3::Hash>,
    pub(crate) count: u64,
}
