//! The API tokens the upstream is asked with, and which of them serves which space.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::HeaderValue;
use secrecy::ExposeSecret;

use super::{Circuit, Purse};
use crate::{
    config::{Problems, UpstreamConfig},
    domain::{CredentialId, SpaceToken},
};

/// One API token with its organization, as header values ready to send.
pub struct Credential {
    pub id: CredentialId,
    pub name: String,
    pub authorization: HeaderValue,
    pub org_handle: Option<HeaderValue>,
    refused: AtomicBool,
    purse: Arc<Purse>,
    circuit: Arc<Circuit>,
}

impl Credential {
    /// What decides what it sees: its token and organization.
    #[must_use]
    pub fn secret(&self) -> [&[u8]; 2] {
        let organization = self.org_handle.as_ref();
        [
            self.authorization.as_bytes(),
            organization.map_or(&[], HeaderValue::as_bytes),
        ]
    }

    /// The calls it may make.
    #[must_use]
    pub fn purse(&self) -> &Arc<Purse> {
        &self.purse
    }

    /// Whether the upstream is asked with it.
    #[must_use]
    pub fn circuit(&self) -> &Arc<Circuit> {
        &self.circuit
    }

    /// Whether the upstream refused it, and has taken it for no page since.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Notes whether the upstream takes it; `true` where that is news.
    pub fn set_refused(&self, refused: bool) -> bool {
        self.refused.swap(refused, Ordering::Relaxed) != refused
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// All credentials, by name and by the spaces they serve.
#[derive(Debug)]
pub struct Credentials {
    by_name: HashMap<String, Arc<Credential>>,
    by_space: HashMap<SpaceToken, Arc<Credential>>,
    default: Option<Arc<Credential>>,
}

impl Credentials {
    /// Reads every token, from its file where one is named.
    ///
    /// # Errors
    ///
    /// Returns a problem for each token that cannot be read or sent.
    pub fn load(config: &UpstreamConfig) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let mut by_name = HashMap::new();
        let mut by_space = HashMap::new();
        for (place, (name, section)) in config.credentials.iter().enumerate() {
            let key = format!("upstream.credentials.{name}");
            let Ok(place) = u16::try_from(place) else {
                problems.add(key, "too many credentials");
                break;
            };
            let token = match section.read_token() {
                Ok(token) => token,
                Err(text) => {
                    problems.add(key + ".token", text);
                    continue;
                }
            };
            let org_handle = section.org_handle.as_deref().map(HeaderValue::from_str);
            let authorization = HeaderValue::from_str(&format!("Token {}", token.expose_secret()));
            let (Ok(mut authorization), Ok(org_handle)) = (authorization, org_handle.transpose())
            else {
                problems.add(key, "cannot be sent as a header field");
                continue;
            };
            authorization.set_sensitive(true);
            let credential = Arc::new(Credential {
                id: CredentialId(place),
                name: name.clone(),
                authorization,
                org_handle,
                refused: AtomicBool::new(false),
                purse: Arc::new(Purse::new(config.quota_per_minute)),
                circuit: Arc::new(Circuit::new(&config.circuit)),
            });
            by_space.extend(
                section
                    .spaces
                    .iter()
                    .filter_map(|space| Some((SpaceToken::new(space).ok()?, credential.clone()))),
            );
            by_name.insert(name.clone(), credential);
        }
        if problems.is_empty() {
            Ok(Self {
                default: by_name.get("default").cloned(),
                by_name,
                by_space,
            })
        } else {
            Err(problems)
        }
    }

    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Credential>> {
        self.by_name.get(name)
    }

    /// The credential that serves `space`: the one that names it, else the default.
    #[must_use]
    pub fn serving(&self, space: &SpaceToken) -> Option<&Arc<Credential>> {
        self.by_space.get(space).or(self.default.as_ref())
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Credential>> {
        self.by_name.values()
    }
}
