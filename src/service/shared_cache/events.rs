//! What replicas tell each other.

use serde::{Deserialize, Serialize};

use super::SharedCache;
use crate::shared::Nonce;

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    from: Nonce,
    #[serde(rename = "news")]
    event: Event,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::service) enum Event {
    /// Everything was dropped.
    Purged { purge: Nonce },
    /// A space was dropped; where Unpod refused it, each replica may go on remembering that.
    Dropped {
        space: String,
        epoch: Nonce,
        #[serde(default)]
        refused: bool,
    },
    /// A list moved on.
    Moved {
        space: String,
        /// Its path below the space.
        list: String,
        generation: Nonce,
    },
    /// An operator wants the space dropped that the log calls so; who knows it drops it for all.
    Unwanted { fingerprint: String },
    /// Who filled a page has ended, with a page or without.
    Filled { page: String },
}

impl SharedCache {
    pub(super) fn message(&self, event: Event) -> Vec<u8> {
        to_bytes(self.redis.replica(), event)
    }

    /// What another replica told; what this one told itself is no event.
    pub(in crate::service) fn event(&self, message: &[u8]) -> Option<Event> {
        let message: Message = serde_json::from_slice(message).ok()?;
        (message.from != self.redis.replica()).then_some(message.event)
    }
}

pub(super) fn to_bytes(from: Nonce, event: Event) -> Vec<u8> {
    serde_json::to_vec(&Message { from, event }).expect("a message is plain JSON")
}
