//! Who may call: the configured clients, found by the digest of their key.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    config::{ClientConfig, ViewsConfig},
    domain::{SpaceToken, View},
    telemetry::metrics::AuthFailure,
    upstream::{Credential, Credentials},
};

/// A caller with an identity of its own.
#[derive(Debug)]
pub struct Client {
    pub name: Arc<str>,
    spaces: AllowedSpaces,
    /// For all of its spaces, where one is named.
    credential: Option<Arc<Credential>>,
    /// Where it names none: all, of the same configuration.
    credentials: Arc<Credentials>,
    /// Whether it may cause upstream calls beyond those that an ordinary miss costs.
    pub may_refresh: bool,
    /// All it sees of a task, where that is not everything.
    pub view: Option<Arc<View>>,
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

    /// This client as a token narrows it: under the same name, in no more than `spaces`.
    #[must_use]
    pub fn narrowed(&self, spaces: &AllowedSpaces) -> Self {
        Self {
            name: self.name.clone(),
            spaces: self.spaces.narrowed(spaces),
            credential: self.credential.clone(),
            credentials: self.credentials.clone(),
            view: self.view.clone(),
            ..*self
        }
    }

    /// This client, shown no more than `view` where it has no view of its own: its own always holds.
    #[must_use]
    pub fn seeing(self, view: &Arc<View>) -> Self {
        let view = self.view.unwrap_or_else(|| view.clone());
        Self {
            view: Some(view),
            ..self
        }
    }

    fn is_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// All clients, and the credentials their spaces are read with.
#[derive(Debug)]
pub struct Clients {
    by_digest: HashMap<[u8; 32], Arc<Client>>,
    credentials: Arc<Credentials>,
    views: HashMap<String, Arc<View>>,
}

impl Clients {
    #[must_use]
    pub fn new(configured: &[ClientConfig], views: &ViewsConfig, credentials: Credentials) -> Self {
        let credentials = Arc::new(credentials);
        let views: HashMap<_, _> = views
            .iter()
            .map(|(name, view)| {
                let fields = view.fields.iter().map(|field| &field.0);
                (name.clone(), Arc::new(View::new(fields)))
            })
            .collect();
        let mut by_digest = HashMap::new();
        for section in configured {
            let client = Arc::new(client(section, &views, &credentials));
            for digest in &section.key_sha256 {
                by_digest.insert(digest.0, client.clone());
            }
        }
        Self {
            by_digest,
            credentials,
            views,
        }
    }

    /// The client that `authorization`, a field value, proves to be there.
    ///
    /// Every refusal costs the same: one digest, one look-up, one comparison.
    ///
    /// # Errors
    ///
    /// Returns the reason, for metrics alone.
    pub fn authenticate(
        &self,
        authorization: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<&Arc<Client>, AuthFailure> {
        let presented = match authorization {
            None => Err(AuthFailure::Missing),
            Some(value) => key(value).ok_or(AuthFailure::Malformed),
        };
        let digest: [u8; 32] = Sha256::digest(presented.unwrap_or_default()).into();
        let known = self.by_digest.get_key_value(&digest);
        // The look-up ends early on a digest that differs, and tells nothing by it: who could choose digests would have
        // broken SHA-256. The comparison that admits is constant in time all the same.
        let (stored, client) = match known {
            Some((stored, client)) => (*stored, Some(client)),
            None => ([0; 32], None),
        };
        let same: bool = stored.ct_eq(&digest).into();
        presented?;
        let client = client.filter(|_| same).ok_or(AuthFailure::Unknown)?;
        if client.is_expired(now) {
            return Err(AuthFailure::Expired);
        }
        Ok(client)
    }

    #[must_use]
    pub fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }

    /// The view of this name. A token that names one that is gone must not be shown more for it.
    #[must_use]
    pub fn view(&self, name: &str) -> Option<&Arc<View>> {
        self.views.get(name)
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
        name: section.name.as_str().into(),
        spaces,
        credential: section
            .credential
            .as_deref()
            .and_then(|name| credentials.named(name))
            .cloned(),
        credentials: credentials.clone(),
        may_refresh: section.may_refresh,
        view: section.view.as_ref().map(|name| {
            let view = views.get(name);
            view.expect("a client's view is checked to be there")
                .clone()
        }),
        expires: section.expires.map(|expires| expires.0),
    }
}

/// The key within `Token <key>` or `Bearer <key>`, the scheme in any case (RFC 9110 section 11.1).
fn key(value: &[u8]) -> Option<&[u8]> {
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = value.split_at(space);
    let known = scheme.eq_ignore_ascii_case(b"token") || scheme.eq_ignore_ascii_case(b"bearer");
    let key = rest.trim_ascii();
    (known && !key.is_empty() && !key.contains(&b' ')).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// The clients of a configuration that has `toml` beside what it must have.
    fn clients(toml: &str) -> Clients {
        let text = format!(
            "[upstream]\nbase_url = 'https://unpod.example'\n\
             [upstream.credentials.default]\ntoken = 'abc'\n{toml}"
        );
        let config = Config::from_toml(&text).unwrap();
        let credentials = Credentials::load(&config.upstream).unwrap();
        Clients::new(&config.clients, &config.views, credentials)
    }

    /// A `[[clients]]` table whose key is its name.
    fn section(name: &str, rest: &str) -> String {
        let digest: String = Sha256::digest(name)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("[[clients]]\nname = '{name}'\nkey_sha256 = ['{digest}']\nspaces = ['*']\n{rest}\n")
    }

    fn named<'a>(clients: &'a Clients, name: &str) -> &'a Client {
        let authorization = format!("Token {name}");
        let found = clients.authenticate(Some(authorization.as_bytes()), SystemTime::UNIX_EPOCH);
        found.unwrap()
    }

    #[test]
    fn a_key_is_read_from_two_schemes_and_nowhere_else() {
        for (value, expected) in [
            ("Token abc", Some("abc")),
            ("bearer abc", Some("abc")),
            ("TOKEN   abc ", Some("abc")),
            ("Basic abc", None),
            ("Token", None),
            ("Token ", None),
            ("abc", None),
            ("Token a b", None),
            ("Tokenabc", None),
        ] {
            assert_eq!(
                key(value.as_bytes()),
                expected.map(str::as_bytes),
                "{value}"
            );
        }
    }

    #[test]
    fn a_view_holds_for_what_is_narrowed_and_another_takes_its_place_nowhere() {
        let views = "[views.public]\nfields = ['a']\n[views.wide]\nfields = ['a', 'b']\n";
        let viewed = section("viewed", "view = 'public'");
        let clients = clients(&format!("{views}{viewed}{}", section("whole", "")));
        let id = |client: &Client| client.view.as_ref().map(|view| view.id());
        let public = clients.view("public").unwrap();
        let wide = clients.view("wide").unwrap();
        let narrowed = |name| named(&clients, name).narrowed(&AllowedSpaces::All);

        assert_eq!(id(&narrowed("viewed")), Some(public.id()));
        assert_eq!(id(&narrowed("viewed").seeing(wide)), Some(public.id()));
        assert_eq!(id(&narrowed("whole")), None);
        assert_eq!(id(&narrowed("whole").seeing(wide)), Some(wide.id()));
        assert!(clients.view("nowhere").is_none());
    }
}
