use std::fmt;

use compact_str::CompactString;

const MAX_LENGTH: usize = 128;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Names a space of the upstream.
///
/// Prints as a fingerprint, so that no log line can show it by accident.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpaceToken(CompactString);

/// Not 1 to 128 of `A-Z a-z 0-9 _ -`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a space token is 1 to 128 of A-Z a-z 0-9 _ -")]
pub struct InvalidSpaceToken;

impl SpaceToken {
    /// Takes a token as it stands after percent-decoding.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSpaceToken`] for any other length or character.
    pub fn new(text: &str) -> Result<Self, InvalidSpaceToken> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidSpaceToken)
        }
    }

    /// The token itself, for the upstream's URL and for the claims of a browser token.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it prints as: `space-` and twelve hex digits of its digest.
    #[must_use]
    pub fn fingerprint(&self) -> CompactString {
        let digest = blake3::hash(self.0.as_bytes());
        let mut text = *b"space-............";
        let digits = text[6..].chunks_exact_mut(2);
        for (pair, byte) in digits.zip(digest.as_bytes()) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 0xf)];
        }
        CompactString::from_utf8(text).expect("hex digits are ASCII")
    }
}

impl fmt::Display for SpaceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint())
    }
}

impl fmt::Debug for SpaceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_alphabet_and_the_length_of_a_token_are_taken() {
        for good in ["A", "8KZAMRAHSXXXXXXMAYNASMJC", "a_b-c", &"x".repeat(128)] {
            assert!(SpaceToken::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a b",
            "a/b",
            "ä",
            "a.b",
            "a%62",
            "a\0",
            &"x".repeat(129),
        ] {
            assert_eq!(SpaceToken::new(bad), Err(InvalidSpaceToken), "{bad}");
        }
    }

    #[test]
    fn a_printed_token_shows_only_its_fingerprint() {
        let token = SpaceToken::new("8KZAMRAHSXXXXXXMAYNASMJC").unwrap();
        let shown = format!("{token} {token:?}");
        assert!(!shown.contains("8KZ"), "{shown}");
        assert_eq!(shown.len(), 2 * "space-0123456789ab".len() + 1);
    }
}
