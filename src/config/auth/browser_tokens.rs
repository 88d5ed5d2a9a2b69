//! `[auth.browser_tokens]`: the keys that sign browser tokens, and how long those live.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey, DecodePublicKey},
};
use serde::Deserialize;

use crate::config::{Problems, files, value};

/// A longer-lived token would be a key, which no browser should hold.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// `[auth.browser_tokens]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrowserTokensConfig {
    /// PEM (PKCS#8), Ed25519.
    pub signing_key_file: PathBuf,
    /// Older keys, public or private, whose tokens stay valid until they expire.
    #[serde(default)]
    pub verify_key_files: Vec<PathBuf>,
    /// The longest lifetime; longer requests are cut to it.
    #[serde(default = "quarter_of_an_hour", deserialize_with = "value::duration")]
    pub max_ttl: Duration,
}

/// The keys of browser tokens, read from their files.
#[derive(Debug)]
pub struct BrowserKeys {
    pub signing: SigningKey,
    pub older: Vec<VerifyingKey>,
}

fn quarter_of_an_hour() -> Duration {
    Duration::from_secs(15 * 60)
}

impl BrowserTokensConfig {
    /// Reads every key from its file.
    ///
    /// # Errors
    ///
    /// Returns a problem for each file that cannot be read or holds no Ed25519 key.
    pub fn read_keys(&self) -> Result<BrowserKeys, Problems> {
        let mut problems = Problems::default();
        let signing = read_signing_key(&self.signing_key_file)
            .map_err(|text| problems.add("auth.browser_tokens.signing_key_file", text));
        let mut older = Vec::new();
        for (place, file) in self.verify_key_files.iter().enumerate() {
            match read_verify_key(file) {
                Ok(key) => older.push(key),
                Err(text) => {
                    let key = format!("auth.browser_tokens.verify_key_files[{place}]");
                    problems.add(key, text);
                }
            }
        }
        match signing {
            Ok(signing) if problems.is_empty() => Ok(BrowserKeys { signing, older }),
            _ => Err(problems),
        }
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        if let Err(found) = self.read_keys() {
            problems.append(found);
        }
        if !(Duration::from_secs(1)..=LONGEST).contains(&self.max_ttl) {
            problems.add("auth.browser_tokens.max_ttl", "expected 1s to 24h");
        }
    }
}

fn read_signing_key(file: &Path) -> Result<SigningKey, String> {
    SigningKey::from_pkcs8_pem(&read(file)?)
        .map_err(|_| "holds no Ed25519 private key in PEM (PKCS#8)".to_owned())
}

fn read_verify_key(file: &Path) -> Result<VerifyingKey, String> {
    let pem = read(file)?;
    VerifyingKey::from_public_key_pem(&pem)
        .or_else(|_| SigningKey::from_pkcs8_pem(&pem).map(|key| key.verifying_key()))
        .map_err(|_| "holds no Ed25519 key in PEM".to_owned())
}

fn read(file: &Path) -> Result<String, String> {
    files::read_text(file).map_err(|error| format!("cannot be read: {error}"))
}
