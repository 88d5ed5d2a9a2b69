//! The results of all clients.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::resident::resident;

const WATCH_EVERY: Duration = Duration::from_millis(200);
/// How many wrong responses are shown; further ones are only counted.
const SHOWN: u64 = 20;

/// The counters; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Report(Arc<Counts>);

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    left: AtomicU64,
    wrong: AtomicU64,
    outcomes: Mutex<BTreeMap<String, u64>>,
    /// Peak resident memory during warm-up, and resident memory at the end.
    warm: AtomicUsize,
    end: AtomicUsize,
}

/// What is left at the end of a lane.
pub(crate) struct Left {
    pub(crate) lane: &'static str,
    pub(crate) fills: usize,
    pub(crate) in_flight: i64,
    pub(crate) connections: i64,
    pub(crate) drained: bool,
    pub(crate) wire_faults: BTreeMap<&'static str, u64>,
    pub(crate) answer_faults: BTreeMap<&'static str, u64>,
}

impl Left {
    fn is_clean(&self) -> bool {
        self.fills == 0 && self.in_flight == 0 && self.connections == 0 && self.drained
    }
}

impl Report {
    /// Counts a correct response: a status, or the code of an error.
    pub(crate) fn answered(&self, outcome: impl Into<String>) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        *self.outcomes().entry(outcome.into()).or_default() += 1;
    }

    /// Counts a client that disconnected without waiting for its response.
    pub(crate) fn left(&self) {
        self.0.left.fetch_add(1, Ordering::Relaxed);
    }

    /// Records a failure. `what` must not contain a key.
    pub(crate) fn wrong(&self, what: impl Display) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        if self.0.wrong.fetch_add(1, Ordering::Relaxed) < SHOWN {
            eprintln!("soak: WRONG: {what}");
        }
    }

    /// Records memory during warm-up.
    pub(crate) async fn watch_warm_up(&self, length: Duration) {
        let until = Instant::now() + length;
        while Instant::now() < until {
            tokio::time::sleep(WATCH_EVERY).await;
            self.0.warm.fetch_max(resident("self"), Ordering::Relaxed);
        }
    }

    /// Records memory at the end, which should not exceed that of the warm-up.
    pub(crate) fn note_end(&self) {
        self.0.end.store(resident("self"), Ordering::Relaxed);
    }

    pub(crate) fn print_progress(&self, after: Duration) {
        println!(
            "{:>5} s  {} requests, {} wrong, {} MiB resident",
            after.as_secs(),
            self.0.requests.load(Ordering::Relaxed),
            self.0.wrong.load(Ordering::Relaxed),
            resident("self") >> 20
        );
    }

    /// Prints everything; returns whether the run succeeded.
    pub(crate) fn print(&self, lanes: Vec<Left>, slack_percent: usize) -> bool {
        let wrong = self.0.wrong.load(Ordering::Relaxed);
        println!(
            "\nrequests         {}",
            self.0.requests.load(Ordering::Relaxed)
        );
        println!("clients that left {}", self.0.left.load(Ordering::Relaxed));
        println!("wrong answers    {wrong}");
        println!("answers by status or code");
        for (outcome, count) in self.outcomes().iter() {
            println!("  {outcome:<40}{count}");
        }
        let mut clean = true;
        for left in lanes {
            clean &= left.is_clean();
            println!(
                "lane {}: left under way: {} fills, {} requests, {} connections; drained: {}",
                left.lane, left.fills, left.in_flight, left.connections, left.drained
            );
            for (kind, faults) in [("wire", left.wire_faults), ("answer", left.answer_faults)] {
                for (name, count) in faults {
                    println!("  {:<40}{count}", format!("{kind} {name}"));
                }
            }
        }
        let warm = self.0.warm.load(Ordering::Relaxed);
        let end = self.0.end.load(Ordering::Relaxed);
        println!(
            "resident memory  at most {} MiB in the warm-up, {} MiB in the end",
            warm >> 20,
            end >> 20
        );
        let bounded = end <= warm + warm / 100 * slack_percent;
        if !bounded {
            eprintln!("soak: memory grew by more than {slack_percent} %");
        }
        if !clean {
            eprintln!("soak: something is left under way");
        }
        wrong == 0 && clean && bounded
    }

    fn outcomes(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.outcomes.lock()
    }
}
