//! The share of calls that pages get which failed before.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::MINUTE;

/// Over how long it is counted.
const WINDOW: Duration = Duration::from_secs(600);

/// How many of the last calls were for pages that had failed before.
#[derive(Debug, Default)]
pub(super) struct FailingShare {
    /// Since when, all calls and the failing ones, of each minute; the newest last.
    minutes: VecDeque<(Instant, u32, u32)>,
    last: Option<Instant>,
}

impl FailingShare {
    pub(super) fn note(&mut self, is_failing: bool, now: Instant) {
        self.forget(now);
        if self
            .minutes
            .back()
            .is_none_or(|(since, ..)| now - *since >= MINUTE)
        {
            self.minutes.push_back((now, 0, 0));
        }
        if let Some((_, all, failing)) = self.minutes.back_mut() {
            *all += 1;
            *failing += u32::from(is_failing);
        }
        if is_failing {
            self.last = Some(now);
        }
    }

    /// How long until there may be one more: at most a tenth, and at least one a minute.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        self.forget(now);
        let sum =
            |(all, failing), (_, one, other): &(Instant, u32, u32)| (all + one, failing + other);
        let (all, failing) = self.minutes.iter().fold((0, 0), sum);
        match self.last {
            Some(last) if (failing + 1) * 10 > all => {
                (last + MINUTE).saturating_duration_since(now)
            }
            _ => Duration::ZERO,
        }
    }

    fn forget(&mut self, now: Instant) {
        let is_old = |(since, ..): &(Instant, u32, u32)| now - *since >= WINDOW;
        while self.minutes.front().is_some_and(is_old) {
            self.minutes.pop_front();
        }
    }
}
