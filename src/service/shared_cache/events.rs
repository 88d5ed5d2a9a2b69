//! What replicas tell each other in the log. Hearing an entry twice, or late, changes nothing.

use serde::{Deserialize, Serialize};

use super::SharedCache;
use crate::{cache::list::SharedList, shared::Unavailable};

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
    /// `None` for what another version of this program logged.
    pub(in crate::service) fn read(entry: &[u8]) -> Option<Self> {
        serde_json::from_slice(entry).ok()
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
