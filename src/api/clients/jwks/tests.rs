use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use serde_json::json;

use super::*;

const ALL: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn p256() -> Value {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let (x, y) = key.public_key_raw()[1..].split_at(32);
    json!({"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)})
}

fn ed25519() -> Value {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    json!({"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key_raw())})
}

/// No key anybody has, but a modulus of `bits`.
fn rsa(bits: usize) -> Value {
    let mut modulus = vec![0xc5; bits / 8];
    modulus.insert(0, 0);
    json!({"kty": "RSA", "n": encode(&modulus), "e": "AQAB"})
}

fn with(mut key: Value, name: &str, value: Value) -> Value {
    key[name] = value;
    key
}

fn algorithms(keys: &[Value], allowed: &[Algorithm]) -> Vec<Algorithm> {
    let document = json!({ "keys": keys }).to_string();
    let set = KeySet::parse(document.into(), allowed).unwrap();
    set.keys.iter().map(|key| key.key.algorithm()).collect()
}

#[test]
fn a_key_is_pinned_to_the_algorithm_of_its_kind() {
    use Algorithm::{ES256, EdDSA, RS256};
    for (key, expected) in [
        (rsa(2048), RS256),
        (rsa(4096), RS256),
        (p256(), ES256),
        (ed25519(), EdDSA),
        (with(rsa(2048), "alg", json!("RS256")), RS256),
        (with(p256(), "alg", json!("ES256")), ES256),
        (with(ed25519(), "alg", json!("EdDSA")), EdDSA),
        (with(p256(), "use", json!("sig")), ES256),
        (with(p256(), "key_ops", json!(["verify"])), ES256),
        (with(p256(), "x5c", json!(["MII"])), ES256),
        (with(p256(), "something", json!({"else": 1})), ES256),
    ] {
        assert_eq!(
            algorithms(std::slice::from_ref(&key), &ALL),
            [expected],
            "{key}"
        );
    }
}

#[test]
fn what_cannot_or_must_not_verify_is_passed_over() {
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let (x, y) = p384.public_key_raw()[1..].split_at(48);
    let useless = [
        json!({"kty": "oct", "k": encode(b"secret"), "alg": "HS256"}),
        json!({"kty": "EC", "crv": "P-384", "x": encode(x), "y": encode(y)}),
        json!({"kty": "EC", "crv": "secp256k1", "x": encode(&x[..32]), "y": encode(&y[..32])}),
        json!({"kty": "OKP", "crv": "X25519", "x": encode(&[9; 32])}),
        json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"}),
        with(p256(), "use", json!("enc")),
        with(p256(), "key_ops", json!(["sign"])),
        with(p256(), "alg", json!("HS256")),
        with(p256(), "alg", json!("none")),
        with(p256(), "alg", json!("RS256")),
        with(rsa(2048), "alg", json!("PS256")),
        with(rsa(2048), "alg", json!("RS512")),
        with(rsa(2048), "alg", json!("RSA-OAEP")),
        rsa(512),
        rsa(1024),
        rsa(8192),
        // Not on the curve, too short, too long, not base64url.
        with(p256(), "x", json!(encode(&[1; 32]))),
        with(p256(), "x", json!(encode(&[1; 31]))),
        with(ed25519(), "x", json!(encode(&[1; 31]))),
        with(ed25519(), "x", json!("")),
        with(ed25519(), "x", json!(encode(&[1; 33]))),
        with(ed25519(), "x", json!("no base64url")),
        with(p256(), "kid", json!(5)),
        json!({}),
        json!(null),
        json!("key"),
    ];
    for key in &useless {
        assert_eq!(
            algorithms(&[key.clone(), ed25519()], &ALL),
            [Algorithm::EdDSA],
            "{key}"
        );
    }
}

#[test]
fn algorithms_that_are_not_configured_have_no_keys() {
    let keys = [rsa(2048), p256(), ed25519()];
    assert_eq!(algorithms(&keys, &[Algorithm::ES256]), [Algorithm::ES256]);
}

#[test]
fn what_is_no_set_is_an_error_and_an_empty_one_is_not() {
    for text in [
        "",
        "{}",
        "[]",
        "null",
        "<html>",
        r#"{"keys": {}}"#,
        r#"{"keys": [}"#,
    ] {
        assert!(KeySet::parse(text.into(), &ALL).is_err(), "{text}");
    }
    assert_eq!(
        KeySet::parse(r#"{"keys": []}"#.into(), &ALL).unwrap().len(),
        0
    );
}

#[test]
fn a_token_finds_its_key_by_id_and_algorithm() {
    let named = |key: Value, id: &str| with(key, "kid", json!(id));
    let document = json!({"keys": [
        named(p256(), "a"),
        named(ed25519(), "a"),
        named(p256(), "b"),
    ]});
    let set = KeySet::parse(document.to_string().into(), &ALL).unwrap();
    let find = |id: Option<&str>, algorithm| {
        let header = Header {
            kid: id.map(str::to_owned),
            ..Header::new(algorithm)
        };
        set.find(&header).map(VerifyingKey::algorithm)
    };
    for (id, algorithm, expected) in [
        (Some("a"), Algorithm::ES256, Ok(Algorithm::ES256)),
        (Some("a"), Algorithm::EdDSA, Ok(Algorithm::EdDSA)),
        (
            Some("b"),
            Algorithm::EdDSA,
            Err(AuthFailure::WrongAlgorithm),
        ),
        (
            Some("a"),
            Algorithm::HS256,
            Err(AuthFailure::WrongAlgorithm),
        ),
        (Some("c"), Algorithm::ES256, Err(AuthFailure::UnknownKey)),
        (Some(""), Algorithm::ES256, Err(AuthFailure::UnknownKey)),
        // Without an id, the only one of its algorithm.
        (None, Algorithm::EdDSA, Ok(Algorithm::EdDSA)),
        (None, Algorithm::ES256, Err(AuthFailure::UnknownKey)),
        (None, Algorithm::RS256, Err(AuthFailure::UnknownKey)),
    ] {
        assert_eq!(find(id, algorithm), expected, "{id:?} {algorithm:?}");
    }
}

#[test]
fn bits_are_counted_from_the_first_that_is_set() {
    for (number, expected) in [(&[][..], 0), (&[0, 0], 0), (&[1], 1), (&[0, 0x80, 0], 16)] {
        assert_eq!(bits(number), expected, "{number:?}");
    }
}
