//! Who may call, and what each is told: first who, then everything else.

use unpod_gateway::simulator::world;

use crate::{
    gateway::{READER, REFRESHER, client, digest, setup, start},
    raw,
};

fn path() -> String {
    format!("/spaces/{}/tasks", world::SUPPORT)
}

#[tokio::test]
async fn a_key_is_taken_as_token_or_bearer_in_any_case() {
    let gateway = start().await;
    for scheme in ["Token", "token", "TOKEN", "Bearer", "bearer", "bEaReR"] {
        let value = format!("{scheme} {READER}");
        let asked = gateway.get(&path()).without_key();

        let answer = asked.header("authorization", &value).await;

        assert_eq!(answer.status, 200, "{scheme}");
    }
}

#[tokio::test]
async fn whatever_is_no_credential_gets_the_same_401() {
    let expired = client(
        "expired",
        "ugw_expired",
        "spaces = [\"*\"]\nexpires = \"2020-01-01T00:00:00Z\"",
    );
    let gateway = setup().with(&expired).start().await;
    let line = |value: &str| format!("Authorization: {value}\r\n");
    let table = [
        String::new(),
        line("Token ugw_unknown"),
        line("Token ugw_expired"),
        line(&format!("Basic {READER}")),
        line(READER),
        line("Token"),
        line("Token "),
        line(&format!("Token {READER} {READER}")),
        line(&format!("Token {READER}x")),
        line(&format!("Token {}", &READER[1..])),
        line(&format!("Token {}", READER.to_uppercase())),
        line(&format!("Token {}", digest(READER))),
        line(&format!("Token {READER}, Token {READER}")),
        line(&format!("Token {READER}")) + &line(&format!("Token {READER}")),
        line(&format!("Token {}", world::ACME_TOKEN)),
        format!("X-Api-Key: {READER}\r\n"),
        format!("Cookie: token={READER}; Authorization=Token {READER}\r\n"),
        format!("Proxy-Authorization: Token {READER}\r\n"),
    ];
    let mut bodies = Vec::new();
    for lines in table {
        let same_id = format!("{lines}X-Request-Id: same\r\n");

        let answer = raw::send(gateway.address(), "GET", &path(), &same_id).await;

        answer.assert_error("unauthenticated");
        bodies.push(answer.body);
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1);
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn a_key_in_the_query_is_no_credential() {
    let gateway = start().await;
    for name in ["token", "key", "api_key", "access_token", "authorization"] {
        let asked = format!("{}?{name}={READER}", path());

        let answer = gateway.get(&asked).without_key().await;

        answer.assert_error("unauthenticated");
    }
}

#[tokio::test]
async fn both_keys_of_a_rotation_are_taken() {
    let rotating = format!(
        "[[clients]]\nname = \"rotating\"\nspaces = [\"*\"]\nkey_sha256 = [\"{}\", \"{}\"]",
        digest("ugw_old"),
        digest("ugw_new")
    );
    let gateway = setup().with(&rotating).start().await;
    for key in ["ugw_old", "ugw_new"] {
        assert_eq!(gateway.get(&path()).key(key).await.status, 200, "{key}");
    }
}

#[tokio::test]
async fn a_client_that_expires_later_is_served() {
    let temporary = client(
        "temporary",
        "ugw_temporary",
        "spaces = [\"*\"]\nexpires = \"2999-01-01T00:00:00Z\"",
    );
    let gateway = setup().with(&temporary).start().await;

    assert_eq!(gateway.get(&path()).key("ugw_temporary").await.status, 200);
}

#[tokio::test]
async fn a_stranger_learns_of_no_route_method_or_parameter() {
    let gateway = start().await;
    for (method, target) in [
        ("GET", "/nowhere"),
        ("GET", "/"),
        ("GET", "/metrics"),
        ("POST", "/browser-tokens"),
        ("POST", &path()),
        ("DELETE", &path()),
        ("OPTIONS", &path()),
        ("BREW", "/nowhere"),
        ("GET", "/spaces/not%20a%20token/tasks"),
        ("GET", &format!("{}?page=0", path())),
        ("GET", &format!("{}?space_id=2", path())),
        ("GET", "/healthz/"),
        ("GET", "//healthz"),
        ("GET", "/healthz/../spaces"),
        ("GET", "/openapi.json%00"),
    ] {
        let answer = raw::send(gateway.address(), method, target, "").await;

        answer.assert_error("unauthenticated");
    }
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn two_routes_are_served_to_anybody() {
    let gateway = start().await;

    let health = gateway.get("/healthz").without_key().await;
    assert_eq!((health.status, &health.body[..]), (200, &b"ok"[..]));

    let document = gateway.get("/openapi.json").without_key().await;
    assert_eq!(document.status, 200);
    assert_eq!(document.header("content-type"), Some("application/json"));
    let version = document.json()["openapi"].to_string();
    assert!(version.starts_with("\"3.1"), "{version}");

    for path in ["/healthz", "/openapi.json"] {
        let head = gateway.ask("HEAD", path).without_key().await;
        assert_eq!(head.status, 200);
        let post = gateway.ask("POST", path).without_key().await;
        post.assert_error("method_not_allowed");
        assert_eq!(post.header("allow"), Some("GET, HEAD"));
    }
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn beyond_max_failures_an_address_is_limited_but_a_good_key_is_served() {
    let gateway = setup().with("[auth]\nmax_failures = 3").start().await;
    let fail = || gateway.get(&path()).key("ugw_wrong");
    for _ in 0..3 {
        fail().await.assert_error("unauthenticated");
    }

    let limited = fail().await;

    limited.assert_error("rate_limited");
    let seconds = limited.header("retry-after").unwrap();
    assert!((1..=60).contains(&seconds.parse::<u32>().unwrap()));
    let policy = limited.header("ratelimit-policy").unwrap();
    assert!(policy.contains("q=3;w=60"), "{policy}");
    let rest = limited.header("ratelimit").unwrap();
    assert!(rest.contains("r=0;t="), "{rest}");
    assert_eq!(gateway.get(&path()).await.status, 200);
    fail().await.assert_error("rate_limited");
}

#[tokio::test]
async fn failures_count_for_the_address_that_a_trusted_proxy_reports() {
    let behind_proxy = "[auth]\nmax_failures = 1\n[server]\ntrusted_proxies = [\"127.0.0.0/8\"]";
    let gateway = setup().with(behind_proxy).start().await;
    let fail = |from: &str| {
        let asked = gateway.get(&path()).key("ugw_wrong");
        asked.header("x-forwarded-for", from)
    };
    fail("192.0.2.1").await.assert_error("unauthenticated");
    fail("192.0.2.1").await.assert_error("rate_limited");
    fail("192.0.2.2").await.assert_error("unauthenticated");
}

#[tokio::test]
async fn a_reported_address_is_not_believed_of_a_peer_that_is_not_trusted() {
    let gateway = setup().with("[auth]\nmax_failures = 1").start().await;
    let fail = |from: &str| {
        let asked = gateway.get(&path()).key("ugw_wrong");
        asked.header("x-forwarded-for", from)
    };
    fail("192.0.2.1").await.assert_error("unauthenticated");
    fail("192.0.2.2").await.assert_error("rate_limited");
}

#[tokio::test]
async fn a_space_beyond_the_list_is_refused_before_cache_and_upstream() {
    let narrow = client(
        "narrow",
        "ugw_narrow",
        &format!("spaces = [\"{}\"]", world::ARCHIVE),
    );
    let gateway = setup().with(&narrow).start().await;
    let asked = || gateway.get(&path()).key("ugw_narrow");

    asked().await.assert_error("space_not_allowed");
    assert_eq!(gateway.upstream().requests(), 0);

    assert_eq!(gateway.get(&path()).await.status, 200);
    let cached = asked().await;
    cached.assert_error("space_not_allowed");
    assert_eq!(cached.header("cache-status"), None);
    assert_eq!(cached.header("etag"), None);
    asked()
        .if_none_match("*")
        .await
        .assert_error("space_not_allowed");

    let own = gateway.tasks(world::ARCHIVE, "").key("ugw_narrow").await;
    assert_eq!(own.status, 200);
}

#[tokio::test]
async fn a_space_token_is_compared_exactly() {
    let narrow = client("narrow", "ugw_narrow", "spaces = [\"Abc\"]");
    let gateway = setup().with(&narrow).start().await;
    for space in ["abc", "ABC", "Abcd", "Ab", "*"] {
        let answer = gateway.tasks(space, "").key("ugw_narrow").await;
        assert!(
            ["space_not_allowed", "invalid_space_token"].contains(&answer.code().as_str()),
            "{space}"
        );
    }
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn bad_input_is_told_before_the_space_is_judged() {
    let narrow = client("narrow", "ugw_narrow", "spaces = [\"OTHER\"]");
    let gateway = setup().with(&narrow).start().await;
    let asked = format!("{}?page=0", path());

    let answer = gateway.get(&asked).key("ugw_narrow").await;

    answer.assert_error("invalid_parameter");
}

#[tokio::test]
async fn clients_of_one_credential_share_a_cached_page() {
    let gateway = start().await;
    let first = gateway.get(&path()).await;
    let second = gateway.get(&path()).key(REFRESHER).await;

    assert_eq!(second.cache_status(), "hit");
    assert_eq!(first.body, second.body);
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn clients_of_two_credentials_share_nothing() {
    let globex = format!(
        "[upstream.credentials.globex]\ntoken = \"{}\"\norg_handle = \"{}\"\n{}",
        world::GLOBEX_TOKEN,
        world::GLOBEX,
        client(
            "globex",
            "ugw_globex",
            "spaces = [\"*\"]\ncredential = \"globex\""
        )
    );
    let gateway = setup().with(&globex).start().await;
    let theirs = gateway.tasks(world::GLOBEX_SPACE, "").key("ugw_globex");

    let page = gateway.upstream().expect_page(world::GLOBEX_SPACE, 1, 20);
    theirs.clone().await.assert_page(&page);
    let refused = gateway.tasks(world::GLOBEX_SPACE, "").await;
    refused.assert_error("space_access_denied");
    theirs.await.assert_page(&page);

    let recorded = gateway.upstream().recorded();
    let senders: Vec<_> = recorded
        .iter()
        .map(|request| request.header("org-handle").unwrap())
        .collect();
    assert_eq!(senders, [world::GLOBEX, world::ACME]);
}

#[tokio::test]
async fn a_space_is_read_with_the_credential_that_names_it() {
    let globex = format!(
        "[upstream.credentials.globex]\ntoken = \"{}\"\norg_handle = \"{}\"\nspaces = [\"{}\"]",
        world::GLOBEX_TOKEN,
        world::GLOBEX,
        world::GLOBEX_SPACE
    );
    let gateway = setup().with(&globex).start().await;

    assert_eq!(gateway.tasks(world::GLOBEX_SPACE, "").await.status, 200);
    assert_eq!(gateway.tasks(world::SUPPORT, "").await.status, 200);
}
