//! What was counted and what was wrong, by lane, and the table of it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Display,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How many failures of each check are shown; further ones are only counted.
const SHOWN: u64 = 5;
/// How many events a failure is shown with.
const CONTEXT: usize = 6;
/// How many events are kept for that.
const KEPT: usize = 100_000;

/// The counters; clones share them.
#[derive(Clone)]
pub(crate) struct Tally(Arc<Shared>);

struct Shared {
    began: Instant,
    is_verbose: bool,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    lanes: BTreeSet<&'static str>,
    counted: BTreeMap<(String, &'static str), u64>,
    wrong: BTreeMap<(&'static str, &'static str), u64>,
    events: VecDeque<(Instant, &'static str, String)>,
}

impl Tally {
    pub(crate) fn new(is_verbose: bool) -> Self {
        Self(Arc::new(Shared {
            began: Instant::now(),
            is_verbose,
            counts: Mutex::default(),
        }))
    }

    pub(crate) fn count(&self, lane: &'static str, what: impl Into<String>) {
        self.add(lane, what, 1);
    }

    pub(crate) fn add(&self, lane: &'static str, what: impl Into<String>, number: u64) {
        let mut counts = self.0.counts.lock();
        counts.lanes.insert(lane);
        *counts.counted.entry((what.into(), lane)).or_default() += number;
    }

    /// Notes what was done to a lane.
    pub(crate) fn event(&self, lane: &'static str, what: impl Display) {
        let now = Instant::now();
        if self.0.is_verbose {
            eprintln!("{:8.3} {lane} {what}", self.seconds(now));
        }
        let mut counts = self.0.counts.lock();
        counts.events.push_back((now, lane, what.to_string()));
        if counts.events.len() > KEPT {
            counts.events.pop_front();
        }
    }

    /// Records a failure of a check at a moment; it is shown with what happened before.
    pub(crate) fn wrong(
        &self,
        lane: &'static str,
        at: Instant,
        check: &'static str,
        what: impl Display,
    ) {
        let mut counts = self.0.counts.lock();
        let failures = counts.wrong.entry((check, lane)).or_default();
        *failures += 1;
        if *failures > SHOWN {
            return;
        }
        eprintln!("{:8.3} {lane} WRONG: {check}: {what}", self.seconds(at));
        let before = counts
            .events
            .iter()
            .rev()
            .filter(|(then, of, _)| *of == lane && *then < at);
        let last: Vec<_> = before.take(CONTEXT).collect();
        for (then, _, event) in last.iter().rev() {
            eprintln!("    after {:8.3} {event}", self.seconds(*then));
        }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self, at: Instant) -> f64 {
        at.duration_since(self.0.began).as_secs_f64()
    }

    /// Prints the table; returns whether nothing was wrong.
    pub(crate) fn print(&self) -> bool {
        let counts = self.0.counts.lock();
        print!("\n{:44}", "");
        counts.lanes.iter().for_each(|lane| print!("{lane:>10}"));
        println!();
        let names: BTreeSet<_> = counts.counted.keys().map(|(what, _)| what).collect();
        for what in names {
            print!("{what:44}");
            for lane in &counts.lanes {
                let number = counts.counted.get(&(what.clone(), *lane));
                print!("{:>10}", number.copied().unwrap_or_default());
            }
            println!();
        }
        for ((check, lane), number) in &counts.wrong {
            println!("WRONG {lane}: {check}: {number}");
        }
        println!("{} checks failed", counts.wrong.len());
        counts.wrong.is_empty()
    }
}
