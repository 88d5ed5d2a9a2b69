//! Tokens of an identity provider, at the wire.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use unpod_gateway::simulator::{Options, Simulator, world};

use crate::{
    answer::Ask,
    gateway::{Gateway, READER, client, patiently, setup, until},
    process::Served,
    provider::{ProviderKey, base64url, claims, file, jwks, keyless, section, unix_now},
    raw::{self, RawUpstream},
    upstream_tls::TlsFront,
};

fn path() -> String {
    format!("/spaces/{}/tasks", world::SUPPORT)
}

/// A gateway that believes `keys`, read from a file, and has a client `crm` for every space.
async fn believing(keys: &[&ProviderKey], lines: &str) -> Gateway {
    let file = file(&jwks(keys));
    let from_file = format!("jwks_file = '{}'\n{lines}", file.path().display());
    let crm = keyless("crm", "[\"*\"]");
    setup().with(&section(&from_file)).with(&crm).start().await
}

fn with_token(gateway: &Gateway, token: &str) -> Ask {
    let asked = gateway.get(&path()).without_key();
    asked.header("authorization", &format!("Bearer {token}"))
}

/// How often authentication failed for `reason`.
fn failures(gateway: &Gateway, reason: &str) -> u64 {
    let text = gateway.app.metrics().encode();
    let sample = format!("gateway_auth_failures_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&sample));
    line.expect("every reason has a sample").parse().unwrap()
}

fn ok(document: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{document}",
        document.len()
    )
}

/// Waits until `token` is taken.
async fn until_taken(gateway: &Gateway, token: &str) {
    let taken = async { while with_token(gateway, token).await.status != 200 {} };
    patiently("a token that is taken", taken).await;
}

#[tokio::test]
async fn a_token_of_each_algorithm_is_taken_as_bearer_or_token() {
    let keys = [
        ProviderKey::rs256("rsa"),
        ProviderKey::es256("ec"),
        ProviderKey::ed25519("ed"),
    ];
    let gateway = believing(&keys.each_ref(), "").await;
    let page = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    for key in &keys {
        for scheme in ["Bearer", "bearer", "Token"] {
            let value = format!("{scheme} {}", key.token("crm"));
            let asked = gateway.get(&path()).without_key();

            let answer = asked.header("authorization", &value).await;

            answer.assert_page(&page);
        }
    }
    // Named in the metrics as the client it is.
    let metrics = gateway.app.metrics().encode();
    let sample = "gateway_http_requests_total{route=\"tasks\",status=\"200\",client=\"crm\"} 9";
    assert!(metrics.contains(sample), "{metrics}");
}

#[tokio::test]
async fn whatever_is_wrong_with_a_token_gets_the_401_of_an_unknown_key() {
    let key = ProviderKey::es256("one");
    let stranger = ProviderKey::es256("one");
    let gateway = believing(&[&key], "").await;
    let now = unix_now();
    let with = |changes: Value| key.sign(&claims("crm", changes));
    let unsigned = format!(
        "{}.{}.",
        base64url(r#"{"alg":"none","kid":"one"}"#),
        base64url(claims("crm", json!({})).to_string())
    );
    let secret = EncodingKey::from_secret(key.public()["x"].as_str().unwrap().as_bytes());
    let symmetric = Header {
        alg: Algorithm::HS256,
        ..key.header()
    };
    let symmetric = jsonwebtoken::encode(&symmetric, &claims("crm", json!({})), &secret).unwrap();
    let unknown = Header {
        kid: Some("two".to_owned()),
        ..key.header()
    };
    let good = key.token("crm");
    let table = [
        ("ugw_unknown".to_owned(), "unknown"),
        (unsigned, "unknown"),
        (good[..good.len() - 42].to_owned(), "bad_signature"),
        (symmetric, "wrong_algorithm"),
        (stranger.token("crm"), "bad_signature"),
        (
            key.sign_under(&unknown, &claims("crm", json!({}))),
            "unknown_key",
        ),
        (with(json!({"exp": now - 31})), "expired"),
        (with(json!({"exp": -1})), "expired"),
        (with(json!({"exp": (now + 300).to_string()})), "bad_claims"),
        (with(json!({"exp": null})), "bad_claims"),
        (with(json!({"nbf": now + 300})), "not_yet_valid"),
        (
            with(json!({"iss": "https://other.example"})),
            "wrong_issuer",
        ),
        (with(json!({"aud": ["other", "another"]})), "wrong_audience"),
        (key.token("nobody"), "unknown_client"),
        (key.token("crm") + ".", "unknown"),
        ("ugw_e30.e30.e30".to_owned(), "malformed"),
    ];
    let mut answers = Vec::new();
    for (token, reason) in table {
        let before = failures(&gateway, reason);

        let answer = with_token(&gateway, &token)
            .header("x-request-id", "same")
            .await;

        answer.assert_error("unauthenticated");
        assert_eq!(failures(&gateway, reason), before + 1, "{reason}: {token}");
        let mut headers = answer.headers;
        headers.remove("date");
        answers.push((headers, answer.body));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1);
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn odd_but_good_claims_are_taken() {
    let key = ProviderKey::es256("one");
    let gateway = believing(&[&key], "").await;
    for changes in [
        json!({"exp": unix_now() as f64 + 300.5}),
        json!({"exp": 1e300}),
        json!({"exp": u64::MAX}),
        json!({"aud": ["other", crate::provider::AUDIENCE]}),
        json!({"nbf": 0}),
        // Whose clock is a little ahead or behind.
        json!({"nbf": unix_now() + 20}),
        json!({"exp": unix_now() - 10}),
    ] {
        let token = key.sign(&claims("crm", changes.clone()));
        assert_eq!(with_token(&gateway, &token).await.status, 200, "{changes}");
    }
}

#[tokio::test]
async fn a_token_elsewhere_than_in_authorization_is_no_credential() {
    let key = ProviderKey::es256("one");
    let gateway = believing(&[&key], "").await;
    let token = key.token("crm");
    for lines in [
        format!("Cookie: access_token={token}; Authorization=Bearer {token}\r\n"),
        format!("X-Api-Key: {token}\r\n"),
        format!("Proxy-Authorization: Bearer {token}\r\n"),
        format!("Authorization: {token}\r\n"),
        format!("Authorization: JWT {token}\r\n"),
        format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n"),
    ] {
        let answer = raw::send(gateway.address(), "GET", &path(), &lines).await;
        answer.assert_error("unauthenticated");
    }
    for name in ["access_token", "token", "jwt"] {
        let asked = format!("{}?{name}={token}", path());
        gateway
            .get(&asked)
            .without_key()
            .await
            .assert_error("unauthenticated");
        gateway.get(&asked).await.assert_error("unknown_parameter");
    }
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn a_key_of_the_form_of_a_token_is_a_key() {
    let key = ProviderKey::es256("one");
    let odd = client("odd", "ugw.key.here", "spaces = [\"*\"]");
    let file = file(&jwks(&[&key]));
    let section = section(&format!("jwks_file = '{}'", file.path().display()));
    let gateway = setup().with(&section).with(&odd).start().await;

    assert_eq!(gateway.get(&path()).key("ugw.key.here").await.status, 200);
    assert_eq!(gateway.get(&path()).key(READER).await.status, 200);
}

#[tokio::test]
async fn without_an_identity_provider_no_token_is_looked_at() {
    let gateway = setup().start().await;
    let token = ProviderKey::es256("one").token("reader");

    with_token(&gateway, &token)
        .await
        .assert_error("unauthenticated");

    assert_eq!(failures(&gateway, "unknown"), 1);
}

#[tokio::test]
async fn a_token_narrows_its_clients_spaces_and_never_widens_them() {
    let key = ProviderKey::es256("one");
    let file = file(&jwks(&[&key]));
    let section = section(&format!(
        "jwks_file = '{}'\nclient_claim = \"azp\"\nspaces_claim = \"spaces\"",
        file.path().display()
    ));
    let narrow = keyless("narrow", &format!("[\"{}\"]", world::SUPPORT));
    let wide = keyless("wide", "[\"*\"]");
    let gateway = setup()
        .with(&section)
        .with(&narrow)
        .with(&wide)
        .start()
        .await;
    let ask = async |client: &str, spaces: Value, space: &str| {
        let changes = json!({"azp": client, "spaces": spaces});
        let token = key.sign(&claims("somebody", changes));
        let asked = gateway.tasks(space, "").without_key();
        let answer = asked
            .header("authorization", &format!("Bearer {token}"))
            .await;
        match answer.status {
            200 => String::new(),
            _ => answer.code(),
        }
    };
    let both = format!("{} {}", world::SUPPORT, world::ARCHIVE);
    for (client, spaces, space, expected) in [
        ("wide", json!([world::SUPPORT]), world::SUPPORT, ""),
        (
            "wide",
            json!([world::SUPPORT]),
            world::ARCHIVE,
            "space_not_allowed",
        ),
        ("wide", json!(both), world::ARCHIVE, ""),
        ("wide", json!("*"), world::ARCHIVE, ""),
        ("narrow", json!(both), world::SUPPORT, ""),
        ("narrow", json!(both), world::ARCHIVE, "space_not_allowed"),
        ("narrow", json!("*"), world::ARCHIVE, "space_not_allowed"),
        ("wide", json!([]), world::SUPPORT, "space_not_allowed"),
        ("wide", json!(5), world::SUPPORT, "unauthenticated"),
    ] {
        let told = ask(client, spaces.clone(), space).await;
        assert_eq!(told, expected, "{client} {spaces} {space}");
    }
    // A token that does not say how far it reaches reaches nowhere.
    let silent = key.sign(&claims("somebody", json!({"azp": "wide"})));
    with_token(&gateway, &silent)
        .await
        .assert_error("space_not_allowed");
}

#[tokio::test]
async fn two_tokens_of_one_header_are_two_callers() {
    let key = ProviderKey::es256("one");
    let file = file(&jwks(&[&key]));
    let section = section(&format!("jwks_file = '{}'", file.path().display()));
    let here = keyless("here", &format!("[\"{}\"]", world::SUPPORT));
    let there = keyless("there", &format!("[\"{}\"]", world::ARCHIVE));
    let gateway = setup()
        .with(&section)
        .with(&here)
        .with(&there)
        .start()
        .await;
    let [here, there] = ["here", "there"].map(|name| key.token(name));
    assert_eq!(here.split('.').next(), there.split('.').next());
    for _ in 0..2 {
        assert_eq!(with_token(&gateway, &here).await.status, 200);
        with_token(&gateway, &there)
            .await
            .assert_error("space_not_allowed");
    }
}

#[tokio::test]
async fn a_token_without_a_key_id_needs_its_algorithm_to_have_one_key() {
    let (first, second) = (ProviderKey::es256("a"), ProviderKey::es256("b"));
    let alone = ProviderKey::ed25519("c");
    let gateway = believing(&[&first, &second, &alone], "").await;
    let nameless = |key: &ProviderKey| {
        let header = Header {
            kid: None,
            ..key.header()
        };
        key.sign_under(&header, &claims("crm", json!({})))
    };

    assert_eq!(with_token(&gateway, &nameless(&alone)).await.status, 200);
    with_token(&gateway, &nameless(&first))
        .await
        .assert_error("unauthenticated");
}

#[tokio::test]
async fn an_algorithm_that_is_not_configured_is_not_taken() {
    let (ec, ed) = (ProviderKey::es256("a"), ProviderKey::ed25519("b"));
    let gateway = believing(&[&ec, &ed], "algorithms = [\"EdDSA\"]").await;

    assert_eq!(with_token(&gateway, &ed.token("crm")).await.status, 200);
    with_token(&gateway, &ec.token("crm"))
        .await
        .assert_error("unauthenticated");
}

/// A gateway that fetches its keys from `url`.
async fn fetching(url: &str) -> Gateway {
    let section = section(&format!("jwks_url = \"{url}/jwks\""));
    let crm = keyless("crm", "[\"*\"]");
    setup().with(&section).with(&crm).start().await
}

#[tokio::test]
async fn a_gateway_serves_before_its_providers_keys_are_there() {
    let key = ProviderKey::es256("one");
    // Connections wait in its backlog.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();

    let gateway = fetching(&format!("http://{address}")).await;

    assert_eq!(gateway.get(&path()).await.status, 200);
    let expired = key.sign(&claims("crm", json!({"exp": 1})));
    with_token(&gateway, &expired)
        .await
        .assert_error("unauthenticated");
    let unavailable = with_token(&gateway, &key.token("crm")).await;
    unavailable.assert_error("identity_unavailable");
    let wait = unavailable.header("retry-after").unwrap();
    assert!((1..=10).contains(&wait.parse::<u64>().unwrap()), "{wait}");
    assert_eq!(
        identity(&gateway).await,
        ("degraded".to_owned(), "missing".to_owned())
    );

    let _server = RawUpstream::on(listener, ok(&jwks(&[&key])));
    until_taken(&gateway, &key.token("crm")).await;
    let current = ("ready".to_owned(), "current".to_owned());
    patiently("readiness", async {
        while identity(&gateway).await != current {}
    })
    .await;
}

/// What readiness says of the identity provider's keys.
async fn identity(gateway: &Gateway) -> (String, String) {
    let url = format!("{}/readyz", gateway.admin_url());
    let answer = gateway.http().get(url).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let told: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    let part = &told["parts"]["identity"];
    assert_eq!(told["status"], part["status"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&part["status"]), text(&part["keys"]))
}

#[tokio::test]
async fn while_keys_are_missing_tokens_count_as_no_failures() {
    let key = ProviderKey::es256("one");
    let section = section("jwks_url = \"http://127.0.0.1:9/jwks\"");
    let limited = "[auth]\nmax_failures = 1";
    let setup = setup().with(&section).with(&keyless("crm", "[\"*\"]"));
    let gateway = setup.with(limited).start().await;
    for _ in 0..3 {
        let answer = with_token(&gateway, &key.token("crm")).await;
        answer.assert_error("identity_unavailable");
    }
    assert_eq!(gateway.get(&path()).await.status, 200);
    let garbage = with_token(&gateway, "e30.e30.e30").await;
    garbage.assert_error("unauthenticated");
    let garbage = with_token(&gateway, "ugw_x").await;
    garbage.assert_error("rate_limited");
    let answer = with_token(&gateway, &key.token("crm")).await;
    answer.assert_error("identity_unavailable");
}

#[tokio::test]
async fn a_reload_that_names_another_place_or_algorithm_leaves_the_keys_in_force() {
    let (key, new) = (ProviderKey::es256("one"), ProviderKey::es256("two"));
    let server = RawUpstream::answering(ok(&jwks(&[&key]))).await;
    let next = RawUpstream::answering("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    let at = |url: &str, lines: &str| {
        let section = section(&format!("jwks_url = \"{url}/jwks\"\n{lines}"));
        setup().with(&section).with(&keyless("crm", "[\"*\"]"))
    };
    let running = at(&server.base_url(), "").start_from_file().await;
    let gateway = &running.gateway;
    until_taken(gateway, &key.token("crm")).await;
    // Whatever it says from now on is not needed.
    server.answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    let fewer = "algorithms = [\"ES256\", \"EdDSA\"]";
    for setup in [
        at(&server.base_url(), fewer),
        at(&next.base_url(), fewer),
        at(&next.base_url(), ""),
    ] {
        running.rewrite(setup);
        assert_eq!(running.reload().await.0, 200);
        for _ in 0..3 {
            let answer = with_token(gateway, &key.token("crm")).await;
            assert_eq!(answer.status, 200);
        }
        assert_eq!(identity(gateway).await.1, "stale");
    }

    next.answer(ok(&jwks(&[&new])));
    until_taken(gateway, &new.token("crm")).await;
    let withdrawn = with_token(gateway, &key.token("crm")).await;
    withdrawn.assert_error("unauthenticated");

    running.rewrite(at(&next.base_url(), "algorithms = [\"RS256\"]"));
    assert_eq!(running.reload().await.0, 200);
    let refused = with_token(gateway, &new.token("crm")).await;
    refused.assert_error("unauthenticated");
}

#[tokio::test]
async fn new_good_tokens_are_taken_beside_hundreds_of_forgeries_from_one_address() {
    let (key, stranger) = (ProviderKey::es256("one"), ProviderKey::es256("one"));
    let file = file(&jwks(&[&key]));
    let section = section(&format!("jwks_file = '{}'", file.path().display()));
    let setup = setup().with(&section).with(&keyless("crm", "[\"*\"]"));
    let gateway = setup.with("[auth]\nmax_failures = 5").start().await;
    let number = std::cell::Cell::new(0);
    let fresh = |key: &ProviderKey| {
        number.set(number.get() + 1);
        key.sign(&claims("crm", json!({"jti": number.get()})))
    };
    for _ in 0..30 {
        for _ in 0..7 {
            let forged = with_token(&gateway, &fresh(&stranger)).await;
            assert!(["unauthenticated", "rate_limited"].contains(&&*forged.code()));
        }
        assert_eq!(with_token(&gateway, &fresh(&key)).await.status, 200);
    }
    assert_eq!(gateway.get(&path()).await.status, 200);
}

#[tokio::test]
async fn a_new_key_is_found_by_its_first_token_and_asked_for_once() {
    let (old, new) = (ProviderKey::es256("old"), ProviderKey::es256("new"));
    let server = RawUpstream::answering(ok(&jwks(&[&old]))).await;
    let gateway = fetching(&server.base_url()).await;
    until_taken(&gateway, &old.token("crm")).await;
    server.answer(ok(&jwks(&[&new])));

    with_token(&gateway, &new.token("crm"))
        .await
        .assert_error("unauthenticated");
    until_taken(&gateway, &new.token("crm")).await;

    // A key that was withdrawn proves nothing, remembered or not.
    with_token(&gateway, &old.token("crm"))
        .await
        .assert_error("unauthenticated");
    for number in 0..20 {
        let made_up = ProviderKey::es256(&format!("made-up-{number}"));
        with_token(&gateway, &made_up.token("crm"))
            .await
            .assert_error("unauthenticated");
    }
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn an_outage_of_the_provider_leaves_the_last_keys_in_force() {
    let key = ProviderKey::es256("one");
    let server = RawUpstream::answering(ok(&jwks(&[&key]))).await;
    let gateway = fetching(&server.base_url()).await;
    until_taken(&gateway, &key.token("crm")).await;
    server.answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");

    let unknown = ProviderKey::es256("two");
    with_token(&gateway, &unknown.token("crm"))
        .await
        .assert_error("unauthenticated");
    until(|| server.requests() == 2).await;

    assert_eq!(with_token(&gateway, &key.token("crm")).await.status, 200);
}

#[tokio::test]
async fn what_is_no_set_of_keys_is_not_taken_for_one() {
    let key = ProviderKey::es256("one");
    let elsewhere = RawUpstream::answering(ok(&jwks(&[&key]))).await;
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nLocation: {}/jwks\r\nContent-Length: 0\r\n\r\n",
        elsewhere.base_url()
    );
    let padded = format!("{}{}", jwks(&[&key]), " ".repeat(1024 * 1024));
    let accepted = ok(&jwks(&[&key])).replace("200 OK", "202 Accepted");
    let cut = jwks(&[&key]);
    let bad = [
        redirect,
        ok(&padded),
        accepted,
        ok("<html>"),
        ok(&cut[..cut.len() - 1]),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{cut}"),
    ];
    let mut started = Vec::new();
    for answer in bad {
        let server = RawUpstream::answering(answer).await;
        let gateway = fetching(&server.base_url()).await;
        started.push((server, gateway));
    }
    for (server, gateway) in &started {
        // The first reading has failed when the second is made.
        until(|| server.requests() >= 2).await;
        with_token(gateway, &key.token("crm"))
            .await
            .assert_error("identity_unavailable");
    }
    assert_eq!(elsewhere.requests(), 0);
}

#[tokio::test]
async fn keys_come_over_tls_from_whom_the_system_trusts_and_tokens_are_not_logged() {
    let key = ProviderKey::es256("one");
    let server = RawUpstream::answering(ok(&jwks(&[&key]))).await;
    let front = TlsFront::before(server.address()).await;
    let authority = front.authority.path().to_str().unwrap();
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let section = section(&format!("jwks_url = \"{}/jwks\"", front.url("localhost")));
    let setup = setup()
        .with("[telemetry]\nfilter = \"trace\"\naccess_log = true")
        .with(&section)
        .with(&keyless("crm", "[\"*\"]"));
    let environment = [("SSL_CERT_FILE", authority)];
    let served = Served::start_under(&environment, setup, &simulator.base_url()).await;
    let token = key.token("crm");
    let ask = |query: &str| {
        let asked = served.get(&format!("{}{query}", path())).without_key();
        asked.header("authorization", &format!("Bearer {token}"))
    };

    let taken = async { while ask("").await.status != 200 {} };
    patiently("a token that is taken", taken).await;
    let in_query = ask(&format!("?access_token={token}")).await;
    in_query.assert_error("unknown_parameter");

    served.signal("-TERM").await;
    let (_, log) = served.end().await;
    let named = log
        .iter()
        .any(|line| line.contains("\"client.name\":\"crm\""));
    assert!(named);
    let signature = token.rsplit('.').next().unwrap();
    for line in log {
        assert!(!line.contains(signature), "{line}");
        assert!(!line.contains("access_token"), "{line}");
    }
}
