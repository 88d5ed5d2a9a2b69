//! Who may call: the configured clients, found by the digest of their key, by a name in their certificate, or by a token that names
//! them.

use std::{
    cell::LazyCell,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use foldhash::quality::RandomState;

use super::{
    key::{digest, is_same, scheme_and_word},
    rate_limit::{Limiter, RateLimit, take_all},
};
use crate::{
    config::{ClientConfig, ViewsConfig, value::CertificateSubject},
    domain::{SpaceToken, View},
    peer::ClientCertificate,
    shared::{Link, SharedLimit},
    telemetry::metrics::{Account, AuthFailure},
    upstream::{Credential, Credentials},
};

mod browser_tokens;
mod jwks;
mod jwt;
mod signature;
mod tokens;

use self::tokens::{Proof, ProvenBy, Tokens};
pub use self::{
    browser_tokens::{BrowserTokens, Minted},
    jwks::{KeysHealth, KeysState},
    tokens::Issuers,
};

/// What a client's own limit is called towards it.
const CLIENT_LIMIT: &str = "default";

/// A caller with an identity of its own.
#[derive(Debug)]
pub struct Client {
    /// Its name, and what its requests are counted under.
    pub account: Account,
    spaces: AllowedSpaces,
    /// For all of its spaces, where one is named.
    credential: Option<Arc<Credential>>,
    /// Where it names none: all, of the same configuration.
    credentials: Arc<Credentials>,
    /// Whether it may cause upstream calls beyond those that an ordinary miss costs.
    pub may_refresh: bool,
    /// Whether it may mint browser tokens: not with one itself.
    pub may_mint: bool,
    /// All it sees of a task, where that is not everything.
    pub view: Option<Arc<View>>,
    /// What `view` is called in the configuration, of a client that a token may be minted by.
    view_name: Option<Arc<str>>,
    /// How often it may ask, the narrowest limit first; each is shared by all who draw on it.
    limiters: Vec<Arc<Limiter>>,
    expires: Option<SystemTime>,
}

/// The spaces a caller may read.
#[derive(Clone, Debug)]
pub enum AllowedSpaces {
    All,
    Named(HashSet<SpaceToken>),
}

impl AllowedSpaces {
    #[must_use]
    pub fn contains(&self, space: &SpaceToken) -> bool {
        match self {
            Self::All => true,
            Self::Named(named) => named.contains(space),
        }
    }

    /// How many are named.
    fn count(&self) -> u32 {
        match self {
            Self::All => 0,
            Self::Named(named) => u32::try_from(named.len()).unwrap_or(u32::MAX),
        }
    }

    /// What both allow.
    #[must_use]
    fn narrowed(&self, to: &Self) -> Self {
        match (self, to) {
            (Self::All, other) | (other, Self::All) => other.clone(),
            (Self::Named(ours), Self::Named(theirs)) => {
                Self::Named(ours.intersection(theirs).cloned().collect())
            }
        }
    }
}

impl Client {
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        self.account.client()
    }

    /// Whether it may read `space`.
    #[must_use]
    pub fn may_read(&self, space: &SpaceToken) -> bool {
        self.spaces.contains(space)
    }

    /// The credential its reading of `space` is done with.
    #[must_use]
    pub fn credential(&self, space: &SpaceToken) -> Option<&Arc<Credential>> {
        self.credential
            .as_ref()
            .or_else(|| self.credentials.serving(space))
    }

    /// This client as a token narrows it: under the same name, in no more than `spaces`, and no longer than `until`.
    #[must_use]
    pub fn narrowed(&self, spaces: &AllowedSpaces, until: SystemTime) -> Self {
        Self {
            account: self.account.clone(),
            spaces: self.spaces.narrowed(spaces),
            credential: self.credential.clone(),
            credentials: self.credentials.clone(),
            view: self.view.clone(),
            view_name: self.view_name.clone(),
            limiters: self.limiters.clone(),
            expires: Some(self.expires.map_or(until, |expires| expires.min(until))),
            ..*self
        }
    }

    /// This client, shown no more than what `view` and the view it has both show.
    #[must_use]
    pub fn seeing(self, view: &Arc<View>) -> Self {
        let view = match &self.view {
            None => view.clone(),
            Some(own) => Arc::new(own.intersection(view)),
        };
        Self {
            view: Some(view),
            ..self
        }
    }

    /// This client, held by `limiter` besides the limits it has.
    #[must_use]
    pub fn limited_by(mut self, limiter: Arc<Limiter>) -> Self {
        self.limiters.insert(0, limiter);
        self
    }

    /// Takes one request out of its budgets and says what is left; of a client without a limit, nothing.
    ///
    /// # Errors
    ///
    /// Returns the limit that is spent.
    pub async fn take_request(&self) -> Result<Vec<RateLimit>, RateLimit> {
        take_all(&self.limiters).await
    }

    /// This client as a browser stands for it: narrowed, and with none of its rights but to read.
    fn in_browser(&self, spaces: &AllowedSpaces, until: SystemTime) -> Self {
        Self {
            may_refresh: false,
            may_mint: false,
            ..self.narrowed(spaces, until)
        }
    }

    fn is_expired(&self, now: impl FnOnce() -> SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now())
    }
}

/// All clients, and the credentials their spaces are read with.
#[derive(Debug)]
pub struct Clients {
    by_digest: HashMap<[u8; 32], Arc<Client>, RandomState>,
    by_subject: HashMap<CertificateSubject, Arc<Client>>,
    by_name: HashMap<Arc<str>, Arc<Client>>,
    credentials: Arc<Credentials>,
    views: HashMap<String, Arc<View>>,
    /// By the name of the client that each belongs to.
    limiters: HashMap<Arc<str>, Arc<Limiter>>,
    tokens: Tokens,
}

impl Clients {
    /// Those that are configured, and those that tokens of `issuers` speak for. Of those of `previous` whose limit is the same what is
    /// left of it goes on, and a token that it has verified need not be verified again while the issuers are the same.
    #[must_use]
    pub fn new(
        configured: &[ClientConfig],
        views: &ViewsConfig,
        credentials: Credentials,
        issuers: Issuers,
        previous: Option<&Self>,
    ) -> Self {
        let credentials = Arc::new(credentials);
        let views: HashMap<_, _> = views
            .iter()
            .map(|(name, view)| {
                let fields = view.fields.iter().map(|field| &field.0);
                (name.clone(), Arc::new(View::new(fields)))
            })
            .collect();
        let mut by_digest = HashMap::default();
        let mut by_subject = HashMap::new();
        let mut by_name = HashMap::new();
        let mut limiters = HashMap::new();
        for section in configured {
            let mut client = client(section, &views, &credentials);
            // What it has under way counts on.
            if let Some(before) = previous.and_then(|clients| clients.by_name.get(client.name())) {
                client.account = before.account.clone();
            }
            if let Some(limit) = &section.rate_limit {
                let before = previous.and_then(|clients| clients.limiters.get(client.name()));
                let limiter = before
                    .filter(|limiter| limiter.config() == limit)
                    .cloned()
                    .unwrap_or_else(|| Arc::new(Limiter::new(CLIENT_LIMIT, limit)));
                limiters.insert(client.name().clone(), limiter.clone());
                client = client.limited_by(limiter);
            }
            let client = Arc::new(client);
            for digest in &section.key_sha256 {
                by_digest.insert(digest.0, client.clone());
            }
            if let Some(subject) = &section.certificate_subject {
                by_subject.insert(subject.clone(), client.clone());
            }
            by_name.insert(client.name().clone(), client);
        }
        Self {
            by_digest,
            by_subject,
            by_name,
            credentials,
            views,
            limiters,
            tokens: Tokens::new(issuers, previous.map(|previous| &previous.tokens)),
        }
    }

    /// The client that `authorization`, a field value, proves to be there.
    ///
    /// Every refusal of a key costs the same: one digest, one look-up, one comparison. What is no key and has the form of a token
    /// is verified as one, where it is not known already, says what it must, and `may_verify` allows the time that takes.
    ///
    /// # Errors
    ///
    /// Returns the reason, for metrics alone.
    pub fn authenticate(
        &self,
        authorization: Option<&[u8]>,
        now: impl FnOnce() -> SystemTime,
        may_verify: impl FnOnce(Duration) -> bool,
    ) -> Result<Arc<Client>, AuthFailure> {
        // Read at most once, and for every refusal: most keys end at no time, and a look at the clock is half a hundredth of a hit.
        let now = LazyCell::new(now);
        let presented = match authorization {
            None => Err(AuthFailure::Missing),
            Some(value) => key(value).ok_or(AuthFailure::Malformed),
        };
        let digest = digest(presented.unwrap_or_default());
        let known = self.by_digest.get_key_value(&digest);
        // The look-up ends early on a digest that differs, and tells nothing by it: who could choose digests would have
        // broken SHA-256. The comparison that admits is constant in time all the same.
        let (stored, client) = match known {
            Some((stored, client)) => (*stored, Some(client)),
            None => ([0; 32], None),
        };
        let same = is_same(&stored, &digest);
        let presented = presented?;
        let known = client.filter(|_| same);
        if let Some(client) = known.filter(|client| !client.is_expired(|| *now)) {
            return Ok(client.clone());
        }
        let admit = |proof: &Proof, by: &ProvenBy| self.admit(proof, by);
        let by_token = self
            .tokens
            .client(presented, digest, *now, may_verify, admit);
        // Not before: an expired key costs what an unknown one does.
        if known.is_some() {
            return Err(AuthFailure::Expired);
        }
        by_token.and_then(|client| {
            let is_expired = client.is_expired(|| *now);
            (!is_expired).then_some(client).ok_or(AuthFailure::Expired)
        })
    }

    /// The client that `certificate` names. None if it names two: the order of its names should decide nothing.
    ///
    /// # Errors
    ///
    /// Returns the reason, for metrics alone.
    pub fn recognize(
        &self,
        certificate: &ClientCertificate,
        now: SystemTime,
    ) -> Result<&Arc<Client>, AuthFailure> {
        let mut named = certificate
            .subjects
            .iter()
            .filter_map(|subject| self.by_subject.get(subject));
        let client = named.next().ok_or(AuthFailure::Unknown)?;
        if !named.all(|other| Arc::ptr_eq(other, client)) {
            return Err(AuthFailure::Unknown);
        }
        // A connection may outlive the certificate it began with.
        if certificate.not_after < now || client.is_expired(|| now) {
            return Err(AuthFailure::Expired);
        }
        Ok(client)
    }

    /// The client of a token's claims, as far as they let it go.
    fn admit(&self, proof: &Proof, proven_by: &ProvenBy) -> Result<Client, AuthFailure> {
        let client = self.by_name.get(proof.client.as_str());
        let client = client.ok_or(AuthFailure::UnknownClient)?;
        let until = proof.expires + proof.leeway;
        let admitted = match proven_by {
            ProvenBy::Provider(_) => client.narrowed(&proof.spaces, until),
            ProvenBy::Gateway => client.in_browser(&proof.spaces, until),
        };
        proof.views.iter().try_fold(admitted, |admitted, name| {
            // One that is gone must not show more.
            let view = self.view(name).ok_or(AuthFailure::BadClaims)?;
            Ok(admitted.seeing(view))
        })
    }

    #[must_use]
    pub fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }

    /// The configured client of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Client>> {
        self.by_name.get(name)
    }

    /// The view of this name. A token that names one that is gone must not be shown more for it.
    #[must_use]
    pub fn view(&self, name: &str) -> Option<&Arc<View>> {
        self.views.get(name)
    }

    /// Has the budgets drawn on by all replicas behind `link` together.
    pub fn share_limits(&self, link: &Arc<Link>) {
        for (client, limiter) in &self.limiters {
            limiter.share(|| SharedLimit::new(link.clone(), client));
        }
    }

    /// For the next configuration's clients, which may go on with the same keys.
    #[must_use]
    pub fn issuers(&self) -> &Issuers {
        self.tokens.issuers()
    }
}

fn client(
    section: &ClientConfig,
    views: &HashMap<String, Arc<View>>,
    credentials: &Arc<Credentials>,
) -> Client {
    let spaces = if section.spaces.iter().any(|space| space == "*") {
        AllowedSpaces::All
    } else {
        let named = section.spaces.iter();
        AllowedSpaces::Named(
            named
                .filter_map(|space| SpaceToken::new(space).ok())
                .collect(),
        )
    };
    Client {
        account: Account::new(section.name.as_str().into()),
        spaces,
        credential: section
            .credential
            .as_deref()
            .and_then(|name| credentials.named(name))
            .cloned(),
        credentials: credentials.clone(),
        may_refresh: section.may_refresh,
        view_name: section.view.as_deref().map(Into::into),
        view: section.view.as_ref().map(|name| {
            let view = views.get(name);
            view.expect("a client's view is checked to be there")
                .clone()
        }),
        limiters: Vec::new(),
        may_mint: true,
        expires: section.expires.map(|expires| expires.0),
    }
}

/// The key within `Token <key>` or `Bearer <key>`, the scheme in any case (RFC 9110 section 11.1).
fn key(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = scheme_and_word(value)?;
    let known = scheme.eq_ignore_ascii_case(b"token") || scheme.eq_ignore_ascii_case(b"bearer");
    known.then_some(key)
}

#[cfg(test)]
mod tests;
