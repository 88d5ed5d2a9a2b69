//! `check`, `serve` and a reload refuse the same, all of it at once, each by its key, and none of it by its value.

use std::{path::Path, process::Stdio};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use unpod_gateway::simulator::{Options, Simulator, world};

use crate::{
    gateway::{ConfigFile, setup},
    pki::Authority,
    process::{command, run},
};

const EX_CONFIG: Option<i32> = Some(78);
const CANARY: &str = "c4n4ry";

/// Files to be named by a configuration.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let authority = Authority::new();
        let [one, other] = [authority.server(), authority.server()];
        let key = |algorithm| KeyPair::generate_for(algorithm).unwrap();
        for (name, text) in [
            ("text", CANARY.to_owned()),
            ("empty", String::new()),
            ("spaces", format!("{CANARY} {CANARY}\n")),
            ("no-keys", "{\"keys\":[]}".to_owned()),
            ("no-jwks", "{\"key\":[]}".to_owned()),
            (
                "secret-key",
                format!("{{\"keys\":[{{\"kty\":\"oct\",\"alg\":\"HS256\",\"k\":\"{CANARY}\"}}]}}"),
            ),
            ("ca", authority.pem()),
            ("cert", one.certificate.pem()),
            ("key", one.key.serialize_pem()),
            ("other-key", other.key.serialize_pem()),
            ("ed25519", key(&PKCS_ED25519).serialize_pem()),
            ("p256", key(&PKCS_ECDSA_P256_SHA256).serialize_pem()),
        ] {
            std::fs::write(files.path().join(name), text).unwrap();
        }
        std::fs::create_dir(files.path().join("folder")).unwrap();
        files
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// `text` with each `@NAME` replaced by the path of that file, in quotes.
    fn named(&self, text: &str) -> String {
        let parts = text.split('@');
        let mut parts = parts.map(str::to_owned);
        let mut named = parts.next().unwrap();
        for part in parts {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-/".contains(c);
            let end = part.find(|c| !is_name(c)).unwrap_or(part.len());
            let path = self.path().join(&part[..end]);
            named.push_str(&format!("'{}'{}", path.display(), &part[end..]));
        }
        named.replace("unix:'", "'unix:")
    }
}

const CREDENTIAL: &str = "upstream.credentials.other";
const JWT: &str = "[auth.jwt]\nissuer = 'i'\naudience = 'a'";

/// Text to add to a good configuration, and the key it is refused by.
fn refused() -> Vec<(String, &'static str)> {
    let mut table = vec![
        (
            "[server]\nlisten = 'localhost:80'".to_owned(),
            "server.listen",
        ),
        (
            "[server]\nlisten = 'unix:/nowhere/at/all'".to_owned(),
            "server.listen",
        ),
        (
            "[admin]\nlisten = '127.0.0.1:70000'".to_owned(),
            "admin.listen",
        ),
        (
            "[server]\nlisten = '127.0.0.1:9'\n[admin]\nlisten = '127.0.0.1:9'".to_owned(),
            "admin.listen",
        ),
        (
            "[upstream]\nproxy = 'socks5://127.0.0.1:1'".to_owned(),
            "upstream.proxy",
        ),
        (
            "[telemetry]\notlp_endpoint = 'grpc://127.0.0.1:4317'".to_owned(),
            "telemetry.otlp_endpoint",
        ),
        (
            "[telemetry]\notlp_headers_file = @none".to_owned(),
            "telemetry.otlp_headers_file",
        ),
        (
            "[telemetry]\notlp_headers_file = @text".to_owned(),
            "telemetry.otlp_headers_file",
        ),
        (
            "[telemetry]\nfilter = 'a=b=c'".to_owned(),
            "telemetry.filter",
        ),
        (
            "[cache.redis]\nurl = 'http://127.0.0.1'".to_owned(),
            "cache.redis.url",
        ),
        (
            "[cache]\nsnapshot_file = '/proc/pages'".to_owned(),
            "cache.snapshot_file",
        ),
        (
            "[cache]\nsnapshot_file = @folder".to_owned(),
            "cache.snapshot_file",
        ),
        (
            "[cache]\nsnapshot_file = @none/pages".to_owned(),
            "cache.snapshot_file",
        ),
        (
            "[cache]\nsnapshot_file = @text/pages".to_owned(),
            "cache.snapshot_file",
        ),
        (
            "[server.tls]\ncert_file = @cert\nkey_file = @other-key".to_owned(),
            "server.tls.key_file",
        ),
        (
            "[server.tls]\ncert_file = @key\nkey_file = @key".to_owned(),
            "server.tls.cert_file",
        ),
        (
            "[server.tls]\ncert_file = @cert\nkey_file = @key\nclient_ca_file = @key".to_owned(),
            "server.tls.client_ca_file",
        ),
        ("[server]\nlisten = unix:@text".to_owned(), "server.listen"),
    ];
    for file in ["text", "empty", "key", "folder", "none"] {
        table.push((format!("[upstream]\nca_file = @{file}"), "upstream.ca_file"));
    }
    for file in [
        "text",
        "empty",
        "no-keys",
        "no-jwks",
        "secret-key",
        "folder",
        "none",
    ] {
        table.push((format!("{JWT}\njwks_file = @{file}"), "auth.jwt.jwks_file"));
    }
    for file in ["empty", "spaces", "folder", "none"] {
        table.push((
            format!("[{CREDENTIAL}]\ntoken_file = @{file}"),
            "upstream.credentials.other.token_file",
        ));
        table.push((
            format!("[{CREDENTIAL}]\ntoken = 'a'\nnext_token_file = @{file}"),
            "upstream.credentials.other.next_token_file",
        ));
    }
    for file in ["text", "empty", "p256", "cert", "folder", "none"] {
        table.push((
            format!("[auth.browser_tokens]\nsigning_key_file = @{file}"),
            "auth.browser_tokens.signing_key_file",
        ));
    }
    for file in ["text", "folder", "none"] {
        table.push((
            format!("[cache.redis]\nurl_file = @{file}"),
            "cache.redis.url_file",
        ));
    }
    for (url, rest, key) in [
        ("redis://r/1", "cluster = true", "cache.redis.url"),
        ("redis://r", "ca_file = @ca", "cache.redis.ca_file"),
        ("redis+unix:///r", "ca_file = @ca", "cache.redis.ca_file"),
        ("rediss://r", "ca_file = @text", "cache.redis.ca_file"),
        (
            "valkeys+sentinel://s/m",
            "ca_file = @none",
            "cache.redis.ca_file",
        ),
        (
            "rediss://r",
            "client_cert_file = @cert",
            "cache.redis.client_key_file",
        ),
        (
            "rediss://r",
            "client_key_file = @key",
            "cache.redis.client_cert_file",
        ),
        (
            "rediss://r",
            "client_cert_file = @cert\nclient_key_file = @other-key",
            "cache.redis.client_key_file",
        ),
    ] {
        table.push((format!("[cache.redis]\nurl = '{url}'\n{rest}"), key));
    }
    table
}

/// The problems of `check` and of `serve`, which must be the same.
async fn told_by_both(config: &str) -> Vec<String> {
    let file = ConfigFile::new(config);
    let mut told = Vec::new();
    for name in ["check", "serve"] {
        let output = run(&[name, "--config", &file.path()]).await;
        assert_eq!(
            output.status.code(),
            EX_CONFIG,
            "{name}: {config}\n{output:?}"
        );
        assert!(output.stdout.is_empty());
        told.push(String::from_utf8(output.stderr).unwrap());
    }
    assert_eq!(told[0], told[1], "check and serve");
    told[0].lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn what_serve_refuses_check_refuses_too() {
    let files = Files::new();
    for (text, key) in refused() {
        let text = files.named(&text);
        let config = setup().with(&text).toml("http://127.0.0.1:9");
        let told = told_by_both(&config).await;
        let [line] = &told[..] else {
            panic!("{text}: {told:?}");
        };
        assert!(line.starts_with(&format!("{key}: ")), "{text}: {line}");
        assert!(!line.contains(CANARY) && !line.contains("BEGIN"), "{line}");
    }
}

#[tokio::test]
async fn a_reload_refuses_what_they_refuse() {
    let files = Files::new();
    let running = setup().start_from_file().await;
    for (text, key) in refused() {
        let text = files.named(&text);
        running.rewrite(setup().with(&text));
        let (status, told) = running.reload().await;
        assert_eq!(status, 422, "{text}");
        assert_eq!(told["problems"].as_array().unwrap().len(), 1, "{told}");
        assert_eq!(told["problems"][0]["key"], key, "{text}");
        assert!(!told.to_string().contains(CANARY), "{told}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_files_is_told_together_with_all_else() {
    let files = Files::new();
    let config = setup().with(&files.named(&format!(
        "{JWT}\njwks_file = @no-keys\n\
         [cors]\norigins = ['*', 'x']\n\
         [server.tls]\ncert_file = @cert\nkey_file = @other-key\n\
         [upstream]\nca_file = @empty\n\
         [auth.browser_tokens]\nsigning_key_file = @p256\n\
         [{CREDENTIAL}]\ntoken_file = @none\n\
         [cache]\nttl = 'soon'\nsnapshot_file = @none/pages\n\
         [[clients]]\nname = 'a b'\nspaces = ['*']\nexpires = 'tomorrow'"
    )));
    let told = told_by_both(&config.toml("http://127.0.0.1:9")).await;
    let mut keys: Vec<_> = told
        .iter()
        .filter_map(|line| Some(line.split_once(": ")?.0))
        .collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "auth.browser_tokens.signing_key_file",
            "auth.jwt.jwks_file",
            "cache.snapshot_file",
            "cache.ttl",
            "clients[2].expires",
            "clients[2].name",
            "cors.origins[0]",
            "cors.origins[1]",
            "server.tls.key_file",
            "upstream.ca_file",
            "upstream.credentials.other.token_file",
        ]
    );
}

#[tokio::test]
async fn check_asks_nobody_and_leaves_nothing() {
    let provider = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    provider.set_nonblocking(true).unwrap();
    let address = provider.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = setup().with(&format!(
        "{JWT}\njwks_url = 'http://{address}/keys'\n\
         [telemetry]\notlp_endpoint = 'http://{address}'\n\
         [cache]\nsnapshot_file = '{}'",
        folder.path().join("pages").display()
    ));
    let file = ConfigFile::new(&config.toml(&format!("http://{address}")));

    let output = run(&["check", "--config", &file.path()]).await;

    assert!(output.status.success(), "{output:?}");
    assert!(provider.accept().is_err(), "nobody came");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn no_secret_is_printed_by_check() {
    let config = setup().with(&format!(
        "{JWT}\njwks_url = 'https://id.example/keys?key={CANARY}'\n\
         [upstream]\nproxy = 'http://user:{CANARY}@proxy.example:3128'\nallow_plain_http = true\n\
         [cache.redis]\nurl = 'redis://user:{CANARY}@redis.example:6379/1'\n\
         [{CREDENTIAL}]\ntoken = '{CANARY}1'\nnext_token = '{CANARY}2'"
    ));
    let file = ConfigFile::new(&config.toml("http://127.0.0.1:9"));
    let mut check = command(&["check", "--config", &file.path()]);
    check.env("UNPOD_GATEWAY__UPSTREAM__CREDENTIALS__THIRD__TOKEN", CANARY);

    let output = check.stderr(Stdio::piped()).output().await.unwrap();

    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8(output.stdout).unwrap();
    for url in [
        "https://id.example/keys",
        "http://proxy.example:3128/",
        "redis://redis.example:6379/1",
    ] {
        assert!(shown.contains(&format!("\"{url}\"")), "{url}: {shown}");
    }
    assert!(!shown.contains(CANARY), "{shown}");
    assert!(output.stderr.is_empty());
}

fn lines(bytes: &[u8]) -> Vec<&str> {
    std::str::from_utf8(bytes).unwrap().lines().collect()
}

#[tokio::test]
async fn check_ends_with_what_would_run_and_ok() {
    let file = ConfigFile::new(&setup().toml("https://unpod.example"));

    let output = run(&["check", "--config", &file.path()]).await;

    let told = lines(&output.stdout);
    let (shown, summary) = told.split_at(told.len() - 8);
    assert!(toml::from_str::<toml::Table>(&shown.join("\n")).is_ok());
    assert_eq!(
        summary,
        [
            "",
            "listeners:    127.0.0.1:0 for clients (plain HTTP), 127.0.0.1:0 for operators (no key)",
            "upstream:     https://unpod.example/, as many calls as its headers allow",
            "credentials:  default",
            "clients:      reader, refresher",
            "cache:        256.0 MiB, pages fresh for 30s, not kept over a restart",
            "Redis:        off",
            "OK",
        ]
    );
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[tokio::test]
async fn what_is_hardly_meant_is_a_warning_and_no_error() {
    let config = setup().with(
        "[server]\nlisten = '0.0.0.0:80'\n\
         [[clients]]\nname = 'old'\nspaces = ['*']\nexpires = '2001-01-01T00:00:00Z'\n\
         key_sha256 = ['0000000000000000000000000000000000000000000000000000000000000001']",
    );
    let file = ConfigFile::new(&config.toml("https://unpod.example"));

    let output = run(&["check", "--config", &file.path()]).await;

    assert!(output.status.success(), "{output:?}");
    assert_eq!(lines(&output.stdout).last(), Some(&"OK"));
    let told = lines(&output.stderr);
    let [expired, in_the_clear] = told[..] else {
        panic!("{told:?}");
    };
    assert!(
        expired.starts_with("warning: clients[2].expires: "),
        "{expired}"
    );
    assert!(
        in_the_clear.starts_with("warning: server.listen: "),
        "{in_the_clear}"
    );
}

/// Two spaces for two credentials, in the words of the configuration.
fn two_credentials(space: &str) -> String {
    format!(
        "[upstream]\nquota_per_minute = 60\n\
         [{CREDENTIAL}]\ntoken = '{}'\nspaces = ['{space}']",
        world::ACME_NEXT_TOKEN
    )
}

#[tokio::test]
async fn check_online_asks_once_for_each_credential_and_says_so() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    simulator.control().set_quota(Some(5));
    simulator.control().set_clock_skew(3600);
    let config = setup().with(&two_credentials(world::SUPPORT));
    let file = ConfigFile::new(&config.toml(&simulator.base_url()));

    let output = run(&["check", "--online", "--config", &file.path()]).await;

    assert!(output.status.success(), "{output:?}");
    let told = lines(&output.stdout);
    let [.., default, other, cost, "OK"] = told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(
        default,
        "online:       upstream.credentials.default: token accepted, no space is named that could be read, 4 of 5 calls left"
    );
    assert_eq!(
        other,
        format!(
            "online:       {CREDENTIAL}: token accepted, {CREDENTIAL}.spaces[0] readable, 4 of 5 calls left"
        )
    );
    assert_eq!(cost, "online:       it cost 2 of the upstream's calls");
    assert_eq!(simulator.control().requests(), 2);
    let warned = lines(&output.stderr);
    assert_eq!(warned.len(), 4, "{warned:?}");
    for (line, part) in warned
        .iter()
        .zip(["ahead of", "more than the 5 calls"].repeat(2))
    {
        assert!(
            line.starts_with("warning: ") && line.contains(part),
            "{line}"
        );
    }
}

#[tokio::test]
async fn check_online_fails_with_a_code_of_its_own_where_the_upstream_does_not_serve() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    simulator.control().revoke_token(world::ACME_TOKEN);
    let nobody = "http://127.0.0.1:9".to_owned();
    for (space, base_url, expected) in [
        (
            world::SUPPORT,
            simulator.base_url(),
            vec!["upstream.credentials.default: the upstream refuses this token"],
        ),
        (
            world::UNKNOWN_SPACE,
            simulator.base_url(),
            vec![
                "default: the upstream refuses",
                "no such space as upstream.credentials.other.spaces[0]",
            ],
        ),
        (
            world::GLOBEX_SPACE,
            simulator.base_url(),
            vec![
                "default: the upstream refuses",
                "may not read upstream.credentials.other.spaces[0]",
            ],
        ),
        (
            world::SUPPORT,
            nobody,
            vec!["cannot be reached", "cannot be reached"],
        ),
    ] {
        let config = setup().with(&two_credentials(space)).toml(&base_url);
        let file = ConfigFile::new(&config);

        let output = run(&["check", "--online", "--config", &file.path()]).await;

        assert_eq!(output.status.code(), Some(69), "{output:?}");
        assert_ne!(lines(&output.stdout).last(), Some(&"OK"));
        let told = lines(&output.stderr);
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (line, part) in told.iter().zip(expected) {
            assert!(line.contains(part), "{part}: {line}");
        }
        let all = format!("{output:?}");
        for secret in [world::ACME_TOKEN, world::ACME_NEXT_TOKEN] {
            assert!(!all.contains(secret), "{all}");
        }
    }
    // An invalid configuration asks nobody.
    let before = simulator.control().requests();
    let broken = setup().with("[cache]\nttl = 'soon'");
    let file = ConfigFile::new(&broken.toml(&simulator.base_url()));
    let output = run(&["check", "--online", "--config", &file.path()]).await;
    assert_eq!(output.status.code(), EX_CONFIG);
    assert_eq!(simulator.control().requests(), before);
}
