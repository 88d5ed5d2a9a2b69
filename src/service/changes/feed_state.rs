//! All that is known of a space's changes: what readers are shown, and what who watches it next goes on with. Replicas hand it on as one value.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{feed::Feed, moment::Clock, plan};

/// Raised whenever what was written before could be misread.
const VERSION: u32 = 1;

/// That all was read, and when.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Synced {
    /// How often that was so.
    pub number: u64,
    pub verified_at: SystemTime,
    /// How many tasks the space has.
    pub count: u64,
    /// How many of them are watched.
    pub watched: usize,
}

/// That nothing can be read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delayed {
    /// How often that began.
    pub number: u64,
    /// When all was read last.
    pub since: SystemTime,
    pub code: Cow<'static, str>,
}

/// A feed, and how it stands with the upstream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FeedState {
    pub(super) feed: Feed,
    pub(super) synced: Option<Synced>,
    pub(super) delayed: Option<Delayed>,
    delays: u64,
    began: SystemTime,
    /// How often each range is read.
    pub(super) interval: Duration,
}

/// As it is written.
#[derive(Serialize, Deserialize)]
struct Written<S> {
    version: u32,
    /// What its moments are counted from.
    origin_unix_us: i64,
    state: S,
}

impl FeedState {
    pub(super) fn new(feed: Feed) -> Self {
        Self {
            feed,
            synced: None,
            delayed: None,
            delays: 0,
            began: SystemTime::now(),
            interval: plan::SHORTEST_INTERVAL,
        }
    }

    pub(super) fn note_synced(&mut self) {
        let number = self.synced.as_ref().map_or(0, |synced| synced.number) + 1;
        self.delayed = None;
        self.synced = Some(Synced {
            number,
            verified_at: SystemTime::now(),
            count: self.feed.watched.count(),
            watched: self.feed.watched.len(),
        });
    }

    /// Whether that is news.
    pub(super) fn note_delayed(&mut self, code: &'static str) -> bool {
        if self.delayed.is_some() {
            return false;
        }
        self.delays += 1;
        let synced = self.synced.as_ref();
        self.delayed = Some(Delayed {
            number: self.delays,
            since: synced.map_or(self.began, |synced| synced.verified_at),
            code: code.into(),
        });
        true
    }

    /// What another replica has learned, in place of this. Delays are counted as readers are told of them here.
    pub(super) fn replace_by(&mut self, other: Self) {
        let ours = std::mem::replace(self, other);
        self.delays = ours.delays;
        if let Some(delayed) = &mut self.delayed {
            let is_same = |told: &Delayed| told.since == delayed.since && told.code == delayed.code;
            self.delays += u64::from(!ours.delayed.as_ref().is_some_and(is_same));
            delayed.number = self.delays;
        }
        if ours.feed.watched.has_begun() {
            self.feed.log.note_replaced(&ours.feed.log);
        }
    }

    pub(super) fn encode(&self, clock: &Clock) -> Option<Vec<u8>> {
        let written = Written {
            version: VERSION,
            origin_unix_us: clock.origin_unix_us(),
            state: self,
        };
        serde_json::to_vec(&written).ok()
    }

    /// `None` for what [`Self::encode`] of this version did not write.
    pub(super) fn decode(bytes: &[u8], clock: &Clock) -> Option<Self> {
        let mut written: Written<Self> = serde_json::from_slice(bytes).ok()?;
        if written.version != VERSION {
            return None;
        }
        for moment in written.state.feed.moments_mut() {
            moment.rebase(written.origin_unix_us, clock);
        }
        Some(written.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_delay_is_told_once_though_an_outage_was_told_before() {
        let mut working = FeedState::new(Feed::new(1, 0));
        let mut seen = working.clone();
        let number = |seen: &FeedState| seen.delayed.as_ref().map(|delayed| delayed.number);
        assert!(seen.note_delayed("internal"));
        assert_eq!(number(&seen), Some(1));
        seen.replace_by(working.clone());
        assert_eq!(number(&seen), None);
        for expected in [2, 3] {
            assert!(working.note_delayed("upstream_failed"));
            for _ in 0..2 {
                seen.replace_by(working.clone());
                assert_eq!(number(&seen), Some(expected));
            }
            working.note_synced();
            seen.replace_by(working.clone());
            assert_eq!(number(&seen), None);
        }
    }
}
