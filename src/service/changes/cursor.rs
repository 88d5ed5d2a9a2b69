//! Cursors: opaque to clients, short, and good for one space of one credential.
//!
//! A cursor holds no secret and gives no right: its check only tells a cursor of ours from a made-up one, and one of another space.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::domain::SpaceToken;

const CHECK_BYTES: usize = 8;
/// Of this kind of cursor; another kind would begin with another byte.
const LOG: u8 = 1;
const INVENTORY: u8 = 2;
const START: u8 = 3;

/// Names one log: the process that began it, and which of those that process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Incarnation {
    pub(super) process: u32,
    pub(super) log: u32,
}

/// Where a reader is: what a cursor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub(super) incarnation: Incarnation,
    /// The number of the next change.
    pub(super) next: u64,
    /// The serial of the next task that was there before that change, where these are told first.
    pub(super) inventory: Option<u64>,
}

/// A cursor, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    At(Position),
    /// From every task that is watched on, whichever log there is by then.
    Start,
}

/// Not a cursor of ours for this space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCursor;

/// Writes and reads the cursors of one space.
#[derive(Clone, Debug)]
pub(super) struct CursorKey([u8; 32]);

impl CursorKey {
    /// `credential` names the one that the space is read with, the same after a restart.
    pub(super) fn new(credential: &[u8], space: &SpaceToken) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("unpod-gateway 2026 cursor of changes");
        for part in [credential, space.as_str().as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    pub(super) fn write(&self, cursor: Cursor) -> String {
        let mut bytes = Vec::with_capacity(40);
        match cursor {
            Cursor::Start => bytes.push(START),
            Cursor::At(position) => {
                let kind = position.inventory.map_or(LOG, |_| INVENTORY);
                bytes.push(kind);
                bytes.extend(position.incarnation.process.to_be_bytes());
                bytes.extend(position.incarnation.log.to_be_bytes());
                bytes.extend(position.next.to_be_bytes());
                bytes.extend(position.inventory.iter().flat_map(|it| it.to_be_bytes()));
            }
        }
        let check = self.check(&bytes);
        bytes.extend(check);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// # Errors
    ///
    /// Returns [`BadCursor`] for whatever [`Self::write`] did not write for this space.
    pub(super) fn read(&self, text: &str) -> Result<Cursor, BadCursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadCursor)?;
        let payload = bytes.split_last_chunk::<CHECK_BYTES>();
        let (payload, check) = payload.ok_or(BadCursor)?;
        if self.check(payload) != *check {
            return Err(BadCursor);
        }
        parse(payload).ok_or(BadCursor)
    }

    fn check(&self, payload: &[u8]) -> [u8; CHECK_BYTES] {
        let hash = blake3::keyed_hash(&self.0, payload);
        let (check, _) = hash.as_bytes().split_at(CHECK_BYTES);
        check.try_into().expect("a slice of that length")
    }
}

fn parse(payload: &[u8]) -> Option<Cursor> {
    let (kind, rest) = payload.split_first()?;
    if *kind == START {
        return rest.is_empty().then_some(Cursor::Start);
    }
    let (process, rest) = rest.split_first_chunk()?;
    let (log, rest) = rest.split_first_chunk()?;
    let (next, rest) = rest.split_first_chunk()?;
    let inventory = match (*kind, rest) {
        (LOG, []) => None,
        (INVENTORY, rest) => Some(u64::from_be_bytes(rest.try_into().ok()?)),
        _ => return None,
    };
    let incarnation = Incarnation {
        process: u32::from_be_bytes(*process),
        log: u32::from_be_bytes(*log),
    };
    Some(Cursor::At(Position {
        incarnation,
        next: u64::from_be_bytes(*next),
        inventory,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(credential: &str, space: &str) -> CursorKey {
        CursorKey::new(credential.as_bytes(), &SpaceToken::new(space).unwrap())
    }

    fn cursors() -> impl Strategy<Value = Cursor> {
        let at = (any::<(u32, u32)>(), any::<u64>(), any::<Option<u64>>());
        let at = at.prop_map(|((process, log), next, inventory)| {
            Cursor::At(Position {
                incarnation: Incarnation { process, log },
                next,
                inventory,
            })
        });
        prop_oneof![Just(Cursor::Start), at]
    }

    proptest! {
        #[test]
        fn a_cursor_is_read_as_it_was_written_and_for_its_own_space_alone(cursor in cursors()) {
            let own = key("a", "SPACE");
            let text = own.write(cursor);
            prop_assert!(text.len() <= 44, "{text}");
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(own.read(&text), Ok(cursor));
            for other in [key("b", "SPACE"), key("a", "OTHER"), key("aS", "PACE")] {
                prop_assert_eq!(other.read(&text), Err(BadCursor));
            }
        }

        #[test]
        fn a_cursor_with_a_changed_or_missing_character_is_none(
            cursor in cursors(), at in any::<prop::sample::Index>(), by in "[A-Za-z0-9_=+-]"
        ) {
            let own = key("a", "SPACE");
            let text = own.write(cursor);
            let at = at.index(text.len());
            prop_assert_eq!(own.read(&text[..at]), Err(BadCursor));
            let mut changed = text.clone();
            changed.replace_range(at..=at, &by);
            if changed != text {
                prop_assert_eq!(own.read(&changed), Err(BadCursor));
            }
        }
    }

    #[test]
    fn what_nobody_wrote_is_no_cursor() {
        for text in ["", "now", "start", "AAAA", "é", "%", &"A".repeat(5000)] {
            assert_eq!(key("a", "SPACE").read(text), Err(BadCursor), "{text}");
        }
    }
}
