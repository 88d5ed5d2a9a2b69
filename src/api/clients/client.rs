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

/// A client.
#[derive(Debug)]
pub struct Client {
    /// Its name and its metrics.
    pub account: Account,
    pub(super) spaces: AllowedSpaces,
    /// For all of its spaces, if one is configured.
    credential: Option<Arc<Credential>>,
    /// All credentials, to choose one by space otherwise.
    credentials: Arc<Credentials>,
    /// Whether it may force refreshes.
    pub may_refresh: bool,
    /// Whether it may mint browser tokens: not when it uses one.
    pub may_mint: bool,
    /// The members of a task that it sees; `None`: all.
    pub view: Option<ViewSet>,
    /// The configured name of `view`.
    pub(super) view_name: Option<Arc<str>>,
    /// Its rate limits, narrowest first, each shared by all requests it applies to.
    limiters: Vec<Arc<Limiter>>,
    pub(super) expires: Option<SystemTime>,
}

/// The spaces that a client may read.
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

    /// The spaces that both allow.
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

/// What a client may do with the lists of a space.
#[derive(Clone, Debug)]
pub struct Right {
    pub credential: Arc<Credential>,
    /// What it sees of the rows; `None`: all of them.
    pub view: Option<Arc<View>>,
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

    /// The credential to use for `space`.
    #[must_use]
    pub fn credential(&self, space: &SpaceToken) -> Option<&Arc<Credential>> {
        self.credential
            .as_ref()
            .or_else(|| self.credentials.serving(space))
    }

    /// This client narrowed by a token: the same name, only `spaces`, and only until `until`.
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

    /// What it may do with rows of this kind of `space`; `None`: it may not read them.
    #[must_use]
    pub fn right(&self, space: &SpaceToken, rows: RowKind) -> Option<Right> {
        if !self.may_read(space) {
            return None;
        }
        Some(Right {
            view: self.sees(rows)?.cloned(),
            // The configuration admits no client whose spaces have no credential.
            credential: self.credential(space)?.clone(),
        })
    }

    /// This client with only the members that both `view` and its own view show.
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

    /// This client with a further rate limit.
    #[must_use]
    pub fn limited_by(mut self, limiter: Arc<Limiter>) -> Self {
        self.limiters.insert(0, limiter);
        self
    }

    /// Takes one request from each of its rate limits and returns what is left of them.
    ///
    /// # Errors
    ///
    /// Returns the limit that is spent.
    pub async fn take_request(&self) -> Result<Vec<RateLimit>, RateLimit> {
        take_all(&self.limiters).await
    }

    /// This client for a browser token: narrowed, with the right to read only.
    pub(super) fn in_browser(&self, spaces: &AllowedSpaces, until: SystemTime) -> Self {
        Self {
            may_refresh: false,
            may_mint: false,
            ..self.narrowed(spaces, until)
        }
    }

    /// Until when it may read anything, if not for good.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    pub(super) fn is_expired(&self, now: impl FnOnce() -> SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now())
    }
}
