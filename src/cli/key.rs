//! `key new`: a key for a client or operators, shown once, and its digest for the configuration. `key browser-signing`: a key that signs
//! browser tokens.

use std::{error::Error, process::ExitCode};

use ed25519_dalek::pkcs8::{
    self, EncodePrivateKey, KeypairBytes,
    spki::der::{pem::LineEnding, zeroize::Zeroizing},
};
use sha2::{Digest, Sha256};

use super::failed;
use crate::config::auth::check_client_name;

/// A recognisable prefix, so that secret scanners find leaked keys.
const PREFIX: &str = "ugw_";
const CHECKSUM_DIGITS: usize = 8;

/// Whose key it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Holder<'a> {
    Client(&'a str),
    /// The operators.
    Operator(&'a str),
}

pub(super) fn new(holder: Holder<'_>) -> ExitCode {
    if let Holder::Client(name) = holder
        && let Err(text) = check_client_name(name)
    {
        let error: Box<dyn Error> = format!("--client: {text}").into();
        return failed(&*error);
    }
    let mut secret = [0; 32];
    if let Err(error) = getrandom::fill(&mut secret) {
        return failed(&error);
    }
    let key = key(&secret);
    let digest = hex(&Sha256::digest(&key));
    println!("# The key, shown this once. Give it to its holder; keep only the digest below.");
    println!("{key}");
    println!();
    match holder {
        Holder::Client(name) => {
            println!("[[clients]]");
            println!("name = {name:?}");
            println!("key_sha256 = [\"{digest}\"]");
            println!("spaces = [\"*\"]   # or the tokens of the spaces it may read");
        }
        Holder::Operator(name) => {
            println!("[admin]");
            println!("key_sha256 = [\"{digest}\"]   # {name:?}; one or two");
        }
    }
    ExitCode::SUCCESS
}

/// Prints a new key as PEM and nothing else, ready for a file.
pub(super) fn browser_signing() -> ExitCode {
    let mut secret = [0; 32];
    if let Err(error) = getrandom::fill(&mut secret) {
        return failed(&error);
    }
    match browser_signing_key(secret) {
        Ok(pem) => {
            print!("{}", *pem);
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn browser_signing_key(secret_key: [u8; 32]) -> Result<Zeroizing<String>, pkcs8::Error> {
    // Without the public key, as `openssl genpkey` writes it: not every reader accepts the longer form.
    let key = KeypairBytes {
        secret_key,
        public_key: None,
    };
    key.to_pkcs8_pem(LineEnding::LF)
}

/// A prefix, 256 random bits in hex, and a checksum by which scanners recognise a key.
fn key(secret: &[u8; 32]) -> String {
    let body = hex(secret);
    let checksum = hex(&Sha256::digest(format!("{PREFIX}{body}")));
    format!("{PREFIX}{body}{}", &checksum[..CHECKSUM_DIGITS])
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_signing_key_has_the_form_that_openssl_writes() {
        // RFC 8410 section 10.3.
        let secret = [
            0xd4, 0xee, 0x72, 0xdb, 0xf9, 0x13, 0x58, 0x4a, 0xd5, 0xb6, 0xd8, 0xf1, 0xf7, 0x69,
            0xf8, 0xad, 0x3a, 0xfe, 0x7c, 0x28, 0xcb, 0xf1, 0xd4, 0xfb, 0xe0, 0x97, 0xa8, 0x8f,
            0x44, 0x75, 0x58, 0x42,
        ];
        assert_eq!(
            *browser_signing_key(secret).unwrap(),
            "-----BEGIN PRIVATE KEY-----\n\
             MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
             -----END PRIVATE KEY-----\n"
        );
    }

    #[test]
    fn a_key_carries_its_prefix_and_checksum() {
        let key = key(&[7; 32]);
        assert_eq!(key.len(), PREFIX.len() + 64 + CHECKSUM_DIGITS);
        let (body, checksum) = key.split_at(PREFIX.len() + 64);
        assert!(hex(&Sha256::digest(body)).starts_with(checksum));
    }
}
