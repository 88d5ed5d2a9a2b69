//! One client: what it may read, with which credential, through which view, and how often.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use crate::{
    api::rate_limit::{Limiter, RateLimit, take_all},
    config::ClientConfig,
    domain::{RowKind, SpaceToken, View, ViewSet},
    telemetry::metrics::Account,
    upstream::{Credential, Credentials},
};

/// A caller with an identity of its own.
#[derive(Debug)]
pub struct Client {
    /// Its name, and what its requests are counted under.
    pub account: Account,
    pub(super) spaces: AllowedSpaces,
    /// For all of its spaces, where one is named.
    credential: Option<Arc<Credential>>,
    /// Where it names none: all, of the same configuration.
    credentials: Arc<Credentials>,
    /// Whether it may cause upstream calls beyond those that an ordinary miss costs.
    pub may_refresh: bool,
    /// Whether it may mint browser tokens: not with one itself.
    pub may_mint: bool,
    /// All it sees of a task, where that is not everything.
    pub view: Option<ViewSet>,
    /// What `view` is called in the configuration, of a client that a token may be minted by.
    pub(super) view_name: Option<Arc<str>>,
    /// How often it may ask, the narrowest limit first; each is shared by all who draw on it.
    limiters: Vec<Arc<Limiter>>,
    pub(super) expires: Option<SystemTime>,
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
    pub(super) fn count(&self) -> u32 {
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
    /// The client of one configured section.
    pub(super) fn new(
        section: &ClientConfig,
        views: &HashMap<String, ViewSet>,
        credentials: &Arc<Credentials>,
    ) -> Self {
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
        Self {
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

    /// What it sees of rows of this kind: `Some(None)` all of them, `None` not even one.
    #[must_use]
    pub fn sees(&self, rows: RowKind) -> Option<Option<&Arc<View>>> {
        match &self.view {
            None => Some(None),
            Some(view) => view.of(rows).map(Some),
        }
    }

    /// This client, shown no more than what `view` and the view it has both show.
    #[must_use]
    pub fn seeing(self, view: &ViewSet) -> Self {
        let view = match &self.view {
            None => view.clone(),
            Some(own) => own.intersection(view),
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
    pub(super) fn in_browser(&self, spaces: &AllowedSpaces, until: SystemTime) -> Self {
        Self {
            may_refresh: false,
            may_mint: false,
            ..self.narrowed(spaces, until)
        }
    }

    pub(super) fn is_expired(&self, now: impl FnOnce() -> SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now())
    }
}
