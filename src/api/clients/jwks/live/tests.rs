use std::path::PathBuf;

use jsonwebtoken::{EncodingKey, Header, jwk::Jwk};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;

use super::*;
use crate::config::auth::JwtAlgorithm;

/// A JWKS with a new key under each of these ids.
fn published(ids: &[&str]) -> String {
    let keys: Vec<Jwk> = ids
        .iter()
        .map(|id| {
            let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
            let private = EncodingKey::from_ec_der(&pair.serialize_der());
            let mut key = Jwk::from_encoding_key(&private, Algorithm::ES256).unwrap();
            key.common.key_id = Some((*id).to_owned());
            key
        })
        .collect();
    json!({ "keys": keys }).to_string()
}

struct File(tempfile::TempDir);

impl File {
    fn with(text: &str) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(text);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("jwks.json")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn config(&self) -> JwtConfig {
        JwtConfig {
            issuer: "https://id.example".to_owned(),
            audience: "gateway".to_owned(),
            jwks_file: Some(self.path()),
            jwks_url: None,
            algorithms: vec![JwtAlgorithm::Es256],
            client_claim: "sub".to_owned(),
            spaces_claim: None,
        }
    }
}

fn knows(keys: &LiveKeys, id: &str) -> bool {
    let header = Header {
        kid: Some(id.to_owned()),
        ..Header::new(Algorithm::ES256)
    };
    let current = keys.current().unwrap();
    current.find(&header).is_ok()
}

/// Lets the keeping task come to its next wait, where nothing is due.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Lets the keeping task run until `condition` holds. It reads on another thread, whose time is the real one.
async fn until(condition: impl Fn() -> bool) {
    #[expect(clippy::disallowed_types, reason = "the test's own clock stands still")]
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(30), "it did not come");
        tokio::task::yield_now().await;
    }
}

fn state(keys: &LiveKeys) -> KeysState {
    keys.health().state
}

#[tokio::test(start_paused = true)]
async fn keys_are_read_again_every_ten_minutes() {
    let file = File::with(&published(&["a"]));
    let keys = LiveKeys::start(&file.config(), None).unwrap();
    settle().await;
    file.write(&published(&["b"]));

    tokio::time::advance(REFRESH_EVERY - Duration::from_millis(1)).await;
    settle().await;
    assert!(knows(&keys, "a"));

    tokio::time::advance(Duration::from_millis(1)).await;
    until(|| knows(&keys, "b")).await;
    assert!(!knows(&keys, "a"));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_has_the_keys_read_again_but_once_a_minute() {
    let file = File::with(&published(&["a"]));
    let keys = LiveKeys::start(&file.config(), None).unwrap();
    settle().await;

    file.write(&published(&["b"]));
    keys.missed();
    until(|| knows(&keys, "b")).await;

    file.write(&published(&["c"]));
    tokio::time::advance(ASKED_AT_MOST_EVERY - Duration::from_millis(1)).await;
    keys.missed();
    settle().await;
    assert!(!knows(&keys, "c"));

    tokio::time::advance(Duration::from_millis(1)).await;
    keys.missed();
    until(|| knows(&keys, "c")).await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_asks_at_most_once_a_minute() {
    let asked = Asked::default();
    let began = Instant::now();
    let passed: Vec<u64> = (0..200)
        .filter(|second| asked.passes(began + Duration::from_secs(*second)))
        .collect();
    assert_eq!(passed, [0, 60, 120, 180]);
}

#[tokio::test(start_paused = true)]
async fn a_reload_reads_them_at_once() {
    let file = File::with(&published(&["a"]));
    let keys = LiveKeys::start(&file.config(), None).unwrap();
    for id in ["b", "c", "d"] {
        file.write(&published(&[id]));
        keys.reload();
        until(|| knows(&keys, id)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_good_set_outlives_an_outage() {
    let file = File::with(&published(&["a"]));
    let keys = LiveKeys::start(&file.config(), None).unwrap();
    let long = " ".repeat(1024 * 1024) + &published(&["b"]);
    for broken in ["", "{\"keys\": [", "<html>Bad Gateway</html>", &long] {
        assert_eq!(state(&keys), KeysState::Current);
        file.write(broken);
        keys.reload();
        until(|| state(&keys) == KeysState::Stale).await;
        assert!(knows(&keys, "a"), "{}", &broken[..broken.len().min(20)]);
        file.write(&published(&["a"]));
        keys.reload();
        until(|| state(&keys) == KeysState::Current).await;
    }
    std::fs::remove_file(file.path()).unwrap();
    keys.reload();
    until(|| state(&keys) == KeysState::Stale).await;
    assert!(knows(&keys, "a"));

    // Back again, it is met at the next try, not in ten minutes.
    file.write(&published(&["b"]));
    tokio::time::advance(RETRY_AT_MOST).await;
    until(|| knows(&keys, "b")).await;
    until(|| state(&keys) == KeysState::Current).await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_set_withdraws_every_key() {
    let file = File::with(&published(&["a"]));
    let keys = LiveKeys::start(&file.config(), None).unwrap();
    file.write("{\"keys\": []}");
    keys.reload();
    until(|| !knows(&keys, "a")).await;
    until(|| keys.health().next_reading > Instant::now()).await;
    assert_eq!(state(&keys), KeysState::Current);
}

#[tokio::test(start_paused = true)]
async fn the_same_keys_again_are_the_same_set() {
    let file = File::with(&published(&["a", "b"]));
    let keys = LiveKeys::start(&file.config(), None).unwrap();
    let before = keys.current().unwrap();
    keys.reload();
    until(|| keys.health().next_reading > Instant::now()).await;
    assert!(Arc::ptr_eq(&before, &keys.current().unwrap()));
}

#[tokio::test]
async fn a_file_without_a_key_of_use_is_a_problem_at_the_start() {
    for text in [
        "",
        "[]",
        "{\"keys\": []}",
        "{\"keys\": [{\"kty\": \"oct\", \"k\": \"AAAA\"}]}",
    ] {
        let file = File::with(text);
        let problems = LiveKeys::start(&file.config(), None).unwrap_err();
        let keys: Vec<_> = problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(keys, ["auth.jwt.jwks_file"], "{text}");
    }
}

/// A configuration that fetches its keys where nobody listens.
fn unreachable() -> JwtConfig {
    let here = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = here.local_addr().unwrap();
    let url = format!("http://{address}/jwks");
    JwtConfig {
        jwks_file: None,
        jwks_url: Some(crate::config::value::Address(url.parse().unwrap())),
        ..File::with("").config()
    }
}

#[tokio::test]
async fn keys_of_before_serve_until_others_are_fetched_for_the_algorithms_of_now() {
    let file = File::with(&published(&["a"]));
    let before = LiveKeys::start(&file.config(), None).unwrap();

    let elsewhere = LiveKeys::start(&unreachable(), Some(&before)).unwrap();
    assert!(knows(&elsewhere, "a"));
    assert_eq!(state(&elsewhere), KeysState::Stale);
    let again = LiveKeys::start(&unreachable(), Some(&elsewhere)).unwrap();
    assert!(knows(&again, "a"));

    let wider = JwtConfig {
        algorithms: vec![JwtAlgorithm::Rs256, JwtAlgorithm::Es256],
        ..unreachable()
    };
    let wider = LiveKeys::start(&wider, Some(&before)).unwrap();
    assert!(knows(&wider, "a"));
    let other = JwtConfig {
        algorithms: vec![JwtAlgorithm::EdDsa],
        ..unreachable()
    };
    let other = LiveKeys::start(&other, Some(&before)).unwrap();
    assert!(other.current().is_none());
    assert_eq!(state(&other), KeysState::Missing);
}

#[tokio::test]
async fn without_any_keys_they_are_missing() {
    let keys = LiveKeys::start(&unreachable(), None).unwrap();
    assert!(keys.current().is_none());
    assert_eq!(state(&keys), KeysState::Missing);
}

#[test]
fn failed_readings_are_repeated_soon_and_then_once_a_minute() {
    let waits = |has_keys| -> Vec<u64> {
        (0..9)
            .map(|failures| next_refresh(failures, has_keys).as_secs())
            .collect()
    };
    assert_eq!(waits(true), [600, 1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(waits(false), [600, 1, 2, 4, 8, 10, 10, 10, 10]);
    assert_eq!(next_refresh(u32::MAX, true), RETRY_AT_MOST);
}
