use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::{
    config::{Config, RateLimitConfig},
    domain::{RowKind, SpaceToken, ViewId},
};

pub(super) const NOW: u64 = 1_800_000_000;

pub(super) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
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

/// An identity provider whose keys lie in a file.
pub(super) struct Provider {
    key: EncodingKey,
    directory: tempfile::TempDir,
}

impl Provider {
    pub(super) fn new() -> Self {
        let provider = Self {
            key: private_key(),
            directory: tempfile::tempdir().unwrap(),
        };
        provider.publish(&provider.key);
        provider
    }

    fn publish(&self, key: &EncodingKey) {
        let mut key = Jwk::from_encoding_key(key, Algorithm::ES256).unwrap();
        key.common.key_id = Some("one".to_owned());
        std::fs::write(self.file(), json!({ "keys": [key] }).to_string()).unwrap();
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("jwks.json")
    }

    pub(super) fn config(&self) -> Config {
        let text = format!(
            r#"
            [upstream]
            base_url = "https://unpod.example"
            [upstream.credentials.default]
            token = "abc"
            [auth.jwt]
            issuer = "https://id.example"
            audience = "gateway"
            jwks_file = "{}"
            spaces_claim = "spaces"
            [[clients]]
            name = "crm"
            spaces = ["A", "B"]
            [[clients]]
            name = "dashboard"
            spaces = ["*"]
            [[clients]]
            name = "retired"
            spaces = ["*"]
            expires = "2020-01-01T00:00:00Z"
            "#,
            self.file().display()
        );
        Config::from_toml(&text).unwrap()
    }

    pub(super) fn token(&self, changes: &Value) -> String {
        let mut claims = json!({
            "iss": "https://id.example", "aud": "gateway", "sub": "crm", "spaces": "*", "exp": NOW + 60,
        });
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let header = Header {
            kid: Some("one".to_owned()),
            ..Header::new(Algorithm::ES256)
        };
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

fn private_key() -> EncodingKey {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    EncodingKey::from_ec_der(&pair.serialize_der())
}

pub(super) fn clients(config: &Config, running: Option<&Issuers>) -> Clients {
    let issuers = Issuers::load(&config.auth, running).unwrap();
    let credentials = Credentials::load(&config.upstream).unwrap();
    Clients::new(&config.clients, &config.views, credentials, issuers, None)
}

/// The clients of `config` after a reload of `before`.
fn successors(config: &Config, before: &Clients) -> Clients {
    let issuers = Issuers::load(&config.auth, Some(before.issuers())).unwrap();
    let credentials = Credentials::load(&config.upstream).unwrap();
    let before = Some(before);
    Clients::new(&config.clients, &config.views, credentials, issuers, before)
}

pub(super) fn asks(clients: &Clients, token: &str, now: u64) -> Result<Arc<Client>, AuthFailure> {
    let field = format!("Bearer {token}");
    clients.authenticate(Some(field.as_bytes()), || at(now), |_| true)
}

fn name(asked: Result<Arc<Client>, AuthFailure>) -> Result<String, AuthFailure> {
    asked.map(|client| client.name().to_string())
}

fn reads(client: &Client, space: &str) -> bool {
    client.may_read(&SpaceToken::new(space).unwrap())
}

#[tokio::test]
async fn a_token_speaks_for_its_client_in_no_more_than_its_spaces() {
    let provider = Provider::new();
    let clients = clients(&provider.config(), None);

    let client = asks(&clients, &provider.token(&json!({"spaces": "B C"})), NOW).unwrap();

    assert_eq!(&**client.name(), "crm");
    let readable = ["A", "B", "C"].map(|space| reads(&client, space));
    assert_eq!(readable, [false, true, false]);
}

#[tokio::test]
async fn tokens_of_one_header_and_two_subjects_are_two_clients() {
    let provider = Provider::new();
    let clients = clients(&provider.config(), None);
    let [one, two] = ["crm", "dashboard"].map(|name| provider.token(&json!({"sub": name})));
    assert_eq!(one.split('.').next(), two.split('.').next());
    for _ in 0..2 {
        assert_eq!(name(asks(&clients, &one, NOW)), Ok("crm".to_owned()));
        assert_eq!(name(asks(&clients, &two, NOW)), Ok("dashboard".to_owned()));
    }
}

#[tokio::test]
async fn no_token_passes_for_one_that_is_remembered() {
    let provider = Provider::new();
    let clients = clients(&provider.config(), None);
    let token = provider.token(&json!({}));
    asks(&clients, &token, NOW).unwrap();

    for place in 0..token.len() {
        let shorter = &token[..place];
        assert!(asks(&clients, shorter, NOW).is_err(), "{shorter}");
        let mut changed = token.clone().into_bytes();
        changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(asks(&clients, &changed, NOW).is_err(), "{changed}");
    }
    for suffix in ["A", "=", ".", ".AAAA", "\n."] {
        let longer = format!("{token}{suffix}");
        assert!(asks(&clients, &longer, NOW).is_err(), "{longer}");
    }
    assert!(asks(&clients, &token, NOW).is_ok());
}

#[tokio::test]
async fn a_remembered_token_ends_when_it_says() {
    let provider = Provider::new();
    let clients = clients(&provider.config(), None);
    let token = provider.token(&json!({"exp": NOW + 60}));
    for (now, expected) in [
        (NOW, Ok("crm".to_owned())),
        (NOW + 59, Ok("crm".to_owned())),
        // By the leeway for clocks that differ, and no longer from memory.
        (NOW + 60, Ok("crm".to_owned())),
        (NOW + 89, Ok("crm".to_owned())),
        (NOW + 90, Err(AuthFailure::Expired)),
        (NOW + 3600, Err(AuthFailure::Expired)),
    ] {
        assert_eq!(name(asks(&clients, &token, now)), expected, "{}", now - NOW);
    }
}

#[tokio::test]
async fn a_known_token_is_taken_where_no_other_is_verified() {
    let provider = Provider::new();
    let clients = clients(&provider.config(), None);
    let [known, fresh] = [600, 601].map(|life| provider.token(&json!({"exp": NOW + life})));
    asks(&clients, &known, NOW).unwrap();
    let asks_unverified = |token: &str| {
        let field = format!("Bearer {token}");
        name(clients.authenticate(Some(field.as_bytes()), || at(NOW), |_| false))
    };
    assert_eq!(asks_unverified(&known), Ok("crm".to_owned()));
    assert_eq!(asks_unverified(&fresh), Err(AuthFailure::RateLimited));
    assert_eq!(
        asks_unverified("ugw_no_such_key"),
        Err(AuthFailure::Unknown)
    );
}

#[tokio::test]
async fn whose_client_is_unknown_or_has_ended_is_refused() {
    let provider = Provider::new();
    let clients = clients(&provider.config(), None);
    for (subject, expected) in [
        ("nobody", AuthFailure::UnknownClient),
        ("CRM", AuthFailure::UnknownClient),
        ("retired", AuthFailure::Expired),
    ] {
        let token = provider.token(&json!({"sub": subject}));
        assert_eq!(
            name(asks(&clients, &token, NOW)),
            Err(expected),
            "{subject}"
        );
        assert_eq!(
            name(asks(&clients, &token, NOW)),
            Err(expected),
            "{subject}"
        );
    }
}

#[tokio::test]
async fn a_verdict_ends_with_the_clients_it_was_about() {
    let provider = Provider::new();
    let mut config = provider.config();
    let before = clients(&config, None);
    let token = provider.token(&json!({}));
    assert!(reads(&asks(&before, &token, NOW).unwrap(), "A"));

    config.clients[0].spaces = vec!["B".to_owned()];
    let narrower = successors(&config, &before);
    assert!(!reads(&asks(&narrower, &token, NOW).unwrap(), "A"));

    config.clients.remove(0);
    let without = successors(&config, &narrower);
    assert_eq!(
        name(asks(&without, &token, NOW)),
        Err(AuthFailure::UnknownClient)
    );
}

#[tokio::test]
async fn a_reload_has_no_token_verified_again_unless_the_issuers_are_others() {
    let provider = Provider::new();
    let mut config = provider.config();
    let before = clients(&config, None);
    let token = provider.token(&json!({"aud": ["gateway", "other"]}));
    asks(&before, &token, NOW).unwrap();
    let asks_unverified = |clients: &Clients| {
        let field = format!("Bearer {token}");
        name(clients.authenticate(Some(field.as_bytes()), || at(NOW), |_| false))
    };

    let same = successors(&config, &before);
    assert_eq!(asks_unverified(&same), Ok("crm".to_owned()));
    assert_eq!(asks_unverified(&same), Ok("crm".to_owned()), "remembered");

    config.auth.jwt.as_mut().unwrap().audience = "other".to_owned();
    let other = successors(&config, &same);
    assert_eq!(asks_unverified(&other), Err(AuthFailure::RateLimited));
    assert_eq!(name(asks(&other, &token, NOW)), Ok("crm".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_verdict_ends_with_the_key_that_proved_it() {
    let provider = Provider::new();
    let clients = clients(&provider.config(), None);
    let token = provider.token(&json!({}));
    asks(&clients, &token, NOW).unwrap();

    provider.publish(&private_key());
    clients.issuers().reload_keys();
    // They are read on another thread.
    let replaced = async {
        while asks(&clients, &token, NOW).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    replaced.await;

    assert_eq!(
        name(asks(&clients, &token, NOW)),
        Err(AuthFailure::BadSignature)
    );
}

#[tokio::test]
async fn keys_go_on_where_their_place_is_still_the_same() {
    let provider = Provider::new();
    let mut config = provider.config();
    let before = clients(&config, None);
    // Read again, it would be a problem.
    std::fs::write(provider.file(), "").unwrap();

    config.auth.jwt.as_mut().unwrap().audience = "other".to_owned();
    let after = clients(&config, Some(before.issuers()));

    let token = provider.token(&json!({"aud": "other"}));
    assert!(asks(&after, &token, NOW).is_ok());
    config.auth.jwt.as_mut().unwrap().algorithms.truncate(1);
    assert!(Issuers::load(&config.auth, Some(before.issuers())).is_err());
}

fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

#[tokio::test]
async fn each_forgery_has_its_reason() {
    let provider = Provider::new();
    let clients = clients(&provider.config(), None);
    let token = provider.token(&json!({}));
    let [header, claims, signature] =
        <[&str; 3]>::try_from(Vec::from_iter(token.split('.'))).unwrap();
    let under = |header: &Value| format!("{}.{claims}.{signature}", part(header));
    let published = std::fs::read(provider.file()).unwrap();
    let secret = EncodingKey::from_secret(&published);
    let mut symmetric = Header::new(Algorithm::HS256);
    symmetric.kid = Some("one".to_owned());
    let said: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    let table = [
        (format!("{header}.{claims}."), AuthFailure::Unknown),
        (format!("{header}.{claims}"), AuthFailure::Unknown),
        (format!("{header}..{signature}"), AuthFailure::Unknown),
        (format!("{token}.{signature}"), AuthFailure::Unknown),
        (
            format!("{header}.{claims}.{signature}="),
            AuthFailure::Unknown,
        ),
        ("ugw_0123456789abcdef".to_owned(), AuthFailure::Unknown),
        (
            "ugw_0123.ugw_4567.ugw_89ab".to_owned(),
            AuthFailure::Malformed,
        ),
        (format!("ugw_{token}"), AuthFailure::Malformed),
        ("e30.e30.e30".to_owned(), AuthFailure::Malformed),
        (
            under(&json!({"alg": "none", "kid": "one"})),
            AuthFailure::Malformed,
        ),
        (
            under(&json!({"alg": "NONE", "kid": "one"})),
            AuthFailure::Malformed,
        ),
        (
            under(&json!({"alg": "ES256", "kid": "one", "crit": ["exp"]})),
            AuthFailure::Malformed,
        ),
        (
            under(&json!({"alg": "ES256", "kid": "one", "typ": "logout+jwt"})),
            AuthFailure::Malformed,
        ),
        (
            under(&json!({"alg": "ES256", "kid": "two"})),
            AuthFailure::UnknownKey,
        ),
        (
            under(&json!({"alg": "ES256", "kid": "../one"})),
            AuthFailure::UnknownKey,
        ),
        (
            under(&json!({"alg": "EdDSA", "kid": "one"})),
            AuthFailure::WrongAlgorithm,
        ),
        (under(&json!({"alg": "RS256"})), AuthFailure::UnknownKey),
        (
            under(&json!({"alg": "HS256", "kid": "one"})),
            AuthFailure::WrongAlgorithm,
        ),
        (
            jsonwebtoken::encode(&symmetric, &said, &secret).unwrap(),
            AuthFailure::WrongAlgorithm,
        ),
        // The same key, but what is signed is not what is said.
        (
            under(&json!({"alg": "ES256", "kid": "one"})),
            AuthFailure::BadSignature,
        ),
        (
            format!(
                "{header}.{}.{signature}",
                part(&json!({
                    "iss": "https://id.example", "aud": "gateway", "sub": "dashboard", "spaces": "*", "exp": NOW + 60,
                }))
            ),
            AuthFailure::BadSignature,
        ),
        (
            format!("{header}.{claims}.{}", "A".repeat(86)),
            AuthFailure::BadSignature,
        ),
        (format!("{header}.{claims}.AAAA"), AuthFailure::BadSignature),
        (
            provider.token(&json!({"exp": "soon"})),
            AuthFailure::BadClaims,
        ),
    ];
    for (forged, expected) in table {
        assert_eq!(
            name(asks(&clients, &forged, NOW)),
            Err(expected),
            "{forged}"
        );
    }
}

#[tokio::test]
async fn what_need_not_be_verified_costs_no_verification() {
    let provider = Provider::new();
    let clients = clients(&provider.config(), None);
    let unverified = |token: &str| {
        let field = format!("Bearer {token}");
        let may_verify = |_| panic!("{token}");
        name(clients.authenticate(Some(field.as_bytes()), || at(NOW), may_verify))
    };
    let good = provider.token(&json!({}));
    let (_, rest) = good.split_once('.').unwrap();
    let under = |header: &Value| format!("{}.{rest}", part(header));
    for (token, expected) in [
        ("e30.e30.e30".to_owned(), AuthFailure::Malformed),
        (
            under(&json!({"alg": "HS256", "kid": "one"})),
            AuthFailure::WrongAlgorithm,
        ),
        (
            under(&json!({"alg": "RS256", "kid": "one"})),
            AuthFailure::WrongAlgorithm,
        ),
        (
            under(&json!({"alg": "ES256", "kid": "two"})),
            AuthFailure::UnknownKey,
        ),
        (
            provider.token(&json!({"exp": NOW - 60})),
            AuthFailure::Expired,
        ),
        (
            provider.token(&json!({"nbf": NOW + 60})),
            AuthFailure::NotYetValid,
        ),
        (
            provider.token(&json!({"iss": "x"})),
            AuthFailure::WrongIssuer,
        ),
        (
            provider.token(&json!({"aud": "x"})),
            AuthFailure::WrongAudience,
        ),
        (provider.token(&json!({"sub": 5})), AuthFailure::BadClaims),
    ] {
        assert_eq!(unverified(&token), Err(expected), "{token}");
    }
}

#[tokio::test]
async fn claims_that_are_no_object_are_bad_ones() {
    let provider = Provider::new();
    let clients = clients(&provider.config(), None);
    let header = Header {
        kid: Some("one".to_owned()),
        ..Header::new(Algorithm::ES256)
    };
    for claims in [json!([]), json!("crm"), json!(5), json!(null)] {
        let token = jsonwebtoken::encode(&header, &claims, &provider.key).unwrap();
        assert_eq!(
            name(asks(&clients, &token, NOW)),
            Err(AuthFailure::BadClaims),
            "{claims}"
        );
    }
}

/// The clients of a configuration that has `toml` beside what it must have.
fn clients_of(toml: &str) -> Clients {
    reloaded(toml, None)
}

fn reloaded(toml: &str, previous: Option<&Clients>) -> Clients {
    let text = format!(
        "[upstream]\nbase_url = 'https://unpod.example'\n\
         [upstream.credentials.default]\ntoken = 'abc'\n{toml}"
    );
    let config = Config::from_toml(&text).unwrap();
    let credentials = Credentials::load(&config.upstream).unwrap();
    let issuers = Issuers::load(&config.auth, None).unwrap();
    Clients::new(
        &config.clients,
        &config.views,
        credentials,
        issuers,
        previous,
    )
}

/// A `[[clients]]` table whose key is its name.
fn section(name: &str, rest: &str) -> String {
    let digest: String = Sha256::digest(name)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("[[clients]]\nname = '{name}'\nkey_sha256 = ['{digest}']\nspaces = ['*']\n{rest}\n")
}

fn named(clients: &Clients, name: &str) -> Arc<Client> {
    let authorization = format!("Token {name}");
    let now = SystemTime::UNIX_EPOCH;
    let found = clients.authenticate(Some(authorization.as_bytes()), || now, |_| true);
    found.unwrap()
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
    let issuers = Issuers::load(&config.auth, None).unwrap();
    Clients::new(&clients, &config.views, credentials, issuers, None)
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
        let named = named.map(|client| client.name().as_ref());
        assert_eq!(named, *expected, "{subjects:?} at {now}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_limit_outlives_a_reload_that_leaves_it_alone() {
    let limited = |name, burst| {
        let rest = format!("rate_limit = {{ per_second = 1, burst = {burst} }}");
        section(name, &rest)
    };
    let left = async |clients: &Clients, name: &str| {
        let limits = named(clients, name).take_request().await.unwrap();
        limits
            .iter()
            .map(|limit| limit.remaining)
            .collect::<Vec<_>>()
    };
    let before = clients_of(&(limited("same", 5) + &limited("changed", 5) + &limited("freed", 5)));
    for name in ["same", "changed", "freed"] {
        assert_eq!(left(&before, name).await, [4]);
    }

    let toml = limited("new", 5) + &limited("changed", 9) + &limited("same", 5);
    let after = reloaded(&(toml + &section("freed", "")), Some(&before));

    assert_eq!(left(&after, "same").await, [3]);
    assert_eq!(
        left(&before, "same").await,
        [2],
        "requests under way draw on it too"
    );
    assert_eq!(left(&after, "changed").await, [8]);
    assert_eq!(left(&after, "new").await, [4]);
    assert!(left(&after, "freed").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_narrowed_draws_on_the_limit_of_its_origin_and_on_its_own() {
    let clients = clients_of(&section(
        "minter",
        "rate_limit = { per_second = 1, burst = 3 }",
    ));
    let minter = named(&clients, "minter");
    let own = RateLimitConfig {
        per_second: 1.0,
        burst: 2.try_into().unwrap(),
    };
    let own = Arc::new(Limiter::new("token", &own));
    let token = minter
        .narrowed(&AllowedSpaces::All, at(NOW))
        .limited_by(own);
    let left = async |client: &Client| {
        let limits = client.take_request().await;
        limits.map(|limits| {
            limits
                .iter()
                .map(|limit| limit.remaining)
                .collect::<Vec<_>>()
        })
    };

    assert_eq!(left(&token).await, Ok(vec![1, 2]));
    assert_eq!(left(&minter).await, Ok(vec![1]));
    assert_eq!(left(&token).await, Ok(vec![0, 0]));
    assert_eq!(left(&token).await.unwrap_err().policy, "token");
    assert_eq!(left(&minter).await.unwrap_err().policy, CLIENT_LIMIT);
}

fn task_view(view: &ViewSet) -> ViewId {
    view.of(RowKind::Task).unwrap().id()
}

#[test]
fn a_view_holds_for_what_is_narrowed_and_another_only_narrows_it() {
    let views = "[views.public]\nfields = ['a']\n[views.wide]\nfields = ['a', 'b']\n[views.other]\nfields = ['b']\n";
    let viewed = section("viewed", "view = 'public'");
    let clients = clients_of(&format!("{views}{viewed}{}", section("whole", "")));
    let id = |client: &Client| client.view.as_ref().map(task_view);
    let public = clients.view("public").unwrap();
    let wide = clients.view("wide").unwrap();
    let narrowed = |name| named(&clients, name).narrowed(&AllowedSpaces::All, at(NOW));

    assert_eq!(id(&narrowed("viewed")), Some(task_view(public)));
    assert_eq!(
        id(&narrowed("viewed").seeing(wide)),
        Some(task_view(public))
    );
    let other = clients.view("other").unwrap();
    let neither = id(&narrowed("viewed").seeing(other)).unwrap();
    assert!(neither != task_view(public) && neither != task_view(other));
    assert_eq!(id(&narrowed("whole")), None);
    assert_eq!(id(&narrowed("whole").seeing(wide)), Some(task_view(wide)));
    assert!(clients.view("nowhere").is_none());
}
