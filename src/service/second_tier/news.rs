//! What replicas tell each other.

use serde::{Deserialize, Serialize};

use super::SecondTier;
use crate::shared::Nonce;

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    from: Nonce,
    news: News,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::service) enum News {
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
    Moved { space: String, generation: Nonce },
    /// An operator wants the space dropped that the log calls so; who knows it drops it for all.
    Unwanted { fingerprint: String },
    /// Who filled a page has ended, with a page or without.
    Filled { page: String },
}

impl SecondTier {
    pub(super) fn message(&self, news: News) -> Vec<u8> {
        to_bytes(self.link.replica(), news)
    }

    /// What another replica told; what this one told itself is no news.
    pub(in crate::service) fn news(&self, message: &[u8]) -> Option<News> {
        let message: Message = serde_json::from_slice(message).ok()?;
        (message.from != self.link.replica()).then_some(message.news)
    }
}

pub(super) fn to_bytes(from: Nonce, news: News) -> Vec<u8> {
    serde_json::to_vec(&Message { from, news }).expect("a message is plain JSON")
}
