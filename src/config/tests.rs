use std::{collections::BTreeSet, io::Write, time::Duration};

use secrecy::ExposeSecret;
use toml::{Table, Value as Toml};

use super::{
    auth::ClientConfig, normalize::RuleCode, reader::SECTIONS, routes::UnknownParameters, *,
};

/// What every later version must take too.
const KEYS: &str = include_str!("../../tests/data/config-keys.toml");

const MINIMAL: &str = r#"
    [upstream]
    base_url = "https://unpod.example"

    [upstream.credentials.default]
    token = "0123456789abcdef"

    [[clients]]
    name = "crm"
    key_sha256 = ["0000000000000000000000000000000000000000000000000000000000000001"]
    spaces = ["*"]
"#;

/// The minimal file with the value at each dotted path set; a number in a path is a place in a list.
fn with(changes: &[(&str, &str)]) -> String {
    let mut table: Toml = Toml::Table(toml::from_str(MINIMAL).unwrap());
    for (path, value) in changes {
        let mut value: Table = toml::from_str(&format!("value = {value}")).unwrap();
        set(&mut table, path, value.remove("value").unwrap());
    }
    toml::to_string(&table).unwrap()
}

fn set(root: &mut Toml, path: &str, value: Toml) {
    let mut at = root;
    for part in path.split('.') {
        at = match part.parse::<usize>() {
            Ok(place) => {
                if !at.is_array() {
                    *at = Toml::Array(Vec::new());
                }
                let list = at.as_array_mut().unwrap();
                if list.len() <= place {
                    list.resize(place + 1, Toml::Table(Table::new()));
                }
                &mut list[place]
            }
            Err(_) => {
                if !at.is_table() {
                    *at = Toml::Table(Table::new());
                }
                at.as_table_mut()
                    .unwrap()
                    .entry(part)
                    .or_insert_with(|| Toml::Table(Table::new()))
            }
        };
    }
    *at = value;
}

fn refused(text: &str) -> Vec<Problem> {
    match Config::from_toml(text) {
        Ok(_) => panic!("taken: {text}"),
        Err(problems) => problems.iter().cloned().collect(),
    }
}

fn keys_of(problems: &[Problem]) -> Vec<&str> {
    problems
        .iter()
        .map(|problem| problem.key.as_str())
        .collect()
}

fn from_environment(variables: &[(&str, &str)]) -> Result<Config, Problems> {
    let variables = variables
        .iter()
        .map(|(name, value)| (format!("UNPOD_GATEWAY__{name}"), value));
    Config::from_sources(Some(MINIMAL), variables)
}

/// Every value of a table that is none itself, by its dotted path.
fn leaves(table: &Table) -> Vec<(String, Toml)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Toml::Table(inner) => found.extend(
                leaves(inner)
                    .into_iter()
                    .map(|(path, value)| (format!("{key}.{path}"), value)),
            ),
            other => found.push((key.clone(), other.clone())),
        }
    }
    found
}

#[test]
fn a_minimal_file_is_enough() {
    let config = Config::from_toml(MINIMAL).unwrap();
    assert_eq!(
        config.upstream.base_url().as_str(),
        "https://unpod.example/"
    );
    assert_eq!(config.cache.ttl, Duration::from_secs(30));
    assert_eq!(config.cache.max_bytes, 256 << 20);
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
    let ClientConfig {
        name, may_refresh, ..
    } = &config.clients[0];
    assert_eq!((name.as_str(), *may_refresh), ("crm", false));
    assert!(config.normalize.rules.is_empty());
}

#[test]
fn the_shipped_defaults_are_the_published_keys() {
    let parse = |text: &str| -> Vec<_> { leaves(&toml::from_str(text).unwrap()) };
    assert_eq!(parse(DEFAULTS), parse(KEYS));
}

#[test]
fn defaults_alone_lack_only_what_must_be_given() {
    let problems = refused("");
    assert_eq!(
        keys_of(&problems),
        ["upstream.base_url", "upstream.credentials.default"]
    );
}

#[test]
fn every_rule_refuses_under_its_key() {
    let client = "clients[0].";
    let digest = |last: char| format!("{}{last}", "0".repeat(63));
    let three = format!("['{}', '{}', '{}']", digest('2'), digest('3'), digest('4'));
    let long_name = format!("'{}'", "n".repeat(65));
    let deep_path = format!("['a{}']", ".a".repeat(32));
    let many_views: Vec<_> = (0..33)
        .map(|n| format!("v{n} = {{fields = ['a']}}"))
        .collect();
    let many_views = format!("{{{}}}", many_views.join(", "));
    let same_twice = format!("['{0}', '{0}']", digest('1'));
    let table: &[(&str, &str, &str)] = &[
        ("server.header_read_timeout", "'0s'", ""),
        ("server.idle_timeout", "'0s'", ""),
        ("server.request_timeout", "'0s'", ""),
        ("server.request_timeout", "'15'", ""),
        ("server.request_timeout", "15", ""),
        ("server.max_connections", "0", ""),
        ("server.max_connections", "-1", ""),
        ("server.max_connections", "9223372036854775807", ""),
        ("server.max_in_flight", "0", ""),
        ("server.max_header_bytes", "'8191B'", ""),
        ("server.max_header_bytes", "16384", ""),
        ("server.workers", "1025", ""),
        ("server.listen", "'localhost'", ""),
        ("server.listen", "'unix:relative'", ""),
        (
            "server.trusted_proxies",
            "['10.0.0.0/33']",
            "server.trusted_proxies[0]",
        ),
        (
            "server.trusted_proxies",
            "['10.0.0.0/8', 'x']",
            "server.trusted_proxies[1]",
        ),
        ("server.proxy_protocol", "'yes'", ""),
        ("server.proxy_protocol", "true", ""),
        ("server.tls", "'/certificate.pem'", ""),
        ("admin.listen", "'0.0.0.0:9090'", "admin.key_sha256"),
        ("admin.listen", "'[::]:9090'", "admin.key_sha256"),
        ("admin.key_sha256", "[]", ""),
        ("admin.key_sha256", three.as_str(), ""),
        ("admin.key_sha256", "['00']", "admin.key_sha256[0]"),
        (
            "admin.key_sha256",
            "['0000000000000000000000000000000000000000000000000000000000000001']",
            "clients[0].key_sha256",
        ),
        ("auth.max_failures", "-1", ""),
        ("cors.origins", "'https://app.example.com'", ""),
        ("cors.origins", "['*']", "cors.origins[0]"),
        (
            "cors.origins",
            "['https://app.example.com', 'https://app.example.com/']",
            "cors.origins[1]",
        ),
        ("cors.origins", "[5]", "cors.origins[0]"),
        ("cors.allow_headers", "'x-my-trace'", ""),
        ("cors.allow_headers", "[5]", "cors.allow_headers[0]"),
        ("cors.allow_headers", "['*']", "cors.allow_headers[0]"),
        (
            "cors.allow_headers",
            "['x-my-trace', 'Cookie']",
            "cors.allow_headers[1]",
        ),
        (
            "cors.allow_headers",
            "['b3', 'x-my-trace', 'x my trace']",
            "cors.allow_headers[2]",
        ),
        ("auth.jwt", "'x'", ""),
        ("auth.browser_tokens", "'x'", ""),
        ("routes.tasks.max_page_size", "0", ""),
        ("routes.tasks.newest_max", "0", ""),
        ("routes.tasks.newest_max", "10001", ""),
        ("routes.tasks.unknown_parameters", "'drop'", ""),
        ("upstream.base_url", "'unpod.example'", ""),
        ("upstream.base_url", "'http://unpod.example'", ""),
        ("upstream.base_url", "'http://127.0.0.1.example'", ""),
        ("upstream.base_url", "'ftp://unpod.example'", ""),
        ("upstream.base_url", "'https://user@unpod.example'", ""),
        ("upstream.base_url", "'https://:word@unpod.example'", ""),
        ("upstream.base_url", "'https://unpod.example/?a=b'", ""),
        ("upstream.base_url", "'https://unpod.example/#a'", ""),
        ("upstream.base_url", "'file:///etc'", ""),
        ("upstream.connect_timeout", "'0ms'", ""),
        ("upstream.connection_max_age", "'0s'", ""),
        ("upstream.timeout", "'0s'", ""),
        ("upstream.max_concurrency", "0", ""),
        ("upstream.max_concurrency", "1025", ""),
        ("upstream.max_body", "'0B'", ""),
        ("upstream.fill_size", "1001", ""),
        ("upstream.fill_size", "-1", ""),
        ("upstream.retries", "11", ""),
        ("upstream.retry_budget", "1.01", ""),
        ("upstream.retry_budget", "-0.01", ""),
        ("upstream.retry_budget", "nan", ""),
        ("upstream.quota_per_minute", "4294967296", ""),
        ("upstream.ca_file", "'/nowhere/ca.pem'", ""),
        ("upstream.proxy", "'nowhere'", ""),
        ("upstream.circuit.failure_ratio", "inf", ""),
        ("upstream.circuit.min_calls", "0", ""),
        ("upstream.circuit.min_calls", "1001", ""),
        ("upstream.circuit.window", "'0s'", ""),
        ("upstream.circuit.open_for", "'0s'", ""),
        ("upstream.credentials.default.token", "''", ""),
        ("upstream.credentials.default.token", "'two words'", ""),
        ("upstream.credentials.default.token", "'tokén'", ""),
        ("upstream.credentials.default.token", "5", ""),
        (
            "upstream.credentials.default.token_file",
            "'/nowhere/token'",
            // Beside a token.
            "upstream.credentials.default.token",
        ),
        (
            "upstream.credentials.default",
            "{token_file = '/nowhere/token'}",
            "upstream.credentials.default.token_file",
        ),
        (
            "upstream.credentials.default",
            "{}",
            "upstream.credentials.default.token",
        ),
        ("upstream.credentials.default.org_handle", "''", ""),
        ("upstream.credentials.default.org_handle", "'a b'", ""),
        (
            "upstream.credentials.default.spaces",
            "['A', 'a/b']",
            "upstream.credentials.default.spaces[1]",
        ),
        (
            "upstream.credentials.default.spaces",
            "['*']",
            "upstream.credentials.default.spaces[0]",
        ),
        ("upstream.credentials", "{}", "upstream.credentials.default"),
        ("upstream", "'x'", ""),
        ("cache", "5", ""),
        ("cache.max_bytes", "'63KiB'", ""),
        ("cache.jitter", "1.1", ""),
        ("cache.ttl", "'30 bananas'", ""),
        ("cache.ttl", "'-30s'", ""),
        ("cache.ttl", "'11years'", ""),
        ("cache.negative_ttl", "'500000000000years'", ""),
        ("cache.rejected_ttl", "'500000000000years'", ""),
        ("cache.stale_while_revalidate", "'500000000000years'", ""),
        ("cache.stale_if_error", "'500000000000years'", ""),
        ("cache.client_max_age", "'500000000000years'", ""),
        ("cache.settled_ttl", "'500000000000years'", ""),
        ("cache.settled_after", "'500000000000years'", ""),
        ("cache.stretch_max", "'500000000000years'", ""),
        ("cache.obey_upstream", "'yes'", ""),
        ("cache.final_states", "[1]", "cache.final_states[0]"),
        ("telemetry.format", "'xml'", ""),
        ("telemetry.filter", "'a=b=c'", ""),
        ("clients", "'crm'", ""),
        ("clients", "['crm']", "clients[0]"),
        ("clients.0.name", "''", client),
        ("clients.0.name", "5", client),
        ("clients.0.spaces", "'*'", client),
        ("clients.0.name", "'a b'", client),
        ("clients.0.name", long_name.as_str(), client),
        ("clients.0.key_sha256", "[]", client),
        ("clients.0.key_sha256", three.as_str(), client),
        ("clients.0.key_sha256", same_twice.as_str(), client),
        (
            "clients.0.key_sha256",
            "['abc']",
            "clients[0].key_sha256[0]",
        ),
        ("clients.0.spaces", "[]", client),
        ("clients.0.spaces", "['*', 'SPACE']", client),
        ("clients.0.spaces", "['a/b']", "clients[0].spaces[0]"),
        ("clients.0.credential", "'other'", client),
        ("clients.0.expires", "'tomorrow'", client),
        ("clients.0.expires", "2027-01-01T00:00:00Z", client),
        ("clients.0.may_refresh", "1", client),
        ("clients.0.certificate_subject", "''", client),
        ("clients.0.certificate_subject", "' crm'", client),
        ("clients.0.certificate_subject", "'cn = crm'", client),
        ("clients.0.certificate_subject", "['crm']", client),
        // Nobody is asked for a certificate.
        ("clients.0.certificate_subject", "'spiffe://x'", client),
        ("clients.0.rate_limit", "50", client),
        (
            "clients.0.rate_limit",
            "{per_second = 50}",
            "clients[0].rate_limit.burst",
        ),
        (
            "clients.0.rate_limit",
            "{burst = 50}",
            "clients[0].rate_limit.per_second",
        ),
        (
            "clients.0.rate_limit",
            "{per_second = 1, burst = 1, window = 1}",
            "clients[0].rate_limit.window",
        ),
        ("clients.0.view", "'nowhere'", client),
        ("clients.0.view", "5", client),
        ("views", "['public']", ""),
        ("views", "{public = 'task_id'}", "views.public"),
        ("views", "{public = {}}", "views.public.fields"),
        (
            "views.public",
            "{fields = ['a'], hidden = 1}",
            "views.public.hidden",
        ),
        ("views.public.fields", "[]", ""),
        ("views.public.fields", "'task_id'", ""),
        ("views.public.fields", "['']", "views.public.fields[0]"),
        (
            "views.public.fields",
            "['a', 'b..c']",
            "views.public.fields[1]",
        ),
        ("views.public.fields", "[[]]", "views.public.fields[0]"),
        ("views.public.fields", "[5]", "views.public.fields[0]"),
        (
            "views.public.fields",
            deep_path.as_str(),
            "views.public.fields[0]",
        ),
        (
            "views",
            "{public = {fields = ['a'], runs = {}}}",
            "views.public.runs.fields",
        ),
        (
            "views",
            "{public = {fields = ['a'], runs = {fields = []}}}",
            "views.public.runs.fields",
        ),
        ("views", "{'a b' = {fields = ['a']}}", "views.a b"),
        ("views", many_views.as_str(), ""),
        ("normalize", "[]", "normalize"),
        ("normalize.rules", "{}", "normalize.rules"),
        (
            "normalize.rules",
            "[{contains = 'a', code = 'not_a_code'}]",
            "normalize.rules[0].code",
        ),
        (
            "normalize.rules",
            "[{code = 'upstream_failed'}]",
            "normalize.rules[0].contains",
        ),
        (
            "normalize.rules",
            "[{contains = ' ', code = 'upstream_failed'}]",
            "normalize.rules[0].contains",
        ),
        (
            "cache.snapshot_file",
            "'/no/such/folder/pages'",
            "cache.snapshot_file",
        ),
    ];
    for &(path, value, key) in table {
        let expected = match key {
            "" => path.to_owned(),
            _ if key == client => path.replace("clients.0.", client),
            other => other.to_owned(),
        };
        let problems = refused(&with(&[(path, value)]));
        assert_eq!(
            keys_of(&problems),
            [expected],
            "{path} = {value}: {problems:?}"
        );
    }
}

/// An identity provider with no more than must be given.
const PROVIDER: &str =
    "{issuer = 'https://id.example', audience = 'gateway', jwks_url = 'https://id.example/keys'}";

/// The minimal file with an identity provider, and the value at `path` set.
fn with_provider(path: &str, value: &str) -> String {
    with(&[("auth.jwt", PROVIDER), (path, value)])
}

#[test]
fn every_rule_of_an_identity_provider_refuses_under_its_key() {
    for (path, value, key) in [
        ("auth.jwt.issuer", "''", ""),
        ("auth.jwt.issuer", "5", ""),
        ("auth.jwt.audience", "''", ""),
        ("auth.jwt.audience", "['a']", ""),
        ("auth.jwt.client_claim", "''", ""),
        ("auth.jwt.spaces_claim", "''", ""),
        ("auth.jwt.algorithms", "[]", ""),
        ("auth.jwt.algorithms", "['HS256']", "auth.jwt.algorithms[0]"),
        ("auth.jwt.algorithms", "['none']", "auth.jwt.algorithms[0]"),
        (
            "auth.jwt.algorithms",
            "['EdDSA', 'PS256']",
            "auth.jwt.algorithms[1]",
        ),
        ("auth.jwt.jwks_url", "'http://id.example/keys'", ""),
        ("auth.jwt.jwks_url", "'http://127.0.0.1.example/keys'", ""),
        ("auth.jwt.jwks_url", "'ftp://id.example/keys'", ""),
        ("auth.jwt.jwks_url", "'file:///etc/keys'", ""),
        ("auth.jwt.jwks_url", "'https://user@id.example/keys'", ""),
        ("auth.jwt.jwks_url", "'https://:word@id.example/keys'", ""),
        ("auth.jwt.jwks_url", "'https://id.example/keys#a'", ""),
        ("auth.jwt.jwks_url", "'id.example'", ""),
        ("auth.jwt.jwks_file", "'/nowhere/keys'", "auth.jwt.jwks_url"),
    ] {
        let expected = if key.is_empty() { path } else { key };
        let problems = refused(&with_provider(path, value));
        assert_eq!(keys_of(&problems), [expected], "{path} = {value}");
    }
    let unread =
        "{issuer = 'https://id.example', audience = 'gateway', jwks_file = '/nowhere/keys'}";
    for (section, keys) in [
        (unread, &["auth.jwt.jwks_file"][..]),
        (
            "{}",
            &["auth.jwt.issuer", "auth.jwt.audience", "auth.jwt.jwks_url"],
        ),
        (
            "{issuer = 'a'}",
            &["auth.jwt.audience", "auth.jwt.jwks_url"],
        ),
        // Perhaps it is the one that is missed.
        (
            "{issuer = 'a', audience = 'b', jwks_file = 5}",
            &["auth.jwt.jwks_file"],
        ),
        ("{issuer = 'a', audience = 'b'}", &["auth.jwt.jwks_url"]),
        (
            "{issuer = 'a', audience = 'b', jwks = 'c'}",
            &["auth.jwt.jwks", "auth.jwt.jwks_url"],
        ),
    ] {
        let problems = refused(&with(&[("auth.jwt", section)]));
        assert_eq!(keys_of(&problems), keys, "{section}");
    }
}

#[test]
fn an_identity_provider_needs_little() {
    let config = Config::from_toml(&with(&[("auth.jwt", PROVIDER)])).unwrap();
    let jwt = config.auth.jwt.unwrap();
    assert_eq!(jwt.client_claim, "sub");
    assert_eq!(jwt.spaces_claim, None);
    use super::auth::JwtAlgorithm::{EdDsa, Es256, Rs256};
    assert_eq!(jwt.algorithms, [Rs256, Es256, EdDsa]);
    for (path, value) in [
        ("auth.jwt.jwks_url", "'https://id.example/keys?tenant=a'"),
        ("auth.jwt.jwks_url", "'http://127.0.0.1:8081/keys'"),
        ("auth.jwt.jwks_url", "'http://localhost/keys'"),
        ("auth.jwt.algorithms", "['EdDSA']"),
        ("auth.jwt.client_claim", "'https://acme.example/client'"),
        ("auth.jwt.spaces_claim", "'spaces'"),
    ] {
        let loaded = Config::from_toml(&with_provider(path, value));
        assert!(loaded.is_ok(), "{path} = {value}: {:?}", loaded.err());
    }
}

/// Keys in files: of the kind it takes, private and public, and of another.
struct KeyFiles(tempfile::TempDir);

impl KeyFiles {
    fn new() -> Self {
        use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
        let files = Self(tempfile::tempdir().unwrap());
        let good = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        files.write("private", &good.serialize_pem());
        files.write("public", &good.public_key_pem());
        files.write("p256", &other.serialize_pem());
        files.write("p256-public", &other.public_key_pem());
        files.write("text", "c4n4ry");
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn path(&self, name: &str) -> String {
        format!("'{}'", self.0.path().join(name).display())
    }

    fn section(&self, signing: &str, older: &[&str], rest: &str) -> String {
        let older: Vec<_> = older.iter().map(|name| self.path(name)).collect();
        let older = older.join(", ");
        let signing = self.path(signing);
        let section =
            format!("{{signing_key_file = {signing}, verify_key_files = [{older}]{rest}}}");
        with(&[("auth.browser_tokens", &section)])
    }
}

#[test]
fn browser_tokens_are_signed_and_verified_by_ed25519_keys_alone() {
    let files = KeyFiles::new();
    let signing = "auth.browser_tokens.signing_key_file";
    let verify = |place: usize| format!("auth.browser_tokens.verify_key_files[{place}]");
    for name in ["public", "p256", "text", "none", ""] {
        let problems = refused(&files.section(name, &[], ""));
        assert_eq!(keys_of(&problems), [signing], "{name}");
        assert!(!problems[0].text.contains("c4n4ry"), "{problems:?}");
    }
    for name in ["p256", "p256-public", "text", "none", ""] {
        let problems = refused(&files.section("private", &["public", name], ""));
        assert_eq!(keys_of(&problems), [verify(1)], "{name}");
    }
    let all = refused(&files.section("none", &["none", "private", "text"], ""));
    let expected = [signing.to_owned(), verify(0), verify(2)];
    assert_eq!(keys_of(&all), expected.each_ref().map(String::as_str));
    assert!(Config::from_toml(&files.section("private", &["public", "private"], "")).is_ok());
}

#[test]
fn browser_tokens_live_a_day_at_most() {
    let files = KeyFiles::new();
    let load = |rest: &str| Config::from_toml(&files.section("private", &[], rest));
    let usual = load("").unwrap().auth.browser_tokens.unwrap();
    assert_eq!(usual.max_ttl, Duration::from_secs(15 * 60));
    for ttl in ["1s", "24h"] {
        assert!(load(&format!(", max_ttl = '{ttl}'")).is_ok(), "{ttl}");
    }
    for ttl in ["0s", "999ms", "25h", "500000000000years"] {
        let problems = load(&format!(", max_ttl = '{ttl}'")).unwrap_err();
        let keys: Vec<_> = problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(keys, ["auth.browser_tokens.max_ttl"], "{ttl}");
    }
    let problems = refused(&with(&[("auth.browser_tokens", "{}")]));
    assert_eq!(keys_of(&problems), ["auth.browser_tokens.signing_key_file"]);
}

#[test]
fn a_client_that_a_token_can_name_needs_no_key() {
    let keyless = "[{name = 'crm', spaces = ['*']}]";
    assert_eq!(
        keys_of(&refused(&with(&[("clients", keyless)]))),
        ["clients[0].key_sha256"]
    );
    assert!(Config::from_toml(&with_provider("clients", keyless)).is_ok());
    let three = format!("[{{name = 'crm', spaces = ['*'], key_sha256 = [{}]}}]", {
        let digest = |last: char| format!("'{}{last}'", "0".repeat(63));
        ['1', '2', '3'].map(digest).join(", ")
    });
    assert_eq!(
        keys_of(&refused(&with_provider("clients", &three))),
        ["clients[0].key_sha256"]
    );
}

#[test]
fn what_must_be_given_is_missed_by_its_key() {
    for (text, key) in [
        (
            MINIMAL.replace("base_url", "# base_url"),
            "upstream.base_url",
        ),
        (
            MINIMAL.replace("token =", "# token ="),
            "upstream.credentials.default.token",
        ),
        (MINIMAL.replace("name =", "# name ="), "clients[0].name"),
        (
            MINIMAL.replace("spaces =", "# spaces ="),
            "clients[0].spaces",
        ),
        (
            MINIMAL.replace("key_sha256 =", "# key_sha256 ="),
            "clients[0].key_sha256",
        ),
    ] {
        assert_eq!(keys_of(&refused(&text)), [key]);
    }
}

#[test]
fn what_lies_within_the_rules_is_taken() {
    for (path, value) in [
        ("upstream.base_url", "'http://127.0.0.1:1/prefix'"),
        ("upstream.base_url", "'http://[::1]'"),
        ("upstream.base_url", "'http://localhost'"),
        ("admin.listen", "'[::1]:1'"),
        ("admin.listen", "'unix:/run/admin.sock'"),
        (
            "admin",
            "{listen = '0.0.0.0:9090', key_sha256 = ['0000000000000000000000000000000000000000000000000000000000000002']}",
        ),
        ("server.listen", "'unix:/run/gateway.sock'"),
        ("server.trusted_proxies", "['10.0.0.0/8', 'fd00::/8']"),
        ("server.drain_delay", "'0s'"),
        ("cache.ttl", "'0s'"),
        ("cache.ttl", "'10years'"),
        ("cache.ttl_min", "'0s'"),
        ("cache.jitter", "0"),
        ("cache.jitter", "0.0"),
        ("cache.negative_ttl", "'0s'"),
        ("cache.stale_if_error", "'0s'"),
        ("cache.max_bytes", "'64KiB'"),
        ("cache.snapshot_file", "'pages'"),
        ("upstream.retries", "0"),
        ("upstream.max_queue", "0"),
        ("clients.0.expires", "'2027-01-01T00:00:00Z'"),
        ("clients.0.credential", "'default'"),
        ("clients", "[]"),
        ("server.proxy_protocol", "false"),
        (
            "cors.origins",
            "['https://app.example.com', 'https://*.example.com']",
        ),
        ("cors.allow_headers", "['x-my-trace', 'X-B3-TraceId']"),
        ("views", "{}"),
        (
            "views.public.fields",
            "['task_id', 'output.call_id', ['output', 'a.b', '']]",
        ),
        (
            "normalize.rules",
            "[{contains = 'Quota exceeded', code = 'upstream_quota_exhausted'}]",
        ),
    ] {
        let loaded = Config::from_toml(&with(&[(path, value)]));
        assert!(loaded.is_ok(), "{path} = {value}: {:?}", loaded.err());
    }
    for together in [
        [
            ("upstream.base_url", "'http://unpod.example'"),
            ("upstream.allow_plain_http", "true"),
        ],
        [
            ("server.proxy_protocol", "true"),
            ("server.trusted_proxies", "['10.0.0.0/8']"),
        ],
        [
            ("server.proxy_protocol", "true"),
            ("server.listen", "'unix:/run/gateway.sock'"),
        ],
    ] {
        let loaded = Config::from_toml(&with(&together));
        assert!(loaded.is_ok(), "{together:?}: {:?}", loaded.err());
    }
}

#[test]
fn no_two_clients_share_a_name_or_a_digest() {
    let digest = "0".repeat(63) + "1";
    let second = format!("{{name = 'crm', key_sha256 = ['{digest}'], spaces = ['*']}}");
    let problems = refused(&with(&[("clients.1", &second)]));
    assert_eq!(
        keys_of(&problems),
        ["clients[1].name", "clients[1].key_sha256"]
    );
}

#[test]
fn a_limit_has_a_rate_and_a_burst_within_reason() {
    let limit = |per_second, burst| {
        with(&[
            ("clients.0.rate_limit.per_second", per_second),
            ("clients.0.rate_limit.burst", burst),
        ])
    };
    for (per_second, burst) in [("50", "100"), ("0.0001", "1000000"), ("1000000.0", "1")] {
        assert!(Config::from_toml(&limit(per_second, burst)).is_ok());
    }
    for rate in ["0", "-1.5", "nan", "inf", "0.00009", "1000001", "'fast'"] {
        let problems = refused(&limit(rate, "1"));
        assert_eq!(keys_of(&problems), ["clients[0].rate_limit.per_second"]);
    }
    for burst in ["0", "-1", "1.5", "1000001", "'all'"] {
        let problems = refused(&limit("1", burst));
        assert_eq!(keys_of(&problems), ["clients[0].rate_limit.burst"]);
    }
}

#[test]
fn a_clients_view_is_told_of_once_where_it_cannot_be_read() {
    let with_view = |fields| {
        with(&[
            ("clients.0.view", "'public'"),
            ("views.public.fields", fields),
        ])
    };
    let config = Config::from_toml(&with_view("['task_id']")).unwrap();
    assert_eq!(config.clients[0].view.as_deref(), Some("public"));
    assert_eq!(config.views["public"].fields.len(), 1);
    assert_eq!(
        keys_of(&refused(&with_view("['']"))),
        ["views.public.fields[0]"]
    );
}

#[test]
fn a_space_has_one_credential() {
    let problems = refused(&with(&[
        ("upstream.credentials.default.spaces", "['SPACE']"),
        (
            "upstream.credentials.other",
            "{token = 'abc', spaces = ['SPACE']}",
        ),
    ]));
    assert_eq!(keys_of(&problems), ["upstream.credentials.other.spaces"]);
}

#[test]
fn a_client_needs_a_credential_for_each_of_its_spaces() {
    let only = |spaces| {
        with(&[
            (
                "upstream.credentials",
                "{main = {token = 'abc', spaces = ['A', 'B']}}",
            ),
            ("clients.0.spaces", spaces),
        ])
    };
    assert!(Config::from_toml(&only("['A', 'B']")).is_ok());
    for unserved in ["['A', 'C']", "['*']"] {
        assert_eq!(
            keys_of(&refused(&only(unserved))),
            ["clients[0].credential"]
        );
    }
}

#[test]
fn all_problems_come_at_once() {
    let text = with(&[
        // Wrong types, two in one section, and rules, in the same and in other sections.
        ("cache.ttl", "30"),
        ("cache.jitter", "'much'"),
        ("cache.max_bytes", "'12B'"),
        ("server.workers", "2000"),
        ("upstream.retries", "11"),
        ("upstream.credentials.default.tokens", "'abc'"),
        ("clients.0.spaces", "[]"),
        ("no_such_section.key", "1"),
        ("telemetry.format", "'xml'"),
        ("normalize.other", "1"),
    ]);
    let problems = refused(&text);
    let keys: BTreeSet<_> = keys_of(&problems).into_iter().collect();
    let expected = BTreeSet::from([
        "cache.ttl",
        "cache.jitter",
        "cache.max_bytes",
        "server.workers",
        "upstream.retries",
        "upstream.credentials.default.tokens",
        "clients[0].spaces",
        "no_such_section",
        "telemetry.format",
        "normalize.other",
    ]);
    assert_eq!(keys, expected);
    assert_eq!(keys.len(), problems.len(), "none is told twice");
}

#[test]
fn a_wrong_value_hides_no_other_problem() {
    let digest = "0".repeat(64);
    let text = format!(
        "[upstream]\nbase_url = 'https://a.example'\n\
         [upstream.credentials.default]\ntoken = 'abc'\nspaces = [5, 'A', 'a/b']\n\
         [upstream.credentials.other]\ntoken = 5\norg_handle = 'a b'\nhandle = 'x'\n\
         [server]\ntrusted_proxies = ['x', '10.0.0.0/8', 5]\n\
         [server.tls]\ncert = '/c.pem'\nclient_ca_file = '/nowhere/ca.pem'\n\
         [auth.jwt]\nissuer = 5\njwks_url = 'ftp://id.example'\nalgorithms = ['x', 'EdDSA', 'none']\n\
         [auth.browser_tokens]\nmax_ttl = '2days'\nverify_key_files = [5, '/nowhere/key']\n\
         [cors]\norigins = ['*', 'app.example.com', 'https://app.example.com']\n\
         [views.public]\nfields = ['', 5, 'task_id']\n\
         [[clients]]\nname = 'a b'\nkey_sha256 = ['00', '{digest}', '01']\nspaces = []\n\
         expires = 'tomorrow'\nview = 'none'\nmay_refresh = 1\nrate_limit = {{per_second = 0}}\n\
         [[clients]]\nname = 5\nspaces = ['*']\nspace = 'x'\nexpires = 'soon'\ncredential = 'none'\n\
         [[normalize.rules]]\ncode = 'x'\n\
         [[normalize.rules]]\ncontains = ' '\ncode = 'upstream_failed'\n"
    );
    let problems = refused(&text);
    let mut keys = keys_of(&problems);
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "auth.browser_tokens.max_ttl",
            "auth.browser_tokens.signing_key_file",
            "auth.browser_tokens.verify_key_files[0]",
            "auth.browser_tokens.verify_key_files[1]",
            "auth.jwt.algorithms[0]",
            "auth.jwt.algorithms[2]",
            "auth.jwt.audience",
            "auth.jwt.issuer",
            "auth.jwt.jwks_url",
            "clients[0].expires",
            "clients[0].key_sha256[0]",
            "clients[0].key_sha256[2]",
            "clients[0].may_refresh",
            "clients[0].name",
            "clients[0].rate_limit.burst",
            "clients[0].rate_limit.per_second",
            "clients[0].spaces",
            "clients[0].view",
            "clients[1].credential",
            "clients[1].expires",
            "clients[1].name",
            "clients[1].space",
            "cors.origins[0]",
            "cors.origins[1]",
            "normalize.rules[0].code",
            "normalize.rules[0].contains",
            "normalize.rules[1].contains",
            "server.tls.cert",
            "server.tls.cert_file",
            "server.tls.client_ca_file",
            "server.tls.key_file",
            "server.trusted_proxies[0]",
            "server.trusted_proxies[2]",
            "upstream.credentials.default.spaces[0]",
            "upstream.credentials.default.spaces[2]",
            "upstream.credentials.other.handle",
            "upstream.credentials.other.org_handle",
            "upstream.credentials.other.token",
            "views.public.fields[0]",
            "views.public.fields[1]",
        ]
    );
}

#[test]
fn no_section_hides_another_by_its_shape() {
    for section in SECTIONS {
        let text = with(&[(section, "5"), ("no_such_section", "1")]);
        let problems = refused(&text);
        let keys = keys_of(&problems);
        assert!(keys.contains(&section), "{section}: {problems:?}");
        assert!(keys.contains(&"no_such_section"), "{section}: {problems:?}");
        let other = if section == "cache" {
            "server.workers"
        } else {
            "cache.ttl"
        };
        let keys = refused(&with(&[(section, "5"), (other, "'x'")]));
        assert!(keys_of(&keys).contains(&other) || other.starts_with(section));
    }
}

#[test]
fn a_variable_hides_no_problem_of_the_file() {
    let text = with(&[("cache.ttl", "30")]);
    let variables = [
        ("CACHE__JITTER", "much"),
        ("", "x"),
        ("SERVER__WORKERS", "2000"),
    ];
    let variables =
        variables.map(|(name, value)| (format!("UNPOD_GATEWAY__{name}"), value.to_owned()));
    let problems = Config::from_sources(Some(&text), variables).unwrap_err();
    let keys: BTreeSet<_> = problems
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    let expected = [
        "UNPOD_GATEWAY__",
        "cache.jitter",
        "cache.ttl",
        "server.workers",
    ];
    assert_eq!(keys, BTreeSet::from(expected));
}

#[test]
fn what_a_wrong_value_leaves_missing_is_no_problem_of_its_own() {
    for (path, value, key) in [
        ("clients.0.key_sha256", "['00']", "clients[0].key_sha256[0]"),
        (
            "clients.0",
            "{name = 'a', spaces = ['*'], certificate_subject = 5}",
            "clients[0].certificate_subject",
        ),
        (
            "upstream.credentials.default",
            "{token_file = 5}",
            "upstream.credentials.default.token_file",
        ),
        (
            "upstream.credentials.default",
            "5",
            "upstream.credentials.default",
        ),
        ("upstream.credentials", "5", "upstream.credentials"),
        ("upstream.base_url", "5", "upstream.base_url"),
        ("server.tls", "5", "server.tls"),
        ("cache.redis.url_file", "5", "cache.redis.url_file"),
    ] {
        assert_eq!(
            keys_of(&refused(&with(&[(path, value)]))),
            [key],
            "{path} = {value}"
        );
    }
    let proxies = with(&[
        ("server.proxy_protocol", "true"),
        ("server.trusted_proxies", "['x']"),
    ]);
    assert_eq!(keys_of(&refused(&proxies)), ["server.trusted_proxies[0]"]);
    let unnamed = with(&[
        ("auth.jwt", "5"),
        ("clients.0", "{name = 'a', spaces = ['*']}"),
    ]);
    assert_eq!(keys_of(&refused(&unnamed)), ["auth.jwt"]);
}

#[test]
fn odd_names_of_keys_are_told_and_end_the_reading() {
    for name in ["''", "'.'", "'a.b'", "'0'", "'[0]'", "'ttl.'"] {
        for table in [
            "cache",
            "clients.0",
            "upstream.credentials.default",
            "views.public",
        ] {
            let text = with(&[(table, &format!("{{{name} = 5}}"))]);
            assert!(!refused(&text).is_empty(), "{table} {name}");
        }
    }
}

#[test]
fn a_problem_is_told_as_key_and_text() {
    let problems = Config::from_toml(&with(&[("cache.ttl", "30"), ("telemetry.format", "'xml'")]))
        .unwrap_err();
    assert_eq!(
        problems.to_string(),
        "cache.ttl: expected a duration such as \"250ms\", \"30s\" or \"1h\"\n\
         telemetry.format: expected one of: json, pretty"
    );
}

/// Paths that no default names.
const OPTIONAL: [&str; 57] = [
    "server.tls",
    "server.tls.cert_file",
    "server.tls.key_file",
    "server.tls.client_ca_file",
    "admin.key_sha256",
    "auth.jwt",
    "auth.jwt.issuer",
    "auth.jwt.audience",
    "auth.jwt.jwks_file",
    "auth.jwt.jwks_url",
    "auth.jwt.algorithms",
    "auth.jwt.client_claim",
    "auth.jwt.spaces_claim",
    "auth.browser_tokens",
    "auth.browser_tokens.signing_key_file",
    "auth.browser_tokens.verify_key_files",
    "auth.browser_tokens.max_ttl",
    "upstream.base_url",
    "upstream.proxy",
    "upstream.ca_file",
    "upstream.circuit",
    "upstream.credentials",
    "upstream.credentials.default",
    "upstream.credentials.default.token",
    "upstream.credentials.default.token_file",
    "upstream.credentials.default.next_token",
    "upstream.credentials.default.next_token_file",
    "upstream.credentials.default.org_handle",
    "upstream.credentials.default.spaces",
    "cache.snapshot_file",
    "cache.ttl_min",
    "cache.redis.url",
    "cache.redis.url_file",
    "cache.redis.ca_file",
    "cache.redis.client_cert_file",
    "cache.redis.client_key_file",
    "telemetry.otlp_endpoint",
    "telemetry.otlp_headers_file",
    "clients",
    "clients.0",
    "clients.0.name",
    "clients.0.key_sha256",
    "clients.0.spaces",
    "clients.0.credential",
    "clients.0.expires",
    "clients.0.rate_limit",
    "clients.0.rate_limit.per_second",
    "clients.0.rate_limit.burst",
    "clients.0.view",
    "clients.0.certificate_subject",
    "views.public",
    "views.public.fields",
    "views.public.fields.0",
    "normalize",
    "normalize.rules",
    "normalize.rules.0.contains",
    "normalize.rules.0.code",
];

fn every_path() -> Vec<String> {
    let table: Table = toml::from_str(DEFAULTS).unwrap();
    let sections = SECTIONS.map(str::to_owned);
    leaves(&table)
        .into_iter()
        .map(|(path, _)| path)
        .chain(OPTIONAL.map(str::to_owned))
        .chain(sections)
        .collect()
}

/// A problem of a file begins with its path.
fn without_paths(problems: &Problems) -> String {
    let lines = problems.iter().map(|Problem { key, text, .. }| {
        let is_of_file = key.ends_with("_file") || key.contains("_files[");
        let (_, rest) = text.split_once(": ").unwrap_or(("", text));
        format!("{key}: {}\n", if is_of_file { rest } else { text })
    });
    lines.collect()
}

#[test]
fn no_value_is_ever_told() {
    const WORD: &str = "c4n4ry";
    const NUMBER: &str = "86753";
    let values = [
        "'c4n4ry'",
        "'unix:c4n4ry'",
        "'http://u:c4n4ry@c4n4ry.example/?c4n4ry'",
        "86753",
        "86753.5",
        "['c4n4ry']",
        "['c4n4ry', 86753]",
        "{x = 'c4n4ry'}",
        "{x = {y = ['c4n4ry', 86753]}}",
        "[{x = 'c4n4ry'}]",
    ];
    for path in every_path() {
        for value in values {
            let text = with(&[(&path, value)]);
            let Err(problems) = Config::from_toml(&text) else {
                continue;
            };
            let told = without_paths(&problems);
            assert!(!problems.is_empty(), "{path} = {value}");
            assert!(!told.contains(WORD), "{path} = {value}: {told}");
            assert!(!told.contains(NUMBER), "{path} = {value}: {told}");
            let top = path.split('.').next().unwrap();
            assert!(
                problems.iter().any(|problem| problem.key.starts_with(top)),
                "{path} = {value}: {told}"
            );
        }
        let variable = path.to_uppercase().replace('.', "__");
        for value in ["c4n4ry", "86753", "[\"c4n4ry\"]", "[c4n4ry"] {
            if let Err(problems) = from_environment(&[(&variable, value)]) {
                let told = without_paths(&problems);
                assert!(!problems.is_empty(), "{variable}={value}");
                assert!(!told.contains(WORD), "{variable}={value}: {told}");
                assert!(!told.contains(NUMBER), "{variable}={value}: {told}");
            }
        }
    }
}

#[test]
fn no_type_of_rusts_is_ever_told() {
    let is_rusts = |word: &str| {
        let number = word.strip_prefix(['u', 'i', 'f']);
        number.is_some_and(|bits| bits == "size" || bits.parse::<u32>().is_ok())
            || [
                "struct", "enum", "sequence", "map", "boolean", "string", "bool", "str", "unit",
            ]
            .contains(&word)
            || word.contains("::")
    };
    for path in every_path() {
        for value in [
            "-1",
            "5",
            "99999999999",
            "1.5",
            "true",
            "'x'",
            "[]",
            "[1]",
            "{}",
            "{a = 1}",
        ] {
            let Err(problems) = Config::from_toml(&with(&[(&path, value)])) else {
                continue;
            };
            for problem in problems.iter() {
                let mut words = problem
                    .text
                    .split(|c: char| !c.is_alphanumeric() && c != ':');
                let rusts = words.find(|word| is_rusts(word));
                assert_eq!(rusts, None, "{path} = {value}: {problem:?}");
            }
        }
    }
}

#[test]
fn a_redis_is_used_where_it_has_an_address() {
    let redis = |changes: &[(&str, &str)]| Config::from_toml(&with(changes)).map(|c| c.cache.redis);
    assert!(!redis(&[]).unwrap().is_configured());
    let used = redis(&[("cache.redis.url", "'redis://:secret@r:6380/1'")]).unwrap();
    assert!(used.is_configured() && used.read_address().is_ok());
    for (key, value) in [
        ("cache.redis.url", "'http://r'"),
        ("cache.redis.url_file", "'/nowhere/at/all'"),
        ("cache.redis.timeout", "'0s'"),
        ("cache.redis.timeout", "'1m'"),
        ("cache.redis.recheck", "'999ms'"),
        ("cache.redis.recheck", "'61s'"),
        ("cache.redis.cluster", "'yes'"),
        ("cache.redis.replicas", "0"),
        ("cache.redis.prefix", "'a b'"),
    ] {
        let problems = redis(&[(key, value)]).unwrap_err();
        let told = problems.iter().next().unwrap().key.clone();
        assert!(key.starts_with(&told), "{key}: {told}");
    }
}

#[test]
fn the_address_of_a_redis_is_not_shown() {
    for (url, cluster) in [
        ("redis://:c4n4ry@r:6380/1", "false"),
        ("redis://:c4n4ry@r:1,q:2", "true"),
        ("redis+unix://:c4n4ry@/run/redis.sock", "false"),
        ("redis+sentinel://s/main?sentinel_password=c4n4ry", "false"),
    ] {
        let url = format!("'{url}'");
        let text = with(&[("cache.redis.url", &url), ("cache.redis.cluster", cluster)]);
        let config = Config::from_toml(&text).unwrap();
        let address = config.cache.redis.read_address().unwrap();
        let shown = format!(
            "{} {:?} {address:?}",
            config.effective(),
            config.cache.redis
        );
        assert!(!shown.contains("c4n4ry"), "{shown}");
    }
}

#[test]
fn an_unknown_key_names_the_one_that_was_meant_or_all_that_are_known() {
    for (path, key, expected) in [
        ("cache.tll", "cache.tll", "key; did you mean `ttl`?"),
        ("cache.TTL", "cache.TTL", "key; did you mean `ttl`?"),
        (
            "upstream.circuit.x",
            "upstream.circuit.x",
            "key; known here: enabled, failure_ratio, min_calls, window, open_for",
        ),
        (
            "upstream.credentials.default.tokens",
            "upstream.credentials.default.tokens",
            "key; did you mean `token`?",
        ),
        (
            "clients.0.space",
            "clients[0].space",
            "key; did you mean `spaces`?",
        ),
        ("routes.jobs", "routes.jobs", "key; known here: tasks"),
        (
            "normalize.rule",
            "normalize.rule",
            "key; did you mean `rules`?",
        ),
        ("client", "client", "section; did you mean `clients`?"),
        ("up", "up", "section; known here: server, admin, auth, cors"),
    ] {
        let problems = refused(&with(&[(path, "1")]));
        let told: Vec<_> = problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(told, [key]);
        let text = &problems[0].text;
        assert!(text.starts_with(&format!("unknown {expected}")), "{text}");
    }
}

#[test]
fn a_variable_takes_the_type_of_its_keys_default() {
    let config = from_environment(&[
        ("SERVER__MAX_IN_FLIGHT", "7"),
        ("SERVER__LISTEN", "0.0.0.0:80"),
        ("SERVER__TRUSTED_PROXIES", "[\"10.0.0.0/8\", \"fd00::/8\"]"),
        ("UPSTREAM__RETRY_BUDGET", "1"),
        ("UPSTREAM__CIRCUIT__ENABLED", "false"),
        ("CACHE__JITTER", "0.25"),
        ("CACHE__TTL", "1m"),
        ("CACHE__MAX_BYTES", "1MiB"),
        ("CACHE__FINAL_STATES", "[]"),
        ("ROUTES__TASKS__UNKNOWN_PARAMETERS", "ignore"),
        ("ROUTES__TASKS__MAX_PAGE_SIZE", "50"),
    ])
    .unwrap();
    assert_eq!(config.server.max_in_flight, 7);
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:80");
    assert_eq!(config.server.trusted_proxies.len(), 2);
    assert!(!config.upstream.circuit.enabled);
    assert!((config.upstream.retry_budget - 1.0).abs() < f64::EPSILON);
    assert!((config.cache.jitter - 0.25).abs() < f64::EPSILON);
    assert_eq!(config.cache.ttl, Duration::from_secs(60));
    assert_eq!(config.cache.max_bytes, 1 << 20);
    assert!(config.cache.final_states.is_empty());
    let route = &config.routes.tasks;
    assert_eq!(route.unknown_parameters, UnknownParameters::Ignore);
    assert_eq!(route.max_page_size, 50);
}

#[test]
fn a_variable_that_is_no_text_is_a_problem_and_not_absent() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    let of = |bytes: &'static [u8]| OsStr::from_bytes(bytes);
    for (name, value, key) in [
        (
            &b"UNPOD_GATEWAY__CACHE__TTL"[..],
            &b"7s\xff"[..],
            "cache.ttl",
        ),
        (
            b"UNPOD_GATEWAY__UPSTREAM__CREDENTIALS__DEFAULT__TOKEN",
            b"\xc3",
            "upstream.credentials.default.token",
        ),
        (
            b"UNPOD_GATEWAY__CACHE__T\xffL",
            b"7s",
            "UNPOD_GATEWAY__CACHE__T\u{fffd}L",
        ),
        (
            b"UNPOD_GATEWAY__UPSTREAM__CREDENTIALS__\xc3__TOKEN",
            b"abc",
            "UNPOD_GATEWAY__UPSTREAM__CREDENTIALS__\u{fffd}__TOKEN",
        ),
    ] {
        let variable = [(of(name), of(value))];
        let problems = Config::from_sources(Some(MINIMAL), variable).unwrap_err();
        let told: Vec<_> = problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(told, [key]);
        assert!(problems.to_string().contains("UTF-8"), "{problems}");
    }
}

#[test]
fn a_variable_wins_over_the_file() {
    let environment = vec![("UNPOD_GATEWAY__CACHE__TTL".to_owned(), "7s".to_owned())];
    let text = with(&[("cache.ttl", "'5s'"), ("cache.jitter", "0.5")]);
    let config = Config::from_sources(Some(&text), environment).unwrap();
    assert_eq!(config.cache.ttl, Duration::from_secs(7));
    assert!((config.cache.jitter - 0.5).abs() < f64::EPSILON);
}

#[test]
fn a_credential_can_come_from_variables_alone() {
    let variables = [
        ("UPSTREAM__BASE_URL", "https://unpod.example"),
        ("UPSTREAM__CREDENTIALS__CRM__TOKEN", "abc"),
        ("UPSTREAM__CREDENTIALS__CRM__SPACES", "[\"A\", \"B\"]"),
        ("CLIENTS", "[{name = \"crm\", key_sha256 = [\"0000000000000000000000000000000000000000000000000000000000000001\"], spaces = [\"A\"]}]"),
    ]
    .map(|(name, value)| (format!("UNPOD_GATEWAY__{name}"), value.to_owned()));
    let config = Config::from_sources(None, variables).unwrap();
    assert_eq!(config.upstream.credentials["crm"].spaces, ["A", "B"]);
    assert_eq!(config.clients[0].name, "crm");
}

#[test]
fn a_token_in_a_variable_stays_text() {
    for token in [
        "1234567890123456789012345678901234567890",
        "1234e56780123456789012345678901234567890",
        "0x12",
        "007",
        "true",
        "1e9",
        "nan",
    ] {
        let config = from_environment(&[("UPSTREAM__CREDENTIALS__DEFAULT__TOKEN", token)]).unwrap();
        let read = config.upstream.credentials["default"].read_token().unwrap();
        assert_eq!(read.expose_secret(), token);
    }
}

#[test]
fn a_variable_without_a_key_is_an_error() {
    for (name, key) in [
        ("CACHE__TLL", "cache.tll"),
        ("NOWHERE__KEY", "nowhere"),
        ("CACHE", "cache"),
        ("", "UNPOD_GATEWAY__"),
        ("CACHE__", "UNPOD_GATEWAY__CACHE__"),
        ("CACHE____TTL", "UNPOD_GATEWAY__CACHE____TTL"),
    ] {
        let problems = from_environment(&[(name, "1s")]).unwrap_err();
        let keys: Vec<_> = problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(keys, [key], "{name}");
    }
}

#[test]
fn every_variable_of_a_wrong_type_is_told() {
    let problems = from_environment(&[
        ("SERVER__WORKERS", "many"),
        ("CACHE__OBEY_UPSTREAM", "yes"),
        ("CACHE__JITTER", "much"),
        ("CACHE__FINAL_STATES", "completed"),
    ])
    .unwrap_err();
    let keys: BTreeSet<_> = problems
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    let expected = [
        "server.workers",
        "cache.obey_upstream",
        "cache.jitter",
        "cache.final_states",
    ];
    assert_eq!(keys, BTreeSet::from(expected));
}

fn token_of(content: &[u8]) -> Result<String, Vec<Problem>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let credential = format!("{{token_file = '{}'}}", file.path().display());
    let text = with(&[("upstream.credentials.default", &credential)]);
    match Config::from_toml(&text) {
        Ok(config) => {
            let token = config.upstream.credentials["default"].read_token().unwrap();
            Ok(token.expose_secret().to_owned())
        }
        Err(problems) => Err(problems.iter().cloned().collect()),
    }
}

#[test]
fn a_token_file_is_read_without_the_space_around_the_token() {
    for content in ["abc", "abc\n", "abc\r\n", "  abc\n\n"] {
        assert_eq!(token_of(content.as_bytes()).unwrap(), "abc", "{content:?}");
    }
    for content in [&b""[..], b"\n", b"a b\n", b"a\nb\n", b"a\0b", b"\xff\xfe"] {
        let problems = token_of(content).unwrap_err();
        assert_eq!(
            keys_of(&problems),
            ["upstream.credentials.default.token_file"],
            "{content:?}"
        );
    }
}

#[test]
fn the_effective_configuration_shows_every_key_and_no_secret() {
    let config = Config::from_toml(&with(&[
        ("upstream.credentials.default.token", "'c4n4ry'"),
        ("upstream.credentials.other", "{token = 'c4n4ry2'}"),
        ("upstream.proxy", "'http://user:c4n4ry3@proxy.example:3128'"),
    ]))
    .unwrap();
    let shown = config.effective();
    assert!(!shown.contains("c4n4ry"), "{shown}");
    let read: Table = toml::from_str(&shown).unwrap();
    let shown_keys: BTreeSet<_> = leaves(&read).into_iter().map(|(path, _)| path).collect();
    let defaults: Table = toml::from_str(DEFAULTS).unwrap();
    for (path, _) in leaves(&defaults) {
        assert!(shown_keys.contains(&path), "{path}");
    }
    assert_eq!(
        read["upstream"]["credentials"]["default"]["token"].as_str(),
        Some("<hidden>")
    );
    assert_eq!(
        read["upstream"]["base_url"].as_str(),
        Some("https://unpod.example")
    );
    assert!(!format!("{:?}", config.upstream).contains("c4n4ry\""));
}

#[test]
fn no_secret_is_printed_whichever_way() {
    let files = KeyFiles::new();
    let mut count = 0;
    let mut marker = || {
        count += 1;
        format!("c4n4ry{count}")
    };
    let secret = |text: String| format!("'{text}'");
    let text = with(&[
        ("upstream.credentials.default.token", &secret(marker())),
        ("upstream.credentials.default.next_token", &secret(marker())),
        ("upstream.credentials.other.token", &secret(marker())),
        (
            "upstream.proxy",
            &format!("'http://{}:{}@127.0.0.1:3128'", marker(), marker()),
        ),
        (
            "cache.redis.url",
            &format!("'redis://{}:{}@r:6380/1'", marker(), marker()),
        ),
        ("auth.jwt", PROVIDER),
        (
            "auth.jwt.jwks_url",
            &format!("'https://id.example/keys?key={}'", marker()),
        ),
        (
            "auth.browser_tokens.signing_key_file",
            &files.path("private"),
        ),
    ]);
    let config = Config::from_toml(&text).unwrap();
    let draft = Draft::from(config.clone());
    let changed = Config::from_toml(MINIMAL).unwrap();
    for printed in [
        format!("{config:?} {config:#?} {draft:?}"),
        format!("{:?}", config.auth.jwt.as_ref().unwrap().keys_from()),
        config.effective(),
        changed.effective_since(&config, &["cache.redis".to_owned(), "upstream".to_owned()]),
        config.changed_since(&changed).join(" "),
    ] {
        assert!(!printed.contains("c4n4ry"), "{printed}");
    }
    assert!(format!("{config:?}").contains("https://id.example/keys"));
}

#[test]
fn the_token_does_not_leave_this_machine_in_the_clear() {
    for (base_url, proxy, allowed) in [
        ("http://localhost", "", true),
        ("http://127.0.0.1:8080", "", true),
        ("http://127.1", "", true),
        ("http://[::1]", "", true),
        ("http://localhost.evil.test", "", false),
        ("http://localhost.", "", false),
        ("http://127.0.0.1.nip.io", "", false),
        ("http://0.0.0.0", "", false),
        ("http://[::ffff:10.0.0.1]", "", false),
        ("http://localhost@evil.test", "", false),
        ("http://localhost", "http://proxy.example:3128", false),
        ("http://localhost", "https://proxy.example:3128", false),
        ("http://[::1]", "http://10.0.0.1:3128", false),
        ("http://127.0.0.1", "http://localhost.evil.test", false),
        ("http://localhost", "http://127.0.0.1:3128", true),
        ("http://localhost", "http://[::1]:3128", true),
        ("https://unpod.example", "http://proxy.example:3128", true),
    ] {
        let mut changes = vec![("upstream.base_url", format!("'{base_url}'"))];
        if !proxy.is_empty() {
            changes.push(("upstream.proxy", format!("'{proxy}'")));
        }
        let changes: Vec<_> = changes
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        let loaded = Config::from_toml(&with(&changes));
        assert_eq!(loaded.is_ok(), allowed, "{base_url} by {proxy}: {loaded:?}");
    }
    let knowingly = with(&[
        ("upstream.base_url", "'http://localhost'"),
        ("upstream.proxy", "'http://proxy.example:3128'"),
        ("upstream.allow_plain_http", "true"),
    ]);
    assert!(Config::from_toml(&knowingly).is_ok());
}

#[test]
fn broken_toml_is_told_by_its_place_and_cause_and_not_quoted() {
    for (text, told) in [
        (
            "[upstream]\ntoken = c4n4ry\n",
            "2:9: string values must be quoted, expected literal string",
        ),
        (
            "[cache]\nttl = '1s'\n\nttl = 'c4n4ry'\n",
            "4:1: duplicate key",
        ),
        (
            "[cache]\nttl = 'c4n4ry\n",
            "2:14: invalid literal string, expected `'`",
        ),
        ("c4n4ry", "1:7: key with no value, expected `=`"),
        (
            "# ä\n'ä' = c4n4ry",
            "2:7: string values must be quoted, expected literal string",
        ),
        ("[[c4n4ry", "1:9: unclosed array table, expected `]]`"),
        ("c4n4ry = 1\n[c4n4ry]", "2:2: duplicate key"),
        (
            "c4n4ry = 1\nc4n4ry.a = 1",
            "2:1: cannot extend value of type integer with a dotted key",
        ),
        ("a = 2000-99-99T00:00:00c4n4ry", ""),
        ("a = 99999999999999999999c4n4ry", ""),
        ("a = \"\\c4n4ry\"", ""),
        ("a = { b = 1, c4n4ry", ""),
        ("a = [c4n4ry", ""),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let problems = Config::load(Some(file.path())).unwrap_err();
        let problems: Vec<_> = problems.iter().collect();
        let [
            Problem {
                key, text: shown, ..
            },
        ] = problems[..]
        else {
            panic!("{text}: {problems:?}");
        };
        assert_eq!(key, "--config");
        let place = shown.strip_prefix(&format!("{}:", file.path().display()));
        let place = place.unwrap_or_else(|| panic!("{shown}"));
        assert!(!place.contains("c4n4ry"), "{text}: {place}");
        if !told.is_empty() {
            assert_eq!(place, told, "{text}");
        }
        let of_text = &refused(text)[0];
        assert!(of_text.text.starts_with("line "), "{of_text:?}");
    }
}

#[test]
fn a_path_in_a_file_counts_from_that_files_folder_and_one_in_a_variable_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.toml");
    std::fs::create_dir(folder.path().join("secrets")).unwrap();
    std::fs::write(folder.path().join("secrets/token"), "s3cret").unwrap();
    let text = with(&[(
        "upstream.credentials.default",
        "{token_file = 'secrets/token'}",
    )]);
    std::fs::write(&file, &text).unwrap();

    let config = Config::load(Some(&file)).unwrap();

    let token = config.upstream.credentials["default"].read_token().unwrap();
    assert_eq!(token.expose_secret(), "s3cret");
    assert_eq!(
        config.files(),
        [file.clone(), folder.path().join("secrets/token")]
    );
    let elsewhere = [(
        "UNPOD_GATEWAY__UPSTREAM__CREDENTIALS__DEFAULT__TOKEN_FILE",
        "secrets/token",
    )];
    let problems = Config::from_sources(Some(MINIMAL), elsewhere).unwrap_err();
    assert!(!problems.is_empty());
}

#[test]
fn a_problem_of_a_file_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("words"), "two words").unwrap();
    let text = "
        [server.tls]
        cert_file = 'words'
        key_file = 'none'
        [upstream]
        base_url = 'https://unpod.example'
        ca_file = 'words'
        [upstream.credentials.default]
        token_file = 'words'
        next_token_file = 'none'
        [auth.browser_tokens]
        signing_key_file = 'words'
        verify_key_files = ['words', 'none']
        [cache.redis]
        url_file = 'none'
        [telemetry]
        otlp_headers_file = 'words'
    ";
    std::fs::write(path("gateway.toml"), text).unwrap();

    let problems = Config::load(Some(path("gateway.toml").as_ref())).unwrap_err();

    assert_eq!(problems.iter().count(), 10, "{problems}");
    for problem in problems.iter() {
        let named = ["words", "none"].map(|name| format!("{}: ", path(name)));
        let is_named = |name| problem.text.matches(name).count() == 1;
        assert!(named.iter().any(is_named), "{problem:?}");
    }
}

#[test]
fn a_variable_that_is_almost_a_settings_is_a_problem() {
    for (name, meant) in [
        ("UNPOD_GATEWAY_CACHE_TTL", "UNPOD_GATEWAY__CACHE__TTL"),
        ("UNPOD_GATEWAY__CACHE_TTL", "UNPOD_GATEWAY__CACHE__TTL"),
        ("unpod_gateway__cache__ttl", "UNPOD_GATEWAY__CACHE__TTL"),
    ] {
        let problems = Config::from_sources(Some(MINIMAL), [(name, "c4n4ry")]).unwrap_err();
        assert_eq!(
            problems.to_string(),
            format!("{name}: no setting has this name; did you mean {meant}?")
        );
    }
}

#[test]
fn a_missing_file_is_an_error() {
    let problems = Config::load(Some(Path::new("/nowhere/gateway.toml"))).unwrap_err();
    let keys: Vec<_> = problems
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    assert_eq!(keys, ["--config"]);
}

#[test]
fn own_rules_are_kept_in_their_order() {
    let rules = "[{contains = 'a', code = 'space_not_found'}, {contains = 'b', code = 'upstream_rejected'}]";
    let config = Config::from_toml(&with(&[("normalize.rules", rules)])).unwrap();
    let read: Vec<_> = config
        .normalize
        .rules
        .iter()
        .map(|rule| (rule.contains.as_str(), rule.code))
        .collect();
    assert_eq!(
        read,
        [
            ("a", RuleCode::SpaceNotFound),
            ("b", RuleCode::UpstreamRejected)
        ]
    );
}

/// Mistakes that have nothing to do with each other: where, what, and the key each is told by.
const MISTAKES: [(&str, &str, &str); 32] = [
    ("server.listen", "'localhost'", "server.listen"),
    ("server.workers", "'many'", "server.workers"),
    ("server.max_in_flight", "0", "server.max_in_flight"),
    ("server.idle_timeout", "5", "server.idle_timeout"),
    (
        "server.trusted_proxies",
        "['10.0.0.0/8', 'x']",
        "server.trusted_proxies[1]",
    ),
    ("server.no_such_key", "1", "server.no_such_key"),
    ("admin.key_sha256", "['00']", "admin.key_sha256[0]"),
    ("admin.no_such_key", "1", "admin.no_such_key"),
    ("auth.max_failures", "-1", "auth.max_failures"),
    ("auth.jwt.issuer", "5", "auth.jwt.issuer"),
    ("auth.jwt.audience", "''", "auth.jwt.audience"),
    (
        "auth.jwt.jwks_url",
        "'ftp://id.example'",
        "auth.jwt.jwks_url",
    ),
    (
        "auth.browser_tokens.signing_key_file",
        "'/nowhere/key'",
        "auth.browser_tokens.signing_key_file",
    ),
    (
        "auth.browser_tokens.max_ttl",
        "'2days'",
        "auth.browser_tokens.max_ttl",
    ),
    ("cors.origins", "['*']", "cors.origins[0]"),
    ("cors.no_such_key", "1", "cors.no_such_key"),
    (
        "routes.tasks.max_page_size",
        "0",
        "routes.tasks.max_page_size",
    ),
    (
        "routes.tasks.unknown_parameters",
        "'drop'",
        "routes.tasks.unknown_parameters",
    ),
    (
        "upstream.base_url",
        "'ftp://unpod.example'",
        "upstream.base_url",
    ),
    ("upstream.retries", "11", "upstream.retries"),
    ("upstream.circuit.window", "0", "upstream.circuit.window"),
    (
        "upstream.credentials.default.token",
        "'two words'",
        "upstream.credentials.default.token",
    ),
    (
        "upstream.credentials.default.org_handle",
        "5",
        "upstream.credentials.default.org_handle",
    ),
    ("cache.ttl", "'soon'", "cache.ttl"),
    ("cache.max_bytes", "'1KiB'", "cache.max_bytes"),
    (
        "cache.redis.url_file",
        "'/nowhere/url'",
        "cache.redis.url_file",
    ),
    ("telemetry.format", "'xml'", "telemetry.format"),
    ("clients.0.name", "'a b'", "clients[0].name"),
    ("clients.0.expires", "'tomorrow'", "clients[0].expires"),
    ("clients.0.spaces", "['A', 'a/b']", "clients[0].spaces[1]"),
    ("views.public.fields", "['a', '']", "views.public.fields[1]"),
    ("no_such_section.key", "1", "no_such_section"),
];

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn as_many_mistakes_as_were_made_are_told(which: u32) {
        let files = KeyFiles::new();
        let (signing, made) = (files.path("private"), |at: &usize| which >> at & 1 == 1);
        let mut changes = vec![
            ("auth.jwt", PROVIDER),
            ("auth.browser_tokens.signing_key_file", signing.as_str()),
        ];
        let made: Vec<_> = (0..MISTAKES.len()).filter(made).map(|at| MISTAKES[at]).collect();
        changes.extend(made.iter().map(|(path, value, _)| (*path, *value)));
        let told = Config::from_toml(&with(&changes)).err().unwrap_or_default();
        let mut told: Vec<_> = told.iter().map(|problem| problem.key.as_str()).collect();
        let mut expected: Vec<_> = made.iter().map(|(_, _, key)| *key).collect();
        told.sort_unstable();
        expected.sort_unstable();
        proptest::prop_assert_eq!(told, expected);
    }
}
