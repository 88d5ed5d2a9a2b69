//! Instants that another replica can read.

use std::{sync::LazyLock, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::time::Instant;

/// What moments are counted from where they leave the process. Each process has its own; what it writes tells which.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// When something was so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) Instant);

/// One moment by both clocks: ours, and the one that all replicas go by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) now: Instant,
    pub(super) unix_us: i64,
}

impl Clock {
    /// When our moments are counted from.
    pub(super) fn origin_unix_us(&self) -> i64 {
        self.unix_us.saturating_sub(Moment(self.now).since_origin())
    }
}

impl Moment {
    /// How long ago it is.
    pub(super) fn age(self, now: Instant) -> Duration {
        now.saturating_duration_since(self.0)
    }

    /// Moves what was counted from `origin_unix_us` to where it is by our clock: not beyond now, since the other clock may be ahead.
    pub(super) fn rebase(&mut self, origin_unix_us: i64, clock: &Clock) {
        let shift = origin_unix_us.saturating_sub(clock.origin_unix_us());
        let moved = Self::at(self.since_origin().saturating_add(shift));
        *self = moved.min(Self(clock.now));
    }

    fn since_origin(self) -> i64 {
        let after = self.0.saturating_duration_since(*ORIGIN);
        let before = ORIGIN.saturating_duration_since(self.0);
        micros(after) - micros(before)
    }

    fn at(since_origin: i64) -> Self {
        let distance = Duration::from_micros(since_origin.unsigned_abs());
        let at = match since_origin < 0 {
            true => ORIGIN.checked_sub(distance),
            false => ORIGIN.checked_add(distance),
        };
        Self(at.unwrap_or(*ORIGIN))
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.since_origin().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        i64::deserialize(deserializer).map(Self::at)
    }
}
