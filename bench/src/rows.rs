//! The rows of the table: workloads, servers, marks.

use crate::{
    pages::{LARGE, SMALL},
    server::{Fixed, Kind},
};

/// The servers of a row, the gateway first; the others with the ratio that the gateway should reach.
pub type Servers = &'static [(Kind, Option<f64>)];

#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub id: &'static str,
    pub what: &'static str,
    pub work: Work,
    pub servers: Servers,
}

#[derive(Clone, Copy, Debug)]
pub enum Work {
    Hits(Hits),
    /// Pages not requested before, with a full cache.
    Misses,
    /// Many concurrent requests for one page that is not stored, with a slow upstream.
    Burst,
    /// The memory of many stored pages, before and after hits on the hottest tenth.
    Memory,
    /// The cost of a hit on two cores relative to one.
    TwoCores,
    /// Latency of hits in an open loop, with concurrent misses.
    Tail,
    Start,
    /// The cost of a hit by stored pages and by connections.
    Growth,
}

/// Pages that are stored.
#[derive(Clone, Copy, Debug)]
pub struct Hits {
    pub page_size: u32,
    /// How many pages are requested, by Zipf's law.
    pub keys: u64,
    /// How many are stored.
    pub stored: u64,
    pub takes_gzip: bool,
    /// Whether the client has the page already.
    pub conditional: bool,
}

const ONE_SMALL: Hits = Hits {
    page_size: SMALL,
    keys: 1,
    stored: 1,
    takes_gzip: false,
    conditional: false,
};
const ONE_LARGE: Hits = Hits {
    page_size: LARGE,
    ..ONE_SMALL
};
const MANY_SMALL: Hits = Hits {
    keys: MANY,
    stored: MANY,
    ..ONE_SMALL
};
const MANY_LARGE: Hits = Hits {
    page_size: LARGE,
    ..MANY_SMALL
};
const HOT_LARGE: Hits = Hits {
    keys: MANY / 10,
    stored: MANY / 10,
    ..MANY_LARGE
};
/// Spread keys.
pub const MANY: u64 = 10_000;

const HYPER_SMALL: Kind = Kind::Hyper(Fixed {
    page_size: SMALL,
    gzip: false,
    not_modified: false,
});
const HYPER_LARGE: Kind = Kind::Hyper(Fixed {
    page_size: LARGE,
    gzip: false,
    not_modified: false,
});
const HYPER_GZIP: Kind = Kind::Hyper(Fixed {
    page_size: LARGE,
    gzip: true,
    not_modified: false,
});
const HYPER_304: Kind = Kind::Hyper(Fixed {
    page_size: SMALL,
    gzip: false,
    not_modified: true,
});
const fn hyper_map(page_size: u32, gzip: bool) -> Kind {
    Kind::HyperMap {
        page_size,
        keys: MANY,
        gzip,
    }
}

pub const ROWS: [Row; 14] = [
    Row {
        id: "W1",
        what: "hit, 2 KB",
        work: Work::Hits(ONE_SMALL),
        servers: &[
            (Kind::Gateway, None),
            (Kind::Nginx, Some(1.5)),
            (Kind::Varnish, None),
            (Kind::Haproxy, None),
            (HYPER_SMALL, Some(0.80)),
        ],
    },
    Row {
        id: "W2",
        what: "hit, 40 KB",
        work: Work::Hits(ONE_LARGE),
        servers: &[
            (Kind::Gateway, None),
            (Kind::Nginx, Some(1.15)),
            (Kind::Varnish, None),
            (Kind::Haproxy, None),
            (HYPER_LARGE, Some(0.85)),
        ],
    },
    Row {
        id: "W3",
        what: "hit, 40 KB, client takes gzip",
        work: Work::Hits(Hits {
            takes_gzip: true,
            ..ONE_LARGE
        }),
        servers: &[
            (Kind::Gateway, None),
            (Kind::Nginx, Some(10.0)),
            (Kind::NginxCopy, Some(1.6)),
            (Kind::VarnishGzip, None),
            (HYPER_GZIP, Some(0.80)),
        ],
    },
    Row {
        id: "W4",
        what: "client has the page: 304",
        work: Work::Hits(Hits {
            conditional: true,
            ..ONE_SMALL
        }),
        servers: &[
            (Kind::Gateway, None),
            (Kind::Nginx, Some(1.5)),
            (Kind::Varnish, None),
            (Kind::Haproxy, None),
            (HYPER_304, Some(0.85)),
        ],
    },
    Row {
        id: "W5",
        what: "10,000 keys, Zipf, 2 KB",
        work: Work::Hits(MANY_SMALL),
        servers: &[
            (Kind::Gateway, None),
            (Kind::Nginx, Some(2.0)),
            (Kind::Varnish, None),
            (Kind::Haproxy, None),
            (hyper_map(SMALL, false), Some(0.85)),
        ],
    },
    Row {
        id: "W5b",
        what: "10,000 keys, Zipf, 40 KB",
        work: Work::Hits(MANY_LARGE),
        servers: &[
            (Kind::Gateway, None),
            (Kind::Nginx, Some(1.0)),
            (Kind::Varnish, Some(2.5)),
            (Kind::Haproxy, None),
            (hyper_map(LARGE, false), None),
        ],
    },
    Row {
        id: "W5g",
        what: "10,000 keys, Zipf, 40 KB, client takes gzip",
        work: Work::Hits(Hits {
            takes_gzip: true,
            ..MANY_LARGE
        }),
        servers: &[
            (Kind::Gateway, None),
            (Kind::NginxCopy, Some(1.6)),
            (Kind::VarnishGzip, Some(3.0)),
            (hyper_map(LARGE, true), None),
        ],
    },
    Row {
        id: "W6",
        what: "500 at once for one cold page, upstream 200 ms",
        work: Work::Burst,
        servers: &[
            (Kind::Gateway, None),
            (Kind::Nginx, None),
            (Kind::Varnish, None),
            (Kind::Haproxy, None),
        ],
    },
    Row {
        id: "W7",
        what: "misses, 40 KB, caches full",
        work: Work::Misses,
        servers: &[
            (Kind::Gateway, None),
            (Kind::Nginx, Some(2.5)),
            (Kind::Varnish, None),
            (Kind::Haproxy, Some(1.0)),
        ],
    },
    Row {
        id: "memory",
        what: "10,000 pages of 40 KB, then hits on the hot tenth",
        work: Work::Memory,
        servers: &[
            (Kind::Gateway, None),
            (Kind::Nginx, None),
            (Kind::NginxCopy, None),
        ],
    },
    Row {
        id: "two-cores",
        what: "hit, 2 KB, by a server on both cores beside one on one",
        work: Work::TwoCores,
        servers: &[
            (Kind::Gateway, None),
            (Kind::Nginx, None),
            (Kind::Varnish, None),
            (Kind::Haproxy, None),
        ],
    },
    Row {
        id: "tail",
        what: "times of hits at half the saturation rate, 100 misses/s beside them",
        work: Work::Tail,
        servers: &[(Kind::Gateway, None), (Kind::Nginx, None)],
    },
    Row {
        id: "start",
        what: "start to the first page, and memory idle",
        work: Work::Start,
        servers: &[(Kind::Gateway, None)],
    },
    Row {
        id: "growth",
        what: "cost of a hit by pages stored and by connections",
        work: Work::Growth,
        servers: &[(Kind::Gateway, None)],
    },
];

/// The hits of the memory row: on the hottest tenth, plain against nginx, gzip against nginx-copy.
pub const HOT_TENTH: [(Hits, Servers); 2] = [
    (
        HOT_LARGE,
        &[(Kind::Gateway, None), (Kind::Nginx, Some(1.15))],
    ),
    (
        Hits {
            takes_gzip: true,
            ..HOT_LARGE
        },
        &[(Kind::Gateway, None), (Kind::NginxCopy, Some(1.6))],
    ),
];

/// The hits of the two-cores row.
pub const TWO_CORES: Hits = ONE_SMALL;
