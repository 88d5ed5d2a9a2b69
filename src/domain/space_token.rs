use std::fmt;

use compact_str::CompactString;

use super::hex::write_hex;

const MAX_LENGTH: usize = 128;
/// By byte, whether a token may hold it: looking it up costs half of what comparing each byte does.
const ALLOWED: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < allowed.len() {
        allowed[byte] =
            (byte as u8).is_ascii_alphanumeric() || byte == b'_' as usize || byte == b'-' as usize;
        byte += 1;
    }
    allowed
};

/// Whether `text` is 1 to `most` of `A-Z a-z 0-9 _ -`.
pub(super) fn is_name(text: &str, most: usize) -> bool {
    let is_allowed = |byte: &u8| ALLOWED[usize::from(*byte)];
    (1..=most).contains(&text.len()) && text.as_bytes().iter().all(is_allowed)
}

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
        if is_name(text, MAX_LENGTH) {
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
    pub fn fingerprint(&self) -> SpaceFingerprint {
        let digest = blake3::hash(self.0.as_bytes());
        let mut text = *b"space-............";
        write_hex(digest.as_bytes(), &mut text[6..]);
        let text = CompactString::from_utf8(text);
        SpaceFingerprint(text.expect("hex digits are ASCII"))
    }
}

/// What may be told of a space: made of a token alone, so that nothing else can be told in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceFingerprint(CompactString);

impl SpaceFingerprint {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpaceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.fingerprint().as_str())
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
