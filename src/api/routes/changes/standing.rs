//! Whether one who was let in may still read a space: asked again of the policy in force, for as long as a request lasts.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};

use crate::{
    api::{
        Client, LivePolicy, Policy,
        key::{digest, scheme_and_word},
        layers::internal_auth::sole_authorization,
    },
    domain::{Collection, SpaceToken, View},
    peer::ClientCertificate,
    upstream::Credential,
};

/// What a client proved itself with.
#[derive(Debug)]
pub(super) struct Standing {
    policy: LivePolicy,
    space: SpaceToken,
    authorization: Option<HeaderValue>,
    certificate: Option<Arc<ClientCertificate>>,
}

/// What it may still do.
#[derive(Clone, Debug)]
pub(super) struct CurrentRight {
    pub(super) policy: Arc<Policy>,
    pub(super) view: Option<Arc<View>>,
    pub(super) credential: Arc<Credential>,
    /// `None`: as long as the configuration lets it.
    pub(super) expires_in: Option<Duration>,
}

impl Standing {
    pub(super) fn new(
        policy: LivePolicy,
        space: SpaceToken,
        headers: &HeaderMap,
        certificate: Option<Arc<ClientCertificate>>,
    ) -> Self {
        Self {
            policy,
            space,
            authorization: headers.get(AUTHORIZATION).cloned(),
            certificate: certificate.filter(|_| sole_authorization(headers).is_none()),
        }
    }

    /// The digest of the key or token that it proved itself with, under whichever scheme.
    pub(super) fn digest(&self) -> [u8; 32] {
        let authorization = self.authorization.as_ref().map(HeaderValue::as_bytes);
        let word = authorization.and_then(scheme_and_word);
        digest(word.map_or(b"", |(_, word)| word))
    }

    /// What the client may do now; `None`: it may not read the space any more.
    pub(super) fn right(&self) -> Option<CurrentRight> {
        let policy = self.policy.load_full();
        let client = self.client(&policy)?;
        let allowed = client.right(&self.space, Collection::TASKS.rows)?;
        let left = |until: SystemTime| until.duration_since(SystemTime::now()).unwrap_or_default();
        let expires_in = client.expires().map(left);
        Some(CurrentRight {
            expires_in,
            policy,
            view: allowed.view,
            credential: allowed.credential,
        })
    }

    fn client(&self, policy: &Policy) -> Option<Arc<Client>> {
        if let Some(certificate) = &self.certificate {
            let recognized = policy.clients.recognize(certificate, SystemTime::now());
            return recognized.ok().cloned();
        }
        let authorization = self.authorization.as_ref().map(HeaderValue::as_bytes);
        // It was verified when it came.
        let client = policy
            .clients
            .authenticate(authorization, SystemTime::now, |_| true);
        client.ok()
    }
}
