//! What a verified token proves, whoever issued it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{client::AllowedSpaces, jwks::KeySet};

/// What a token proves.
#[derive(Clone, Debug)]
pub(super) struct Proof {
    /// The name of the client it speaks for.
    pub client: String,
    /// It reads no more than these.
    pub spaces: AllowedSpaces,
    pub expires: SystemTime,
    /// How much longer it is taken, for clocks that differ.
    pub leeway: Duration,
    /// The views it is bound to: it shows what all of them do.
    pub views: Vec<String>,
}

/// What proves a token.
#[derive(Clone, Debug)]
pub(super) enum ProvenBy {
    /// The identity provider, by one of these keys: the client itself sends it.
    Provider(Arc<KeySet>),
    /// The gateway: a client minted it for a browser.
    Gateway,
}
