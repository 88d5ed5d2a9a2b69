//! What replicas tell each other in the log. Hearing an entry twice, or late, changes nothing.

use serde::{Deserialize, Serialize};

use super::{LARGEST_NUMBER, SharedCache};
use crate::{cache::list::SharedList, shared::Unavailable};

/// No name and no first row is longer.
const LONGEST_ENTRY: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::service) enum Event {
    /// Everything before this epoch is gone.
    Purged { epoch: u64 },
    /// What is of a space before this epoch is gone; where the upstream refused it, each replica may go on remembering that.
    Dropped {
        space: String,
        epoch: u64,
        refused: bool,
    },
    /// A list is in this state.
    Moved {
        space: String,
        epoch: u64,
        /// Its path below the space.
        list: String,
        state: SharedList,
    },
    /// An operator wants the space gone that is logged under this fingerprint; who knows it in an earlier epoch drops it for all.
    Unwanted { fingerprint: String, before: u64 },
    /// Who filled a page has ended, with a page or without.
    Filled { page: String },
}

impl Event {
    /// `None` for what this version of this program does not log.
    pub(in crate::service) fn read(entry: &[u8]) -> Option<Self> {
        if entry.len() > LONGEST_ENTRY {
            return None;
        }
        let event: Self = serde_json::from_slice(entry).ok()?;
        let largest = match &event {
            Self::Purged { epoch } | Self::Dropped { epoch, .. } => *epoch,
            Self::Moved { epoch, state, .. } => state.generation.max(*epoch),
            Self::Unwanted { before, .. } => *before,
            Self::Filled { .. } => 0,
        };
        (largest <= LARGEST_NUMBER).then_some(event)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an entry is plain JSON")
    }
}

impl SharedCache {
    pub(super) async fn log(&self, event: &Event) -> Result<(), Unavailable> {
        self.redis.append(&event.to_bytes()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_entry_has_a_number_that_cannot_be_raised() {
        let purged = |epoch| Event::Purged { epoch }.to_bytes();
        assert!(Event::read(&purged(LARGEST_NUMBER)).is_some());
        for epoch in [LARGEST_NUMBER + 1, 1 << 53, u64::MAX] {
            assert_eq!(Event::read(&purged(epoch)), None);
        }
        let long = Event::Filled {
            page: "p".repeat(LONGEST_ENTRY),
        };
        assert_eq!(Event::read(&long.to_bytes()), None);
        assert_eq!(Event::read(b"{\"unknown\":{}}"), None);
    }
}
