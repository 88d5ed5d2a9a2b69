//! `key new`: a client key that is shown once, and its digest, which is kept.

use std::process::ExitCode;

use sha2::{Digest, Sha256};

use super::failed;

/// Says what it is, so that a secret scanner can find a leaked one.
const PREFIX: &str = "ugw_";
const CHECKSUM_DIGITS: usize = 8;

pub(super) fn new(client: &str) -> ExitCode {
    let mut secret = [0; 32];
    if let Err(error) = getrandom::fill(&mut secret) {
        return failed(&error);
    }
    let key = key(&secret);
    println!("# The key, shown this once. Give it to the client; keep only the digest below.");
    println!("{key}");
    println!();
    println!("[[clients]]");
    println!("name = {client:?}");
    println!("key_sha256 = [\"{}\"]", hex(&Sha256::digest(&key)));
    println!("spaces = [\"*\"]   # or the tokens of the spaces it may read");
    ExitCode::SUCCESS
}

/// 256 random bits in hex, between a prefix and a checksum that tells a key from a look-alike.
fn key(secret: &[u8; 32]) -> String {
    let body = hex(secret);
    let checksum = hex(&Sha256::digest(format!("{PREFIX}{body}")));
    format!("{PREFIX}{body}{}", &checksum[..CHECKSUM_DIGITS])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_carries_its_prefix_and_checksum() {
        let key = key(&[7; 32]);
        assert_eq!(key.len(), PREFIX.len() + 64 + CHECKSUM_DIGITS);
        let (body, checksum) = key.split_at(PREFIX.len() + 64);
        assert!(hex(&Sha256::digest(body)).starts_with(checksum));
    }
}
