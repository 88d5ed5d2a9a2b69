//! What the next process must know of a window, and how it goes on from there.

use std::time::Duration;

use tokio::time::Instant;

use super::{CallWindow, LONGEST_BLOCK, Learned, MINUTE, burst};

/// The state of a window, with times relative to the moment it was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BudgetSnapshot {
    /// How long ago each call ended.
    pub ago: Vec<Duration>,
    /// Calls made by other programs, and how long they count.
    pub external_calls: Option<(u32, Duration)>,
    /// How much longer no call may be made.
    pub blocked_for: Option<Duration>,
    /// Calls a minute as the upstream told.
    pub learned: Option<u32>,
}

impl CallWindow {
    /// What the next process must know.
    pub(in crate::upstream) fn snapshot(&mut self, now: Instant) -> BudgetSnapshot {
        self.forget(self.paced_for.unwrap_or(u32::MAX), now);
        // A call in flight ends by now, or is never heard of again.
        let in_flight = (0..self.in_flight).map(|_| Duration::ZERO);
        let blocked_for = Some(self.blocked_for(now));
        BudgetSnapshot {
            ago: (self.ended.iter().map(|ended| now - *ended))
                .chain(in_flight)
                .collect(),
            external_calls: self
                .external_calls
                .map(|(count, until)| (count, until - now)),
            blocked_for: blocked_for.filter(|left| !left.is_zero()),
            learned: self.learned.map(|learned| learned.limit),
        }
    }

    /// Goes on from `spent`, which may lack calls that ended for so long after it was taken.
    ///
    /// Where nothing is `missing` the first minute need not be a cautious one; else as many calls count as may have been made.
    pub(in crate::upstream) fn resume(
        &mut self,
        spent: &BudgetSnapshot,
        missing: Option<Duration>,
        configured: u32,
        now: Instant,
    ) {
        // What was longer ago than this machine runs counts no more.
        let at = |ago: &Duration| now.checked_sub(*ago);
        self.ended = spent.ago.iter().filter_map(at).collect();
        self.ended.make_contiguous().sort_unstable();
        self.external_calls = spent
            .external_calls
            .map(|(count, left)| (count, now + left.min(MINUTE)));
        self.blocked_until = spent.blocked_for.map(|left| now + left.min(LONGEST_BLOCK));
        self.learned = spent.learned.map(|limit| Learned {
            limit,
            sent: now,
            told: now,
        });
        let Some(missing) = missing else {
            self.cautious_until = None;
            return;
        };
        if let Some(limit) = self.limit(configured, now) {
            let at_pace = (missing.as_secs_f64() / MINUTE.as_secs_f64() * f64::from(limit)).ceil();
            let (known, _) = self.external_calls.unwrap_or((0, now));
            let unknown = burst(limit).saturating_add(at_pace as u32);
            self.external_calls = Some((known.saturating_add(unknown), now + MINUTE));
        }
    }
}
