//! An identity provider: keys of each kind, the tokens they sign, and the set it publishes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rustls::pki_types::{PrivatePkcs1KeyDer, pem::PemObject};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://id.example";
pub(crate) const AUDIENCE: &str = "unpod-gateway-test";

/// A private key and the id it is published under.
pub(crate) struct ProviderKey {
    id: String,
    algorithm: Algorithm,
    private: EncodingKey,
    public: Value,
}

impl ProviderKey {
    pub(crate) fn es256(id: &str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let private = EncodingKey::from_ec_der(&pair.serialize_der());
        let public = Jwk::from_encoding_key(&private, Algorithm::ES256).unwrap();
        Self::new(id, Algorithm::ES256, private, json!(public))
    }

    pub(crate) fn ed25519(id: &str) -> Self {
        Self::of_ed25519(id, &KeyPair::generate_for(&PKCS_ED25519).unwrap())
    }

    pub(crate) fn of_ed25519(id: &str, pair: &KeyPair) -> Self {
        let private = EncodingKey::from_ed_der(&pair.serialize_der());
        let x = base64url(pair.public_key_raw());
        let public = json!({"kty": "OKP", "crv": "Ed25519", "x": x});
        Self::new(id, Algorithm::EdDSA, private, public)
    }

    /// The one RSA key there is: making another takes long.
    pub(crate) fn rs256(id: &str) -> Self {
        let pem = include_bytes!("../data/rsa-test-key.pem");
        let der = PrivatePkcs1KeyDer::from_pem_slice(pem).unwrap();
        let private = EncodingKey::from_rsa_der(der.secret_pkcs1_der());
        let public = Jwk::from_encoding_key(&private, Algorithm::RS256).unwrap();
        Self::new(id, Algorithm::RS256, private, json!(public))
    }

    fn new(id: &str, algorithm: Algorithm, private: EncodingKey, mut public: Value) -> Self {
        public["kid"] = json!(id);
        Self {
            id: id.to_owned(),
            algorithm,
            private,
            public,
        }
    }

    pub(crate) fn public(&self) -> &Value {
        &self.public
    }

    pub(crate) fn header(&self) -> Header {
        Header {
            kid: Some(self.id.clone()),
            ..Header::new(self.algorithm)
        }
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_under(&self.header(), claims)
    }

    pub(crate) fn sign_under(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &self.private).unwrap()
    }

    /// A token that speaks for `client`.
    pub(crate) fn token(&self, client: &str) -> String {
        self.sign(&claims(client, json!({})))
    }
}

/// The document in which a provider publishes `keys`.
pub(crate) fn jwks(keys: &[&ProviderKey]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
    json!({ "keys": keys }).to_string()
}

/// Good claims for five minutes, with `changes` laid over them.
pub(crate) fn claims(client: &str, changes: Value) -> Value {
    let exp = unix_now() + 300;
    let mut claims = json!({"iss": ISSUER, "aud": AUDIENCE, "sub": client, "exp": exp});
    let Value::Object(changes) = changes else {
        panic!("changes are an object");
    };
    claims.as_object_mut().unwrap().extend(changes);
    claims
}

/// `[auth.jwt]` with these lines.
pub(crate) fn section(lines: &str) -> String {
    format!("[auth.jwt]\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\n{lines}\n")
}

/// A client that only a token can name.
pub(crate) fn keyless(name: &str, spaces: &str) -> String {
    format!("[[clients]]\nname = \"{name}\"\nspaces = {spaces}\n")
}

/// A file that holds `text`.
pub(crate) fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

pub(crate) fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(bytes)
}
