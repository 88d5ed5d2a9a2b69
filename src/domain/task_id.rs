use std::fmt;

const MAX_LENGTH: usize = 128;

/// Names a task of a space.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TaskId(Box<str>);

/// Not 1 to 128 of `A-Z a-z 0-9 _ . -`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task id is 1 to 128 of A-Z a-z 0-9 _ . -")]
pub struct InvalidTaskId;

impl TaskId {
    /// Takes an id as it stands after percent-decoding.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidTaskId`] for any other length or character.
    pub fn new(text: &str) -> Result<Self, InvalidTaskId> {
        if is_row_value(text) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidTaskId)
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` is a value that rows are asked for by: 1 to 128 of `A-Z a-z 0-9 _ . -`.
#[must_use]
pub fn is_row_value(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_allowed)
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_alphabet_and_the_length_of_an_id_are_taken() {
        for good in ["T", "a_b-c.d", "..", &"x".repeat(128)] {
            assert!(TaskId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "ä", &"x".repeat(129)] {
            assert_eq!(TaskId::new(bad), Err(InvalidTaskId), "{bad}");
        }
        for byte in 0..128_u8 {
            let text = format!("T{}", char::from(byte));
            let is_good = byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            assert_eq!(TaskId::new(&text).is_ok(), is_good, "{text:?}");
        }
    }
}
