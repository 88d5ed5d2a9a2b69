use std::fmt;

use compact_str::CompactString;

use super::space_token::is_name;

const MAX_LENGTH: usize = 64;

/// Names a run of a space.
///
/// The upstream puts it unquoted into a URL of its own: it holds nothing that would end it there.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(CompactString);

/// Not 1 to 64 of `A-Z a-z 0-9 _ -`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a run id is 1 to 64 of A-Z a-z 0-9 _ -")]
pub struct InvalidRunId;

impl RunId {
    /// Takes an id as it stands after percent-decoding.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidRunId`] for any other length or character.
    pub fn new(text: &str) -> Result<Self, InvalidRunId> {
        if is_name(text, MAX_LENGTH) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidRunId)
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_alphabet_and_the_length_of_an_id_are_taken() {
        for good in [
            "R",
            "R00000000000000000000000000def005",
            "a_b-c",
            &"x".repeat(64),
        ] {
            assert!(RunId::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a b",
            "a/b",
            "ä",
            "a.b",
            "a?b",
            "a#b",
            "a%62",
            "a\0",
            &"x".repeat(65),
        ] {
            assert_eq!(RunId::new(bad), Err(InvalidRunId), "{bad}");
        }
    }
}
