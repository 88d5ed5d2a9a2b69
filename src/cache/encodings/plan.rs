//! Decides which encodings of a body are kept.

use super::ENCODINGS;
use crate::cache::http_semantics::ContentCoding;

/// When each encoding that is available was used last, in seconds, by coding.
pub(super) type LastUsed = [Option<u32>; ENCODINGS];

/// What to do about a body's encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// One compressed body is available, and no other.
    Nothing,
    /// All are in use; the next may be idle in that second.
    NotBefore(u32),
    DropPlain,
    DropAllBut(ContentCoding),
    /// The plain body goes, but there is no compressed one yet.
    Compress,
}

/// Decides in the second `now`, where what nobody used for `idle_s` seconds is idle.
pub(super) fn plan(last_used: &LastUsed, now: u32, idle_s: u32) -> Plan {
    let plain = last_used[ContentCoding::Identity as usize];
    let compressed = ContentCoding::BY_PREFERENCE
        .into_iter()
        .filter(|coding| *coding != ContentCoding::Identity);
    let mut compressed =
        compressed.filter_map(|coding| Some((last_used[coding as usize]?, coding)));
    let latest = compressed.clone().max_by_key(|(used, _)| *used);
    let idle_at = |used: u32| used.saturating_add(idle_s);
    match (plain, latest) {
        (Some(plain), _) if now < idle_at(plain) => Plan::NotBefore(idle_at(plain)),
        (Some(_), None) => Plan::Compress,
        (Some(_), Some((used, _))) if now < idle_at(used) => Plan::DropPlain,
        (None, Some(_)) if compressed.nth(1).is_none() => Plan::Nothing,
        (None, Some((used, _))) if now < idle_at(used) => Plan::NotBefore(idle_at(used)),
        (Some(_) | None, Some((_, coding))) => Plan::DropAllBut(coding),
        (None, None) => Plan::Nothing,
    }
}
