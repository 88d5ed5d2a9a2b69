//! What was seen, counted by all clients together.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::resident::resident;

/// Further wrong answers are counted and not shown.
const SHOWN: u64 = 20;

/// The counters; clones count together.
#[derive(Clone, Default)]
pub(crate) struct Report(Arc<Counts>);

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    left: AtomicU64,
    wrong: AtomicU64,
    outcomes: Mutex<BTreeMap<String, u64>>,
    warm: AtomicU64,
}

/// What a lane leaves.
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
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A right answer came: a status, or the code of an error.
    pub(crate) fn answered(&self, outcome: impl Into<String>) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        *self.outcomes().entry(outcome.into()).or_default() += 1;
    }

    /// A client went away without waiting for its answer.
    pub(crate) fn left(&self) {
        self.0.left.fetch_add(1, Ordering::Relaxed);
    }

    /// Something is not as it must be. `what` must hold no key.
    pub(crate) fn wrong(&self, what: impl Display) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        if self.0.wrong.fetch_add(1, Ordering::Relaxed) < SHOWN {
            eprintln!("soak: WRONG: {what}");
        }
    }

    /// From here on memory should not grow.
    pub(crate) fn note_warm(&mut self) {
        self.0.warm.store(resident() as u64, Ordering::Relaxed);
    }

    pub(crate) fn print_progress(&self, after: Duration) {
        println!(
            "{:>5} s  {} requests, {} wrong, {} MiB resident",
            after.as_secs(),
            self.0.requests.load(Ordering::Relaxed),
            self.0.wrong.load(Ordering::Relaxed),
            resident() >> 20
        );
    }

    /// Prints everything; returns whether all is well.
    pub(crate) fn print(&self, lanes: Vec<Left>, memory_slack: usize) -> bool {
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
        let warm = usize::try_from(self.0.warm.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let now = resident();
        println!(
            "resident memory  {} MiB warm, {} MiB now",
            warm >> 20,
            now >> 20
        );
        let bounded = now <= warm.saturating_add(memory_slack);
        if !bounded {
            eprintln!("soak: memory grew by more than {} MiB", memory_slack >> 20);
        }
        if !clean {
            eprintln!("soak: something is left under way");
        }
        wrong == 0 && clean && bounded
    }

    fn outcomes(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0
            .outcomes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
