//! The rows of the table: workloads, servers, marks.

use crate::{
    pages::{LARGE, SMALL},
    server::{
        Fixed,
        Kind::{self, Gateway, Haproxy, Nginx, NginxCopy, Release, Varnish, VarnishGzip},
    },
};

#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub id: &'static str,
    pub what: &'static str,
    pub work: Work,
    /// The gateway first.
    pub servers: &'static [Kind],
    pub marks: &'static [Mark],
}

/// By CPU time, `of` should be so many times as good as `against`.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub of: Kind,
    pub against: Kind,
    pub at_least: f64,
}

#[derive(Clone, Copy, Debug)]
pub enum Work {
    Hits(Hits),
    /// New TLS connections, each for one request.
    Handshakes,
    /// Pages not requested before, with a full cache.
    Misses,
    /// Many concurrent requests for so many pages that are not stored, with a slow upstream and hits beside them.
    Burst(u64),
    /// Streams of changes.
    Streams,
    /// Latency of hits at a fixed rate, with concurrent misses.
    Tail,
    /// The memory of stored pages and of idle connections.
    Memory,
    Start,
}

/// Pages that are stored.
#[derive(Clone, Copy, Debug)]
pub struct Hits {
    pub page_size: u32,
    /// How many are stored; requested by Zipf's law.
    pub keys: u64,
    pub takes_gzip: bool,
    /// Whether the client has the page already.
    pub conditional: bool,
    /// Connections over TLS 1.3 and HTTP/2, with ten streams each.
    pub http2: bool,
}

/// Spread keys.
pub const MANY: u64 = 10_000;
pub const ONE_SMALL: Hits = Hits {
    page_size: SMALL,
    keys: 1,
    takes_gzip: false,
    conditional: false,
    http2: false,
};
const ONE_LARGE: Hits = Hits {
    page_size: LARGE,
    ..ONE_SMALL
};
const MANY_LARGE: Hits = Hits {
    page_size: LARGE,
    keys: MANY,
    ..ONE_SMALL
};

const fn hyper(page_size: u32, gzip: bool, not_modified: bool) -> Kind {
    Kind::Hyper(Fixed {
        page_size,
        gzip,
        not_modified,
    })
}

const fn shipped(against: Kind, at_least: f64) -> Mark {
    Mark {
        of: Gateway,
        against,
        at_least,
    }
}

const PLAIN_BUILD: Mark = Mark {
    of: Release,
    against: Nginx,
    at_least: 0.9,
};

const fn row(
    id: &'static str,
    what: &'static str,
    work: Work,
    servers: &'static [Kind],
    marks: &'static [Mark],
) -> Row {
    Row {
        id,
        what,
        work,
        servers,
        marks,
    }
}

pub const ROWS: [Row; 16] = [
    row(
        "W1",
        "hit, 2 KB",
        Work::Hits(ONE_SMALL),
        &[
            Gateway,
            Release,
            Nginx,
            Varnish,
            Haproxy,
            hyper(SMALL, false, false),
        ],
        &[
            shipped(Nginx, 1.05),
            shipped(hyper(SMALL, false, false), 0.55),
            PLAIN_BUILD,
        ],
    ),
    row(
        "W2",
        "hit, 40 KB",
        Work::Hits(ONE_LARGE),
        &[
            Gateway,
            Release,
            Nginx,
            Varnish,
            Haproxy,
            hyper(LARGE, false, false),
        ],
        &[shipped(Nginx, 1.0), shipped(Varnish, 1.5)],
    ),
    row(
        "W3",
        "hit, 40 KB, gzip",
        Work::Hits(Hits {
            takes_gzip: true,
            ..ONE_LARGE
        }),
        &[
            Gateway,
            Release,
            NginxCopy,
            VarnishGzip,
            hyper(LARGE, true, false),
        ],
        &[shipped(NginxCopy, 1.1)],
    ),
    row(
        "W4",
        "304",
        Work::Hits(Hits {
            conditional: true,
            ..ONE_SMALL
        }),
        &[
            Gateway,
            Release,
            Nginx,
            Varnish,
            Haproxy,
            hyper(SMALL, false, true),
        ],
        &[
            shipped(Nginx, 0.95),
            shipped(hyper(SMALL, false, true), 0.55),
            PLAIN_BUILD,
        ],
    ),
    row(
        "W5",
        "10,000 pages, Zipf, 2 KB",
        Work::Hits(Hits {
            keys: MANY,
            ..ONE_SMALL
        }),
        &[Gateway, Release, Nginx, Varnish, Haproxy],
        &[shipped(Nginx, 1.05), PLAIN_BUILD],
    ),
    row(
        "W5b",
        "10,000 pages, Zipf, 40 KB",
        Work::Hits(MANY_LARGE),
        &[Gateway, Release, Nginx, Varnish, Haproxy],
        &[shipped(Nginx, 1.0), shipped(Varnish, 1.5)],
    ),
    row(
        "W5g",
        "10,000 pages, Zipf, 40 KB, gzip",
        Work::Hits(Hits {
            takes_gzip: true,
            ..MANY_LARGE
        }),
        &[Gateway, Release, NginxCopy, VarnishGzip],
        &[shipped(NginxCopy, 1.1)],
    ),
    row(
        "T1",
        "hit, 2 KB, TLS 1.3 and HTTP/2, 100 connections of 10 streams",
        Work::Hits(Hits {
            http2: true,
            ..ONE_SMALL
        }),
        &[Gateway, Release, Nginx, Haproxy, hyper(SMALL, false, false)],
        &[shipped(Nginx, 1.0)],
    ),
    row(
        "T2",
        "1,000 new TLS connections a second, resumed, a hit of 2 KB each",
        Work::Handshakes,
        &[Gateway, Release, Nginx, Haproxy, hyper(SMALL, false, false)],
        &[shipped(Nginx, 1.0)],
    ),
    row(
        "B1",
        "500 clients, 50 cold pages, gzip, upstream 200 ms",
        Work::Burst(50),
        &[Gateway, Nginx],
        &[],
    ),
    row(
        "W6",
        "500 clients, one cold page, upstream 200 ms",
        Work::Burst(1),
        &[Gateway, Nginx],
        &[],
    ),
    row(
        "S1",
        "1,000 streams of changes",
        Work::Streams,
        &[Gateway],
        &[],
    ),
    row(
        "W7",
        "misses, 40 KB, cache full",
        Work::Misses,
        &[Gateway, Release, Nginx, Varnish, Haproxy],
        &[],
    ),
    row(
        "tail",
        "hits at half the saturation rate beside 100 misses a second",
        Work::Tail,
        &[Gateway, Nginx],
        &[],
    ),
    row(
        "memory",
        "10,000 pages of 40 KB; idle connections",
        Work::Memory,
        &[Gateway, Nginx],
        &[],
    ),
    row("start", "start and idle", Work::Start, &[Gateway], &[]),
];
