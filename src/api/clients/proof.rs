//! What a verified token proves, whoever issued it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{client::AllowedSpaces, jwks::KeySet};

/// What a token proves.
#[derive(Clone, Debug)]
pub(super) struct Proof {
    /// The name of the client.
    pub client: String,
    /// The spaces that it is limited to.
    pub spaces: AllowedSpaces,
    pub expires: SystemTime,
    /// How much longer it is accepted, for clock differences.
    pub leeway: Duration,
    /// Its views; only what all of them show is visible.
    pub views: Vec<String>,
}

/// Who issued a token.
#[derive(Clone, Debug)]
pub(super) enum ProvenBy {
    /// The identity provider, verified by one of these keys.
    Provider(Arc<KeySet>),
    /// The gateway, on behalf of a client, for a browser.
    Gateway,
}
