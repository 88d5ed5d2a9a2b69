use jsonwebtoken::Algorithm;
use serde_json::json;

use super::*;
use crate::config::auth::JwtAlgorithm;

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn rules(spaces_claim: Option<&str>) -> JwtConfig {
    JwtConfig {
        issuer: "https://id.example".to_owned(),
        audience: "gateway".to_owned(),
        jwks_file: None,
        jwks_url: None,
        algorithms: vec![JwtAlgorithm::Es256],
        client_claim: "sub".to_owned(),
        spaces_claim: spaces_claim.map(str::to_owned),
    }
}

/// Good claims, with `changes` laid over them; null takes a claim out.
fn claims(changes: &Value) -> Claims {
    let good =
        json!({"iss": "https://id.example", "aud": "gateway", "sub": "crm", "exp": NOW + 60});
    let Value::Object(mut claims) = good else {
        panic!("an object was written");
    };
    for (name, value) in changes.as_object().unwrap() {
        claims.insert(name.clone(), value.clone());
    }
    claims
}

fn judged(changes: &Value) -> Result<String, AuthFailure> {
    judge(&claims(changes), &rules(None), now()).map(|proof| proof.client)
}

#[test]
fn what_claims_prove_is_a_table() {
    use AuthFailure::{BadClaims, Expired, NotYetValid, WrongAudience, WrongIssuer};
    let crm = || Ok("crm".to_owned());
    for (changes, expected) in [
        (json!({}), crm()),
        (json!({"exp": NOW as f64 + 0.5}), crm()),
        (json!({"exp": NOW - 29}), crm()),
        (json!({"exp": NOW - 30}), Err(Expired)),
        (json!({"exp": NOW as f64 - 30.5}), Err(Expired)),
        (json!({"exp": 0}), Err(Expired)),
        (json!({"exp": -1}), Err(Expired)),
        (json!({"exp": i64::MIN}), Err(Expired)),
        (json!({"exp": -1e300}), Err(Expired)),
        (json!({"exp": u64::MAX}), crm()),
        (json!({"exp": 1e300}), crm()),
        (json!({"exp": (NOW + 60).to_string()}), Err(BadClaims)),
        (json!({"exp": null}), Err(BadClaims)),
        (json!({"exp": true}), Err(BadClaims)),
        (json!({"exp": [NOW + 60]}), Err(BadClaims)),
        (json!({"exp": {}}), Err(BadClaims)),
        (json!({"nbf": NOW}), crm()),
        (json!({"nbf": NOW + 30}), crm()),
        (json!({"nbf": NOW + 31}), Err(NotYetValid)),
        (json!({"nbf": 1e300}), Err(NotYetValid)),
        (json!({"nbf": -5}), crm()),
        (json!({"nbf": "0"}), Err(BadClaims)),
        (json!({"nbf": null}), Err(BadClaims)),
        (json!({"iss": "https://id.example/"}), Err(WrongIssuer)),
        (json!({"iss": ["https://id.example"]}), Err(WrongIssuer)),
        (json!({"iss": null}), Err(WrongIssuer)),
        (json!({"aud": ["other", "gateway"]}), crm()),
        (json!({"aud": ["gateway"]}), crm()),
        (json!({"aud": ["other", 5, "gateway"]}), crm()),
        (json!({"aud": "other"}), Err(WrongAudience)),
        (json!({"aud": "gateway other"}), Err(WrongAudience)),
        (json!({"aud": ["other"]}), Err(WrongAudience)),
        (json!({"aud": []}), Err(WrongAudience)),
        (json!({"aud": {"gateway": true}}), Err(WrongAudience)),
        (json!({"aud": null}), Err(WrongAudience)),
        (json!({"sub": null}), Err(BadClaims)),
        (json!({"sub": ["crm"]}), Err(BadClaims)),
        (json!({"sub": "other"}), Ok("other".to_owned())),
        (json!({"iat": "whatever", "jti": 5}), crm()),
    ] {
        assert_eq!(judged(&changes), expected, "{changes}");
    }
}

#[test]
fn a_missing_claim_is_a_failure() {
    for (name, expected) in [
        ("exp", AuthFailure::BadClaims),
        ("iss", AuthFailure::WrongIssuer),
        ("aud", AuthFailure::WrongAudience),
        ("sub", AuthFailure::BadClaims),
    ] {
        let mut claims = claims(&json!({}));
        claims.remove(name);
        let judged = judge(&claims, &rules(None), now()).map(|proof| proof.client);
        assert_eq!(judged, Err(expected), "{name}");
    }
}

#[test]
fn the_claim_that_names_the_client_is_as_configured() {
    let rules = JwtConfig {
        client_claim: "https://acme.example/client".to_owned(),
        ..rules(None)
    };
    let claims = claims(&json!({"https://acme.example/client": "dashboard"}));
    assert_eq!(judge(&claims, &rules, now()).unwrap().client, "dashboard");
}

#[test]
fn a_spaces_claim_narrows_to_what_it_names() {
    let narrowed = |changes: Value| {
        judge(&claims(&changes), &rules(Some("spaces")), now()).map(|proof| match proof.spaces {
            AllowedSpaces::All => "*".to_owned(),
            AllowedSpaces::Named(spaces) => {
                let mut names: Vec<_> = spaces.iter().map(SpaceToken::as_str).collect();
                names.sort_unstable();
                names.join(" ")
            }
        })
    };
    for (claim, expected) in [
        (json!(["A", "B"]), "A B"),
        (json!("A B"), "A B"),
        (json!("  A\tB\n"), "A B"),
        (json!("A,B"), ""),
        (json!([]), ""),
        (json!(""), ""),
        (json!("*"), "*"),
        (json!(["*"]), "*"),
        (json!(["*", "A"]), "A"),
        (json!(["A", "no/space", ""]), "A"),
    ] {
        assert_eq!(
            narrowed(json!({"spaces": claim})),
            Ok(expected.to_owned()),
            "{claim}"
        );
    }
    for claim in [json!(5), json!({"A": true}), json!(null), json!(["A", 5])] {
        let judged = narrowed(json!({"spaces": claim}));
        assert_eq!(judged, Err(AuthFailure::BadClaims), "{claim}");
    }
    // Where tokens are meant to narrow, one that says nothing opens nothing.
    assert_eq!(narrowed(json!({})), Ok(String::new()));
    // Where they are not, the claim is not looked at.
    let unused = judge(&claims(&json!({"spaces": ["A"]})), &rules(None), now()).unwrap();
    assert!(matches!(unused.spaces, AllowedSpaces::All));
}

#[test]
fn only_tokens_to_call_with_are_looked_at() {
    let header = |typ: Option<&str>| Header {
        typ: typ.map(str::to_owned),
        ..Header::new(Algorithm::ES256)
    };
    for typ in [
        None,
        Some("JWT"),
        Some("at+jwt"),
        Some("application/at+JWT"),
        Some("JOSE"),
    ] {
        assert!(is_access_token(&header(typ)), "{typ:?}");
    }
    for typ in [
        "",
        "logout+jwt",
        "secevent+jwt",
        "dpop+jwt",
        "ugwb+jwt",
        "application/ugwb+jwt",
    ] {
        assert!(!is_access_token(&header(Some(typ))), "{typ}");
    }
}
