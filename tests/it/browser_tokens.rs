//! Browser tokens at the wire: who may mint them, what they may do, and when they end.

use std::time::SystemTime;

use http::Method;
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use unpod_gateway::simulator::{Options, Simulator, world};

use crate::{
    answer::{Answer, Ask, check},
    gateway::{Gateway, READER, REFRESHER, client, patiently, setup, start, until},
    process::Served,
    provider::{self, ProviderKey, base64url, claims, file, jwks, keyless, unix_now},
    raw,
};

const NARROW: &str = "ugw_narrow_key";

/// A key pair for browser tokens.
pub(crate) fn pair() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).unwrap()
}

/// A gateway's set-up that signs with `signing` and verifies with the others too.
struct Keys(tempfile::TempDir);

impl Keys {
    fn new(signing: &KeyPair, older: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, pem: &str| std::fs::write(directory.path().join(name), pem);
        write("signing", &signing.serialize_pem()).unwrap();
        for (place, pem) in older.iter().enumerate() {
            write(&place.to_string(), pem).unwrap();
        }
        Self(directory)
    }

    fn section(&self, older: usize, lines: &str) -> String {
        let path = |name: &str| format!("'{}'", self.0.path().join(name).display());
        let older: Vec<_> = (0..older).map(|place| path(&place.to_string())).collect();
        format!(
            "[auth.browser_tokens]\nsigning_key_file = {}\nverify_key_files = [{}]\n{lines}\n",
            path("signing"),
            older.join(", ")
        )
    }
}

/// A gateway that signs with `signing`, with a client of two spaces, and what else `lines` say.
pub(crate) async fn minting(signing: &KeyPair, lines: &str) -> Gateway {
    let keys = Keys::new(signing, &[]);
    let narrow = client(
        "narrow",
        NARROW,
        &format!("spaces = [\"{}\", \"{}\"]", world::SUPPORT, world::ARCHIVE),
    );
    let setup = setup().with(&keys.section(0, "")).with(&narrow);
    setup.with(lines).start().await
}

pub(crate) fn mint(gateway: &Gateway, body: &Value) -> Ask {
    gateway
        .ask("POST", "/browser-tokens")
        .body(body.to_string())
}

pub(crate) fn for_support(ttl: u64) -> Value {
    json!({"spaces": [world::SUPPORT], "ttl_seconds": ttl})
}

/// The token of a 200.
#[track_caller]
pub(crate) fn token(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    answer.json()["token"].as_str().unwrap().to_owned()
}

fn with_token(gateway: &Gateway, token: &str, space: &str) -> Ask {
    let asked = gateway.tasks(space, "").without_key();
    asked.header("authorization", &format!("Bearer {token}"))
}

fn claims_of(token: &str) -> Value {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

#[tokio::test]
async fn a_minted_token_reads_its_spaces_for_its_time() {
    let gateway = minting(&pair(), "").await;
    let before = unix_now();

    let minted = mint(&gateway, &for_support(300)).key(NARROW).await;

    let token = token(&minted);
    assert_eq!(minted.header("content-type"), Some("application/json"));
    assert_eq!(minted.header("cache-control"), Some("no-store"));
    let mut members: Vec<_> = minted.json().as_object().unwrap().keys().cloned().collect();
    members.sort_unstable();
    assert_eq!(members, ["expires_at", "token"]);
    let expires_at = minted.json()["expires_at"].as_str().unwrap().to_owned();
    let expires_at = humantime::parse_rfc3339(&expires_at).unwrap();
    let seconds = expires_at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!((before + 300..=unix_now() + 300).contains(&seconds));
    assert_eq!(claims_of(&token)["exp"], seconds);

    let page = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    with_token(&gateway, &token, world::SUPPORT)
        .await
        .assert_page(&page);
    with_token(&gateway, &token, world::ARCHIVE)
        .await
        .assert_error("space_not_allowed");
    // The access log and the metrics know it by its minter's name.
    let metrics = gateway.app.metrics().encode();
    for sample in [
        "gateway_http_requests_total{route=\"browser_tokens\",status=\"200\",client=\"narrow\"} 1",
        "gateway_http_requests_total{route=\"tasks\",status=\"200\",client=\"narrow\"} 1",
    ] {
        assert!(metrics.contains(sample), "{sample}");
    }
}

#[tokio::test]
async fn a_longer_time_is_cut_to_the_longest() {
    let signing = pair();
    let keys = Keys::new(&signing, &[]);
    for (lines, longest) in [("", 900), ("max_ttl = \"2m\"", 120)] {
        let gateway = setup().with(&keys.section(0, lines)).start().await;
        let before = unix_now();

        let minted = mint(&gateway, &for_support(86_400)).await;

        let exp = claims_of(&token(&minted))["exp"].as_u64().unwrap();
        assert!((before + longest..=unix_now() + longest).contains(&exp));
    }
}

#[tokio::test]
async fn no_token_outlives_its_minter() {
    let ends =
        humantime::format_rfc3339_seconds(SystemTime::now() + std::time::Duration::from_secs(60));
    let leaving = client(
        "leaving",
        "ugw_leaving",
        &format!("spaces = [\"*\"]\nexpires = \"{ends}\""),
    );
    let gateway = minting(&pair(), &leaving).await;

    let minted = mint(&gateway, &for_support(300)).key("ugw_leaving").await;

    assert_eq!(minted.json()["expires_at"], ends.to_string());
}

#[tokio::test]
async fn a_body_is_what_it_must_be_or_it_is_told() {
    let gateway = minting(&pair(), "").await;
    let spaces = |count: usize| -> Vec<String> { (0..count).map(|n| format!("S{n}")).collect() };
    let long = format!(
        "{{\"spaces\":[\"A\"],\"ttl_seconds\":1}}{}",
        " ".repeat(4096)
    );
    for body in [
        String::new(),
        "{".to_owned(),
        "[[\"A\"],300]".to_owned(),
        json!({"spaces": [], "ttl_seconds": 300}).to_string(),
        json!({"spaces": ["*"], "ttl_seconds": 300}).to_string(),
        json!({"spaces": ["A", "*"], "ttl_seconds": 300}).to_string(),
        json!({"spaces": ["a/b"], "ttl_seconds": 300}).to_string(),
        json!({"spaces": spaces(33), "ttl_seconds": 300}).to_string(),
        json!({"spaces": "A", "ttl_seconds": 300}).to_string(),
        json!({"spaces": ["A"]}).to_string(),
        json!({"ttl_seconds": 300}).to_string(),
        json!({"spaces": ["A"], "ttl_seconds": 0}).to_string(),
        json!({"spaces": ["A"], "ttl_seconds": -1}).to_string(),
        json!({"spaces": ["A"], "ttl_seconds": 1.5}).to_string(),
        json!({"spaces": ["A"], "ttl_seconds": "300"}).to_string(),
        json!({"spaces": ["A"], "ttl_seconds": 300, "view": "public"}).to_string(),
        json!({"spaces": ["A"], "ttl_seconds": 300, "may_refresh": true}).to_string(),
        long,
    ] {
        let asked = gateway.ask("POST", "/browser-tokens").body(body.clone());
        let answer = asked.await;
        assert_eq!(answer.code(), "invalid_body", "{body}");
    }
    let most = json!({"spaces": spaces(32), "ttl_seconds": 300});
    assert_eq!(mint(&gateway, &most).await.status, 200);
}

#[tokio::test]
async fn a_space_that_is_not_the_minters_is_not_minted() {
    let gateway = minting(&pair(), "").await;
    let body = json!({"spaces": [world::SUPPORT, world::LIVE], "ttl_seconds": 300});

    mint(&gateway, &body)
        .key(NARROW)
        .await
        .assert_error("space_not_allowed");

    // What is wrong with the body is told before whose the spaces are.
    let body = json!({"spaces": [world::LIVE], "ttl_seconds": 0});
    mint(&gateway, &body)
        .key(NARROW)
        .await
        .assert_error("invalid_body");
}

#[tokio::test]
async fn the_order_of_what_is_told_is_who_route_method_query_right_body() {
    let gateway = minting(&pair(), "").await;
    let minted = token(&mint(&gateway, &for_support(300)).await);
    let bearer = format!("Bearer {minted}");

    let unknown = gateway
        .ask("DELETE", "/browser-tokens?x=1")
        .key("ugw_unknown")
        .await;
    unknown.assert_error("unauthenticated");
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = gateway.ask(method, "/browser-tokens?x=1").await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("POST"), "{method}");
    }
    let by_browser = |path: &str| {
        let asked = gateway.ask("POST", path).without_key();
        asked.header("authorization", &bearer).body("nonsense")
    };
    let queried = by_browser("/browser-tokens?view=public").await;
    queried.assert_error("unknown_parameter");
    assert!(
        queried.json()["detail"]
            .as_str()
            .unwrap()
            .contains("`view`")
    );
    by_browser("/browser-tokens")
        .await
        .assert_error("minting_not_allowed");
    gateway
        .ask("POST", "/browser-tokens/")
        .await
        .assert_error("route_not_found");
}

#[tokio::test]
async fn without_keys_for_them_there_is_no_such_route_and_no_such_token() {
    let gateway = start().await;
    for method in ["POST", "GET", "OPTIONS"] {
        let answer = gateway.ask(method, "/browser-tokens").await;
        answer.assert_error("route_not_found");
    }
    let elsewhere = minting(&pair(), "").await;
    let minted = token(&mint(&elsewhere, &for_support(300)).await);
    with_token(&gateway, &minted, world::SUPPORT)
        .await
        .assert_error("unauthenticated");
}

#[tokio::test]
async fn a_browser_token_mints_none() {
    let gateway = minting(&pair(), "").await;
    let minted = token(&mint(&gateway, &for_support(300)).await);

    let asked = mint(&gateway, &for_support(60)).without_key();
    let answer = asked
        .header("authorization", &format!("Bearer {minted}"))
        .await;

    answer.assert_error("minting_not_allowed");
}

#[tokio::test]
async fn a_browser_token_never_causes_a_call_that_it_could_do_without() {
    let gateway = minting(&pair(), "").await;
    let minted = mint(&gateway, &for_support(300)).key(REFRESHER).await;
    let ask = || with_token(&gateway, &token(&minted), world::SUPPORT).cache_control("no-cache");
    assert_eq!(ask().await.status, 200);

    assert_eq!(ask().await.cache_status(), "hit");

    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_minter_that_is_gone_takes_its_tokens_along() {
    let signing = pair();
    let before = minting(&signing, "").await;
    let minted = token(&mint(&before, &for_support(300)).key(NARROW).await);

    let keys = Keys::new(&signing, &[]);
    let without = setup().with(&keys.section(0, "")).start().await;

    with_token(&without, &minted, world::SUPPORT)
        .await
        .assert_error("unauthenticated");
}

#[tokio::test]
async fn a_rotated_key_is_verified_while_it_is_named_and_not_after() {
    let (old, new) = (pair(), pair());
    let before = minting(&old, "").await;
    let minted = token(&mint(&before, &for_support(300)).await);
    for pem in [old.public_key_pem(), old.serialize_pem()] {
        let keys = Keys::new(&new, &[&pem]);
        let rotating = setup().with(&keys.section(1, "")).start().await;
        assert_eq!(
            with_token(&rotating, &minted, world::SUPPORT).await.status,
            200
        );
    }
    let keys = Keys::new(&new, &[]);
    let rotated = setup().with(&keys.section(0, "")).start().await;
    with_token(&rotated, &minted, world::SUPPORT)
        .await
        .assert_error("unauthenticated");
}

#[tokio::test]
async fn forged_tokens_get_the_401_of_an_unknown_key() {
    let signing = pair();
    let gateway = minting(&signing, "").await;
    let minted = token(&mint(&gateway, &for_support(300)).await);
    let parts: Vec<&str> = minted.split('.').collect();
    let mut widened = claims_of(&minted);
    widened["spaces"] = json!([world::LIVE]);
    let widened = base64url(widened.to_string());
    let unsigned = base64url(r#"{"typ":"ugwb+jwt","alg":"none"}"#);
    let last = &minted[..minted.len() - 1];
    let mut bodies = Vec::new();
    for forged in [
        "ugw_unknown".to_owned(),
        format!("{}.{widened}.{}", parts[0], parts[2]),
        format!("{unsigned}.{}.{}", parts[1], parts[2]),
        format!("{unsigned}.{}.", parts[1]),
        format!("{}.{}.{}", parts[0], parts[1], "A".repeat(86)),
        format!("{last}{}", if minted.ends_with('A') { 'Q' } else { 'A' }),
        format!("{minted}A"),
        format!("{minted}.{}", parts[2]),
        last.to_owned(),
    ] {
        let asked = with_token(&gateway, &forged, world::SUPPORT);
        let answer = asked.header("x-request-id", "same").await;
        answer.assert_error("unauthenticated");
        bodies.push(answer.body);
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1);
}

/// Beside browser tokens, a provider whose only key is also the one that signs them: the worst that can be configured.
#[tokio::test]
async fn neither_kind_of_token_passes_for_the_other_even_by_one_key() {
    let signing = pair();
    let kept = Keys::new(&signing, &[]);
    let key = ProviderKey::of_ed25519("one", &signing);
    let published = file(&jwks(&[&key]));
    let section = provider::section(&format!("jwks_file = '{}'", published.path().display()));
    let crm = keyless("crm", "[\"*\"]");
    let gateway = setup()
        .with(&kept.section(0, ""))
        .with(&section)
        .with(&crm)
        .start()
        .await;
    let minted = token(&mint(&gateway, &for_support(300)).await);
    let own = claims_of(&minted);
    let id = jsonwebtoken::decode_header(&minted).unwrap().kid.unwrap();
    let typed = |kid: &str, typ: Option<&str>| {
        let mut header = key.header();
        header.kid = Some(kid.to_owned());
        header.typ = typ.map(str::to_owned);
        header
    };
    let theirs = claims("crm", json!({}));
    let table = [
        (typed("one", Some("JWT")), &theirs, 200),
        (typed(&id, Some("ugwb+jwt")), &own, 200),
        // The provider's claims as a browser token, and the other way round.
        (typed(&id, Some("ugwb+jwt")), &theirs, 401),
        (typed("one", Some("ugwb+jwt")), &theirs, 401),
        (typed("one", Some("JWT")), &own, 401),
        (typed("one", None), &own, 401),
        (typed(&id, Some("JWT")), &own, 401),
        (typed(&id, None), &theirs, 401),
    ];
    for (header, claims, expected) in table {
        let token = key.sign_under(&header, claims);
        let answer = with_token(&gateway, &token, world::SUPPORT).await;
        assert_eq!(answer.status, expected, "{header:?} {claims}");
    }
}

#[tokio::test]
async fn a_caller_with_a_token_of_its_provider_mints_within_it() {
    let key = ProviderKey::es256("one");
    let kept = Keys::new(&pair(), &[]);
    let published = file(&jwks(&[&key]));
    let section = provider::section(&format!(
        "jwks_file = '{}'\nspaces_claim = \"spaces\"",
        published.path().display()
    ));
    let gateway = setup()
        .with(&kept.section(0, ""))
        .with(&section)
        .with(&keyless("crm", "[\"*\"]"))
        .start()
        .await;
    let exp = unix_now() + 120;
    let changes = json!({"spaces": [world::SUPPORT], "exp": exp});
    let bearer = format!("Bearer {}", key.sign(&claims("crm", changes)));
    let mint = |spaces: &[&str]| {
        let body = json!({"spaces": spaces, "ttl_seconds": 300});
        let asked = mint(&gateway, &body).without_key();
        asked.header("authorization", &bearer)
    };

    let minted = token(&mint(&[world::SUPPORT]).await);

    assert_eq!(
        with_token(&gateway, &minted, world::SUPPORT).await.status,
        200
    );
    // No longer than its minter's token is taken itself.
    assert_eq!(claims_of(&minted)["exp"], exp + 30);
    mint(&[world::ARCHIVE])
        .await
        .assert_error("space_not_allowed");
}

#[tokio::test]
async fn a_body_that_dribbles_is_given_up_and_holds_nobody() {
    let gateway = minting(&pair(), "[server]\nheader_read_timeout = \"200ms\"").await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let head = format!(
        "POST /browser-tokens HTTP/1.1\r\nHost: gateway\r\nAuthorization: Token {READER}\r\nContent-Length: 60\r\n\r\n{{\"spaces\""
    );

    stream.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    patiently("the end of the connection", read).await.unwrap();

    let answer = raw::parse(&bytes);
    check(&Method::POST, "/browser-tokens", &answer);
    answer.assert_error("invalid_body");
    gateway.wait_until_in_flight(0).await;
}

#[tokio::test]
async fn a_body_of_unknown_length_is_taken_and_one_without_end_is_not() {
    let gateway = minting(&pair(), "").await;
    let body = for_support(60).to_string();
    let head = format!(
        "POST /browser-tokens HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nAuthorization: Token {READER}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let send = async |chunks: String| {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        let answer = raw::exchange(&mut stream, format!("{head}{chunks}").as_bytes()).await;
        raw::parse(&answer)
    };

    let whole = send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())).await;
    assert_eq!(whole.status, 200);

    let endless = send(format!("1001\r\n{}\r\n", " ".repeat(0x1001))).await;
    endless.assert_error("invalid_body");
}

#[tokio::test]
async fn no_token_is_logged_and_each_line_names_its_minter() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let keys = Keys::new(&pair(), &[]);
    let setup = setup()
        .with("[telemetry]\nfilter = \"trace\"\naccess_log = true")
        .with(&keys.section(0, ""));
    let served = Served::start(setup, &simulator.base_url()).await;
    let minted = served.ask("POST", "/browser-tokens");
    let token = token(&minted.body(for_support(60).to_string()).await);
    let asked = served.get(&format!("/spaces/{}/tasks", world::SUPPORT));
    let asked = asked.without_key();
    let answer = asked
        .header("authorization", &format!("Bearer {token}"))
        .await;
    assert_eq!(answer.status, 200);

    served.signal("-TERM").await;
    let (_, log) = served.end().await;
    let (_, signature) = token.rsplit_once('.').unwrap();
    assert!(log.iter().all(|line| !line.contains(signature)));
    for route in ["browser_tokens", "tasks"] {
        let route = format!("\"request.route\":\"{route}\"");
        let line = log.iter().find(|line| line.contains(&route)).unwrap();
        assert!(line.contains("\"client.name\":\"reader\""), "{line}");
    }
}

/// The members of the first task that `token` is shown.
async fn shown_members(gateway: &Gateway, token: &str) -> Vec<String> {
    let answer = with_token(gateway, token, world::SUPPORT).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    let page = answer.json();
    let task = page["data"][0].as_object().unwrap();
    task.keys().cloned().collect()
}

#[tokio::test]
async fn a_token_shows_what_its_view_or_its_minters_names_and_no_more() {
    const VIEWS: &str =
        "[views.public]\nfields = ['task_id', 'status']\n[views.ids]\nfields = ['task_id']\n";
    let viewed = client("viewed", "ugw_viewed", "spaces = ['*']\nview = 'ids'");
    let gateway = minting(&pair(), &format!("{VIEWS}{viewed}")).await;
    let mint_seeing = |key: &'static str, view: &str| {
        let mut body = for_support(300);
        body["view"] = view.into();
        mint(&gateway, &body).key(key)
    };

    let asked = token(&mint_seeing(NARROW, "public").await);
    assert_eq!(shown_members(&gateway, &asked).await, ["status", "task_id"]);
    // A minter's own view holds, whatever is asked for.
    let held = token(&mint_seeing("ugw_viewed", "public").await);
    assert_eq!(shown_members(&gateway, &held).await, ["task_id"]);
    let plain = mint(&gateway, &for_support(300)).key("ugw_viewed").await;
    assert_eq!(shown_members(&gateway, &token(&plain)).await, ["task_id"]);
    let unknown = mint_seeing(NARROW, "nowhere").await;
    unknown.assert_error("invalid_body");
}

#[tokio::test]
async fn a_token_shows_no_more_when_its_minters_view_is_taken_away_widened_or_gone() {
    const PUBLIC: &str = "[views.public]\nfields = ['task_id', 'status']\n";
    const NARROWER: &str = "[views.public]\nfields = ['status']\n";
    const RUNS: &str = "[views.runs]\nfields = ['task_id', 'run_id']\n";
    let viewed = |view: &str| client("viewed", "ugw_viewed", &format!("spaces = ['*']\n{view}"));
    let pair = pair();
    let keys = Keys::new(&pair, &[]);
    let setup = |toml: String| setup().with(&keys.section(0, "")).with(&toml);
    let running = setup(format!("{PUBLIC}{RUNS}{}", viewed("view = 'public'")))
        .start_from_file()
        .await;
    let gateway = &running.gateway;
    let mint_seeing = async |view: Option<&str>| {
        let mut body = for_support(300);
        if let Some(view) = view {
            body["view"] = view.into();
        }
        token(&mint(gateway, &body).key("ugw_viewed").await)
    };
    let plain = mint_seeing(None).await;
    let narrowed = mint_seeing(Some("runs")).await;
    assert_eq!(shown_members(gateway, &plain).await, ["status", "task_id"]);
    assert_eq!(shown_members(gateway, &narrowed).await, ["task_id"]);

    for (toml, of_plain, of_narrowed) in [
        (
            format!("{PUBLIC}{RUNS}{}", viewed("")),
            &["status", "task_id"][..],
            &["task_id"][..],
        ),
        (
            format!("{PUBLIC}{RUNS}{}", viewed("view = 'runs'")),
            &["task_id"],
            &["task_id"],
        ),
        (
            format!("{NARROWER}{RUNS}{}", viewed("view = 'public'")),
            &["status"],
            &[],
        ),
    ] {
        running.rewrite(setup(toml));
        assert_eq!(running.reload().await.0, 200);
        assert_eq!(shown_members(gateway, &plain).await, of_plain);
        assert_eq!(shown_members(gateway, &narrowed).await, of_narrowed);
    }

    running.rewrite(setup(format!("{RUNS}{}", viewed(""))));
    assert_eq!(running.reload().await.0, 200);
    for token in [&plain, &narrowed] {
        let answer = with_token(gateway, token, world::SUPPORT).await;
        answer.assert_error("unauthenticated");
    }
}

#[tokio::test]
async fn a_token_draws_on_its_minters_limit_and_so_does_minting() {
    let limit = "spaces = ['*']\nrate_limit = { per_second = 0.001, burst = 3 }";
    let limited = client("limited", "ugw_limited", limit);
    let gateway = minting(&pair(), &limited).await;
    let minted = mint(&gateway, &for_support(300)).key("ugw_limited").await;
    assert!(minted.header("ratelimit").unwrap().contains("r=2"));
    let token = token(&minted);

    assert_eq!(
        with_token(&gateway, &token, world::SUPPORT).await.status,
        200
    );
    let own = gateway.tasks(world::SUPPORT, "").key("ugw_limited").await;
    assert!(own.header("ratelimit").unwrap().contains("r=0"));

    let spent = with_token(&gateway, &token, world::SUPPORT).await;
    spent.assert_error("rate_limited");
    let minting = mint(&gateway, &for_support(300)).key("ugw_limited").await;
    minting.assert_error("rate_limited");
}

/// A flood of bodies that are refused costs its client as much as one of bodies that are not.
#[tokio::test]
async fn every_body_draws_on_the_limit_before_it_is_read_good_or_bad() {
    let refused = [
        ("no body", String::new(), "invalid_body"),
        ("no JSON", "{".to_owned(), "invalid_body"),
        (
            "another member",
            json!({"a": 1}).to_string(),
            "invalid_body",
        ),
        ("too long", " ".repeat(5000), "invalid_body"),
        (
            "another space",
            json!({"spaces": [world::LIVE], "ttl_seconds": 1}).to_string(),
            "space_not_allowed",
        ),
    ];
    let limit = format!(
        "spaces = ['{}']\nrate_limit = {{ per_second = 0.0001, burst = {} }}",
        world::SUPPORT,
        refused.len()
    );
    let gateway = minting(&pair(), &client("limited", "ugw_limited", &limit)).await;
    let post = |body: String| {
        let asked = gateway.ask("POST", "/browser-tokens").key("ugw_limited");
        asked.body(body)
    };
    // Refused before the limit is asked.
    let elsewhere = gateway.ask("POST", "/browser-tokens?a=b");
    let elsewhere = elsewhere.key("ugw_limited").await;
    elsewhere.assert_error("unknown_parameter");

    for (drawn, (why, body, code)) in refused.iter().enumerate() {
        let answer = post(body.clone()).await;
        assert_eq!(answer.code(), *code, "{why}");
        let left = format!("r={};", refused.len() - drawn - 1);
        assert!(answer.header("ratelimit").unwrap().contains(&left), "{why}");
    }

    let spent = post(for_support(300).to_string()).await;
    spent.assert_error("rate_limited");
    // Nor is the body waited for.
    let unread = raw::send(
        gateway.address(),
        "POST",
        "/browser-tokens",
        "Authorization: Token ugw_limited\r\nContent-Length: 60\r\n",
    )
    .await;
    unread.assert_error("rate_limited");
}

/// Bodies that never end hold what may be under way until others come.
#[tokio::test]
async fn a_client_whose_bodies_never_end_keeps_nobody_out() {
    const MOST: usize = 8;
    let server = format!("[server]\nmax_in_flight = {MOST}\nheader_read_timeout = \"60s\"");
    let gateway = minting(&pair(), &server).await;
    let head = format!(
        "POST /browser-tokens HTTP/1.1\r\nHost: gateway\r\nAuthorization: Token {READER}\r\nContent-Length: 60\r\n\r\n{{"
    );
    let mut endless = Vec::new();
    for _ in 0..3 * MOST {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        endless.push(stream);
    }
    let shed = format!(
        "gateway_requests_shed_total{{reason=\"max_in_flight\"}} {}",
        2 * MOST
    );
    until(|| gateway.counts(&shed)).await;
    gateway.wait_until_in_flight(MOST as i64).await;

    for page in 1..=50 {
        let query = format!("?page={page}&page_size=1");
        let other = gateway.tasks(world::SUPPORT, &query).key(REFRESHER).await;
        assert_eq!(other.status, 200, "{page}");
    }
}
