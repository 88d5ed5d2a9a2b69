//! Keys as clients present them, and the digests that the configuration holds.

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::value::Sha256Digest;

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

/// Digests of the operators' keys; where there are none, no key is required.
#[derive(Debug, Default)]
pub struct OperatorKeys(Vec<[u8; 32]>);

impl OperatorKeys {
    #[must_use]
    pub fn new(digests: &[Sha256Digest]) -> Self {
        Self(digests.iter().map(|digest| digest.0).collect())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an `Authorization` holds one of them, as `Bearer` or as the password of `Basic`.
    #[must_use]
    pub fn admit(&self, authorization: &[u8]) -> bool {
        let key = operator_key(authorization);
        let digest = digest(key.as_deref().unwrap_or_default());
        // Each is compared, whichever is the same.
        let same = self
            .0
            .iter()
            .fold(false, |same, stored| same | is_same(stored, &digest));
        same && key.is_some()
    }
}

fn operator_key(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, word) = scheme_and_word(authorization)?;
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(word.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let user_and_password = STANDARD.decode(word).ok()?;
    let colon = user_and_password.iter().position(|byte| *byte == b':')?;
    Some(user_and_password[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user_and_password: &str) -> String {
        format!("Basic {}", STANDARD.encode(user_and_password))
    }

    #[test]
    fn a_key_comes_as_bearer_or_as_the_password_of_any_user() {
        for (value, expected) in [
            ("Bearer abc".to_owned(), Some("abc")),
            ("bearer  abc".to_owned(), Some("abc")),
            (basic("operator:abc"), Some("abc")),
            (basic(":abc"), Some("abc")),
            (basic("operator:a:b"), Some("a:b")),
            (basic("operator:"), Some("")),
            (basic("abc"), None),
            ("Basic abc".to_owned(), None),
            ("Token abc".to_owned(), None),
            ("abc".to_owned(), None),
            ("Bearer".to_owned(), None),
        ] {
            let expected = expected.map(|key| key.as_bytes().to_vec());
            assert_eq!(operator_key(value.as_bytes()), expected, "{value}");
        }
    }
}
