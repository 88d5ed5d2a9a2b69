//! Who may call: the configured clients, found by the digest of their key or by a name in their certificate.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::rate_limit::{Limiter, RateLimit, take_all};
use crate::{
    api::peer::ClientCertificate,
    config::{ClientConfig, ViewsConfig, value::CertificateSubject},
    domain::{SpaceToken, View},
    telemetry::metrics::AuthFailure,
    upstream::{Credential, Credentials},
};

/// What a client's own limit is called towards it.
const CLIENT_LIMIT: &str = "default";

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
            limiters: self.limiters.clone(),
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
    pub fn take_request(&self) -> Result<Vec<RateLimit>, RateLimit> {
        take_all(&self.limiters)
    }

    fn is_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// All clients, and the credentials their spaces are read with.
#[derive(Debug)]
pub struct Clients {
    by_digest: HashMap<[u8; 32], Arc<Client>>,
    by_subject: HashMap<CertificateSubject, Arc<Client>>,
    credentials: Arc<Credentials>,
    views: HashMap<String, Arc<View>>,
    /// By the name of the client that each belongs to.
    limiters: HashMap<Arc<str>, Arc<Limiter>>,
}

impl Clients {
    /// The clients that are configured. Those of `previous` whose limit is the same keep what is left of it.
    #[must_use]
    pub fn new(
        configured: &[ClientConfig],
        views: &ViewsConfig,
        credentials: Credentials,
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
        let mut by_digest = HashMap::new();
        let mut by_subject = HashMap::new();
        let mut limiters = HashMap::new();
        for section in configured {
            let mut client = client(section, &views, &credentials);
            if let Some(limit) = &section.rate_limit {
                let before = previous.and_then(|clients| clients.limiters.get(&client.name));
                let limiter = before
                    .filter(|limiter| limiter.config() == limit)
                    .cloned()
                    .unwrap_or_else(|| Arc::new(Limiter::new(CLIENT_LIMIT, limit)));
                limiters.insert(client.name.clone(), limiter.clone());
                client = client.limited_by(limiter);
            }
            let client = Arc::new(client);
            for digest in &section.key_sha256 {
                by_digest.insert(digest.0, client.clone());
            }
            if let Some(subject) = &section.certificate_subject {
                by_subject.insert(subject.clone(), client);
            }
        }
        Self {
            by_digest,
            by_subject,
            credentials,
            views,
            limiters,
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
        if certificate.not_after < now || client.is_expired(now) {
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
        limiters: Vec::new(),
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
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::config::{Config, RateLimitConfig};

    /// The clients of a configuration that has `toml` beside what it must have.
    fn clients(toml: &str) -> Clients {
        reloaded(toml, None)
    }

    fn reloaded(toml: &str, previous: Option<&Clients>) -> Clients {
        let text = format!(
            "[upstream]\nbase_url = 'https://unpod.example'\n\
             [upstream.credentials.default]\ntoken = 'abc'\n{toml}"
        );
        let config = Config::from_toml(&text).unwrap();
        let credentials = Credentials::load(&config.upstream).unwrap();
        Clients::new(&config.clients, &config.views, credentials, previous)
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

    /// Seconds since 1970.
    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Clients known by these names; the last is one until second 50.
    fn certified() -> Clients {
        let upstream = "[upstream]\nbase_url = 'https://unpod.example'\n[upstream.credentials.default]\ntoken = 'abc'";
        let config = Config::from_toml(upstream).unwrap();
        let client = |name: &str, rest: &str| -> ClientConfig {
            let text = format!("name = '{name}'\nspaces = ['*']\n{rest}");
            toml::from_str(&text).unwrap()
        };
        let clients = [
            client("uri", "certificate_subject = 'urn:one'"),
            client("dns", "certificate_subject = 'one.internal'"),
            client(
                "expiring",
                "certificate_subject = 'two.internal'\nexpires = '1970-01-01T00:00:50Z'",
            ),
        ];
        let credentials = Credentials::load(&config.upstream).unwrap();
        Clients::new(&clients, &config.views, credentials, None)
    }

    #[test]
    fn a_certificate_names_one_client_for_as_long_as_both_last() {
        let clients = certified();
        let table: &[(&[&str], u64, Result<&str, AuthFailure>)] = &[
            (&["urn:one"], 10, Ok("uri")),
            (&["urn:other", "CN=x", "urn:one"], 10, Ok("uri")),
            (&["one.internal", "ONE.internal"], 10, Ok("dns")),
            (&["two.internal"], 49, Ok("expiring")),
            (&["two.internal"], 50, Err(AuthFailure::Expired)),
            (&["urn:one"], 100, Ok("uri")),
            (&["urn:one"], 101, Err(AuthFailure::Expired)),
            (&[], 10, Err(AuthFailure::Unknown)),
            (&["one"], 10, Err(AuthFailure::Unknown)),
            (&["CN=one.internal"], 10, Err(AuthFailure::Unknown)),
            (&["urn:one", "one.internal"], 10, Err(AuthFailure::Unknown)),
        ];
        for (subjects, now, expected) in table {
            let certificate = ClientCertificate {
                subjects: subjects.iter().map(|name| name.parse().unwrap()).collect(),
                not_after: at(100),
            };
            let named = clients.recognize(&certificate, at(*now));
            let named = named.map(|client| client.name.as_ref());
            assert_eq!(named, *expected, "{subjects:?} at {now}");
        }
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

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_limit_outlives_a_reload_that_leaves_it_alone() {
        let limited = |name, burst| {
            let rest = format!("rate_limit = {{ per_second = 1, burst = {burst} }}");
            section(name, &rest)
        };
        let left = |clients: &Clients, name| {
            let limits = named(clients, name).take_request().unwrap();
            limits
                .iter()
                .map(|limit| limit.remaining)
                .collect::<Vec<_>>()
        };
        let before = clients(&(limited("same", 5) + &limited("changed", 5) + &limited("freed", 5)));
        for name in ["same", "changed", "freed"] {
            assert_eq!(left(&before, name), [4]);
        }

        let toml = limited("new", 5) + &limited("changed", 9) + &limited("same", 5);
        let after = reloaded(&(toml + &section("freed", "")), Some(&before));

        assert_eq!(left(&after, "same"), [3]);
        assert_eq!(
            left(&before, "same"),
            [2],
            "requests under way draw on it too"
        );
        assert_eq!(left(&after, "changed"), [8]);
        assert_eq!(left(&after, "new"), [4]);
        assert!(left(&after, "freed").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_narrowed_draws_on_the_limit_of_its_origin_and_on_its_own() {
        let clients = clients(&section(
            "minter",
            "rate_limit = { per_second = 1, burst = 3 }",
        ));
        let minter = named(&clients, "minter");
        let own = RateLimitConfig {
            per_second: 1.0,
            burst: 2.try_into().unwrap(),
        };
        let own = Arc::new(Limiter::new("token", &own));
        let token = minter.narrowed(&AllowedSpaces::All).limited_by(own);
        let left = |client: &Client| {
            let limits = client.take_request();
            limits.map(|limits| {
                limits
                    .iter()
                    .map(|limit| limit.remaining)
                    .collect::<Vec<_>>()
            })
        };

        assert_eq!(left(&token), Ok(vec![1, 2]));
        assert_eq!(left(minter), Ok(vec![1]));
        assert_eq!(left(&token), Ok(vec![0, 0]));
        assert_eq!(left(&token).unwrap_err().policy, "token");
        assert_eq!(left(minter).unwrap_err().policy, CLIENT_LIMIT);
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
