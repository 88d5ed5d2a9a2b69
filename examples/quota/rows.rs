//! The rows of the table: each is a function of a seed and a length of simulated time.

use std::{future::Future, pin::Pin, time::Duration};

use crate::figures::Figure;

pub(crate) mod pace;
pub(crate) mod pages;
pub(crate) mod walks;
pub(crate) mod watches;

/// What a row is run with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) seed: u64,
    /// For how long it is measured.
    pub(crate) length: Duration,
}

type Running = Pin<Box<dyn Future<Output = Vec<Figure>>>>;

/// A row: its name, what it is about, and how it is measured.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(Setting) -> Running,
}

macro_rules! rows {
    ($($name:literal, $about:literal, $run:path;)*) => {
        /// All rows.
        pub(crate) const ALL: &[Row] = &[$(Row {
            name: $name,
            about: $about,
            run: |setting| Box::pin($run(setting)),
        }),*];
    };
}

rows! {
    "polite", "cold pages of a polite reader beside a crawler", pace::polite;
    "burst", "60 cold pages at once after two idle minutes, at 60", pace::burst;
    "turns", "a crawler and a poller share 5 calls a minute", pace::turns;
    "learned", "200 cold pages at once, the limit of 60 only told by headers", pace::learned;
    "silent", "200 cold pages at once, a limit of 60 that nothing tells", pace::silent;
    "hold", "every call is refused for a minute, without a usable pause", pace::hold;
    "age", "Zipf readers, two requests a second", pages::age;
    "walks", "readers that page on through lists of five pages", walks::walks;
    "watches", "spaces that are watched, beside readers of cold pages", watches::watches;
    "floor", "2 pages at 60 with ttl_min", pages::floor;
    "stale", "a page polled every 2 s beside a sequential crawler", pages::stale;
    "failing", "a page that never works, asked every 2 s beside 19 good ones at 5", pages::failing;
    "forced", "a client with no-cache every 2 s beside 20 pages at 5", pages::forced;
    "idle", "20 pages idle for longer than stale_if_error, at 5", pages::idle;
    "hanging", "an upstream that hangs for half an hour, at 5", pages::hanging;
    "flapping", "a list whose count flaps, beside 10 others at 60", pages::flapping;
}
