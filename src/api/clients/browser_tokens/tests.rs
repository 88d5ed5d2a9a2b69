use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};

use super::{
    super::{
        Clients, Issuers,
        tests::{NOW, asks, at},
    },
    *,
};
use crate::{config::Config, domain::RowKind, upstream::Credentials};

/// A key pair as PEM.
struct Pair(KeyPair);

impl Pair {
    fn new() -> Self {
        Self(KeyPair::generate_for(&PKCS_ED25519).unwrap())
    }

    fn private(&self) -> String {
        self.0.serialize_pem()
    }

    fn public(&self) -> String {
        self.0.public_key_pem()
    }

    fn id(&self) -> String {
        let public = self.0.public_key_raw().try_into().unwrap();
        id(&ed25519_dalek::VerifyingKey::from_bytes(public).unwrap())
    }

    /// A browser token whose header and claims are good but for these.
    fn sign(&self, header: impl FnOnce(&mut Header), changes: &Value) -> String {
        let mut claims = Self::claims();
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        self.sign_claims(header, &claims)
    }

    /// A good browser token but that this claim is missing.
    fn sign_without(&self, claim: &str) -> String {
        let mut claims = Self::claims();
        claims.as_object_mut().unwrap().remove(claim);
        self.sign_claims(|_| {}, &claims)
    }

    fn claims() -> Value {
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "crm", "spaces": ["A"], "minter_view": null, "iat": NOW, "exp": NOW + 60,
        })
    }

    fn sign_claims(&self, header: impl FnOnce(&mut Header), claims: &Value) -> String {
        let mut good = Header {
            typ: Some(TYPE.to_owned()),
            kid: Some(self.id()),
            ..Header::new(Algorithm::EdDSA)
        };
        header(&mut good);
        let key = EncodingKey::from_ed_der(&self.0.serialize_der());
        jsonwebtoken::encode(&good, claims, &key).unwrap()
    }
}

const CLIENTS: &str = r#"
    [[clients]]
    name = "crm"
    key_sha256 = ["0000000000000000000000000000000000000000000000000000000000000001"]
    spaces = ["A", "B"]
    may_refresh = true
    [[clients]]
    name = "seasonal"
    key_sha256 = ["0000000000000000000000000000000000000000000000000000000000000002"]
    spaces = ["*"]
    expires = "2027-01-15T08:01:00Z"
"#;

/// The clients of `[[clients]]` tables, with tokens signed by the first key and verified by the others too.
fn clients(tables: &str, signing: &str, older: &[&str]) -> Clients {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: String, pem: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, pem).unwrap();
        format!("'{}'", file.display())
    };
    let signing = write("signing".to_owned(), signing);
    let older = older.iter().enumerate();
    let older: Vec<_> = older.map(|(n, pem)| write(n.to_string(), pem)).collect();
    let text = format!(
        "[upstream]\nbase_url = \"https://unpod.example\"\n[upstream.credentials.default]\ntoken = \"abc\"\n\
         [auth.browser_tokens]\nsigning_key_file = {signing}\nverify_key_files = [{}]\n{tables}",
        older.join(", ")
    );
    let config = Config::from_toml(&text).unwrap();
    Clients::new(
        &config.clients,
        &config.views,
        Credentials::load(&config.upstream).unwrap(),
        Issuers::load(&config.auth, None).unwrap(),
        None,
    )
}

fn mint(clients: &Clients, minter: &str, spaces: &[&str], ttl: u64) -> Minted {
    let spaces = spaces.iter().map(|space| SpaceToken::new(space).unwrap());
    let tokens = clients.issuers().browser_tokens().unwrap();
    let minter = &clients.by_name[minter];
    let ttl = Duration::from_secs(ttl);
    tokens.mint(minter, &spaces.collect(), None, ttl, at(NOW))
}

fn outcome(clients: &Clients, token: &str, now: u64) -> Result<String, AuthFailure> {
    asks(clients, token, now).map(|client| client.name().to_string())
}

#[test]
fn a_token_stands_for_its_minter_with_none_of_its_rights_but_to_read() {
    let clients = clients(CLIENTS, &Pair::new().private(), &[]);

    let minted = mint(&clients, "crm", &["A"], 60);

    for _ in 0..2 {
        let client = asks(&clients, &minted.token, NOW).unwrap();
        assert_eq!(&**client.name(), "crm");
        let reads = ["A", "B", "C"].map(|space| client.may_read(&SpaceToken::new(space).unwrap()));
        assert_eq!(reads, [true, false, false]);
        assert!(!client.may_refresh && !client.may_mint);
    }
}

#[test]
fn a_token_ends_as_asked_or_at_the_longest_or_with_its_minter() {
    let clients = clients(CLIENTS, &Pair::new().private(), &[]);
    for (minter, asked, expected) in [
        ("crm", 1, 1),
        ("crm", 300, 300),
        ("crm", 900, 900),
        ("crm", 901, 900),
        ("crm", u64::MAX, 900),
        ("seasonal", 59, 59),
        ("seasonal", 300, 60),
    ] {
        let minted = mint(&clients, minter, &["A"], asked);
        assert_eq!(minted.expires_at, at(NOW + expected), "{minter} {asked}");
        let last = NOW + expected - 1;
        assert_eq!(
            outcome(&clients, &minted.token, last),
            Ok(minter.to_owned())
        );
        // Its own clock needs no leeway.
        assert_eq!(
            outcome(&clients, &minted.token, NOW + expected),
            Err(AuthFailure::Expired)
        );
    }
}

#[test]
fn a_token_goes_when_its_minter_does_and_shrinks_as_it_does() {
    let key = Pair::new().private();
    let before = clients(CLIENTS, &key, &[]);
    let token = mint(&before, "crm", &["A", "B"], 300).token;

    let narrower = clients(
        &CLIENTS.replace("[\"A\", \"B\"]", "[\"B\", \"C\"]"),
        &key,
        &[],
    );
    let client = asks(&narrower, &token, NOW).unwrap();
    let reads = ["A", "B", "C"].map(|space| client.may_read(&SpaceToken::new(space).unwrap()));
    assert_eq!(reads, [false, true, false]);

    let renamed = clients(&CLIENTS.replace("crm", "other"), &key, &[]);
    assert_eq!(
        outcome(&renamed, &token, NOW),
        Err(AuthFailure::UnknownClient)
    );

    let ended = CLIENTS.replace("may_refresh = true", "expires = \"2027-01-15T07:59:00Z\"");
    let ended = clients(&ended, &key, &[]);
    assert_eq!(outcome(&ended, &token, NOW), Err(AuthFailure::Expired));
}

#[test]
fn an_older_keys_tokens_are_taken_as_long_as_it_is_named() {
    let (old, new) = (Pair::new(), Pair::new());
    let token = mint(&clients(CLIENTS, &old.private(), &[]), "crm", &["A"], 300).token;
    for named in [old.private(), old.public()] {
        let rotated = clients(CLIENTS, &new.private(), &[&named]);
        assert_eq!(outcome(&rotated, &token, NOW), Ok("crm".to_owned()));
        let newer = mint(&rotated, "crm", &["A"], 300).token;
        assert_eq!(outcome(&rotated, &newer, NOW), Ok("crm".to_owned()));
    }
    let rotated_out = clients(CLIENTS, &new.private(), &[]);
    assert_eq!(
        outcome(&rotated_out, &token, NOW),
        Err(AuthFailure::UnknownKey)
    );
}

#[test]
fn what_is_signed_but_not_as_the_gateway_signs_is_refused() {
    use AuthFailure::{BadClaims, Expired, Unknown, UnknownKey, WrongAudience, WrongIssuer};
    let pair = Pair::new();
    let clients = clients(CLIENTS, &pair.private(), &[]);
    let claims = |changes: Value| pair.sign(|_| {}, &changes);
    let header = |change: fn(&mut Header)| pair.sign(change, &json!({}));
    assert_eq!(
        outcome(&clients, &claims(json!({})), NOW),
        Ok("crm".to_owned())
    );
    for (token, expected) in [
        (claims(json!({"iss": "https://id.example"})), WrongIssuer),
        (claims(json!({"aud": "unpod-gateway"})), WrongAudience),
        (claims(json!({"aud": [AUDIENCE]})), BadClaims),
        (claims(json!({"sub": "nobody"})), AuthFailure::UnknownClient),
        (claims(json!({"exp": NOW})), Expired),
        (claims(json!({"exp": NOW as f64 + 60.5})), BadClaims),
        (claims(json!({"exp": -1})), BadClaims),
        (claims(json!({"exp": u64::MAX})), BadClaims),
        (claims(json!({"exp": null})), BadClaims),
        (claims(json!({"spaces": "A"})), BadClaims),
        // What narrows it cannot be passed over: no view is known yet.
        (claims(json!({"view": "public"})), BadClaims),
        (claims(json!({"minter_view": "public"})), BadClaims),
        (claims(json!({"minter_view": 5})), BadClaims),
        (pair.sign_without("minter_view"), BadClaims),
        (claims(json!({"fields": ["task_id"]})), BadClaims),
        // Any other type is an identity provider's, and there is none.
        (
            header(|header| header.typ = Some("JWT".to_owned())),
            Unknown,
        ),
        (
            header(|header| header.typ = Some("UGWB+JWT".to_owned())),
            Unknown,
        ),
        (header(|header| header.typ = None), Unknown),
        (header(|header| header.kid = None), UnknownKey),
        (
            header(|header| header.kid = Some("other".to_owned())),
            UnknownKey,
        ),
        (
            header(|header| header.crit = Some(vec!["exp".to_owned()])),
            AuthFailure::Malformed,
        ),
        (Pair::new().sign(|_| {}, &json!({})), UnknownKey),
        (
            Pair::new().sign(|header| header.kid = Some(pair.id()), &json!({})),
            AuthFailure::BadSignature,
        ),
    ] {
        assert_eq!(outcome(&clients, &token, NOW), Err(expected), "{token}");
    }
}

#[test]
fn all_spaces_are_never_a_tokens() {
    let pair = Pair::new();
    let clients = clients(CLIENTS, &pair.private(), &[]);
    let token = pair.sign(|_| {}, &json!({"sub": "seasonal", "spaces": ["*"]}));
    let client = asks(&clients, &token, NOW).unwrap();
    assert!(!client.may_read(&SpaceToken::new("A").unwrap()));
}

/// What a client of `tables`, which has the views `a`, `ab` and `bc`, shows of three members.
fn shown(client: &Client) -> String {
    let page = br#"{"count":1,"data":[{"a":1,"b":2,"c":3}]}"#;
    let shown = match client.sees(RowKind::Task).unwrap() {
        None => page.to_vec(),
        Some(view) => view.apply(page).unwrap().to_vec(),
    };
    let shown: Value = serde_json::from_slice(&shown).unwrap();
    let names = shown["data"][0].as_object().unwrap().keys();
    names.map(String::as_str).collect()
}

#[test]
fn a_token_shows_what_its_minters_views_then_and_now_and_its_own_all_show() {
    let key = Pair::new().private();
    let views = "[views.a]\nfields = ['a']\n[views.ab]\nfields = ['a', 'b']\n[views.bc]\nfields = ['b', 'c']\n";
    let seeing = |view: Option<&str>| {
        let view = view.map(|name| format!("view = '{name}'"));
        let digest = "0".repeat(64);
        let rest = view.unwrap_or_default();
        format!(
            "{views}[[clients]]\nname = 'crm'\nkey_sha256 = ['{digest}']\nspaces = ['A']\n{rest}\n"
        )
    };
    for (then, asked, now, expected) in [
        (None, None, None, "abc"),
        (None, Some("ab"), None, "ab"),
        (None, None, Some("bc"), "bc"),
        (None, Some("ab"), Some("bc"), "b"),
        (Some("ab"), None, None, "ab"),
        (Some("ab"), Some("bc"), Some("ab"), "b"),
        (Some("ab"), Some("bc"), None, "b"),
        (Some("ab"), None, Some("bc"), "b"),
        (Some("ab"), Some("a"), Some("bc"), ""),
        (Some("a"), Some("ab"), Some("a"), "a"),
    ] {
        let minting = clients(&seeing(then), &key, &[]);
        let tokens = minting.issuers().browser_tokens().unwrap();
        let spaces = [SpaceToken::new("A").unwrap()].into();
        let minter = &minting.by_name["crm"];
        let ttl = Duration::from_secs(60);
        let minted = tokens.mint(minter, &spaces, asked.map(str::to_owned), ttl, at(NOW));

        let serving = clients(&seeing(now), &key, &[]);
        let client = asks(&serving, &minted.token, NOW).unwrap();
        assert_eq!(shown(&client), expected, "{then:?} {asked:?} {now:?}");

        let without = seeing(None).replace("views.ab", "views.other");
        let gone = then == Some("ab") || asked == Some("ab");
        let told = outcome(&clients(&without, &key, &[]), &minted.token, NOW);
        let expected = if gone {
            Err(AuthFailure::BadClaims)
        } else {
            Ok("crm".to_owned())
        };
        assert_eq!(told, expected, "{then:?} {asked:?}");

        // By its name: what that means now counts.
        let redefined = seeing(now).replace("['a', 'b']", "['c']");
        if gone {
            let client = asks(&clients(&redefined, &key, &[]), &minted.token, NOW).unwrap();
            assert!(!shown(&client).contains(['a', 'b']), "{then:?} {asked:?}");
        }
    }
}
