//! `[changes]`: the change feed.

use std::time::Duration;

use serde::Deserialize;

use super::{Problems, value};

/// `[changes]`: what watching costs, how much is kept, and who may listen.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangesConfig {
    /// The share of the quota that watching may use.
    #[serde(deserialize_with = "value::ratio")]
    pub quota_share: f64,
    /// Streams and waits at once.
    pub max_streams: usize,
    pub max_streams_per_client: usize,
    pub max_streams_per_token: usize,
    /// How long a space is watched after the last listener has left.
    #[serde(deserialize_with = "value::duration")]
    pub linger: Duration,
    /// How long changes are kept.
    #[serde(deserialize_with = "value::duration")]
    pub retention: Duration,
    /// Changes of a space that are kept.
    pub max_events: usize,
}

impl ChangesConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        const LONGEST: Duration = Duration::from_secs(31_557_600);
        if self.quota_share < 0.01 {
            problems.add("changes.quota_share", "expected 0.01 to 1");
        }
        for (key, time) in [
            ("changes.linger", self.linger),
            ("changes.retention", self.retention),
        ] {
            if time > LONGEST {
                problems.add(key, "expected 1year or less");
            }
        }
        for (key, number) in [
            ("changes.max_streams", self.max_streams),
            (
                "changes.max_streams_per_client",
                self.max_streams_per_client,
            ),
            ("changes.max_streams_per_token", self.max_streams_per_token),
            ("changes.max_events", self.max_events),
        ] {
            if !(1..=1_000_000).contains(&number) {
                problems.add(key, "expected 1 to 1000000");
            }
        }
    }
}
