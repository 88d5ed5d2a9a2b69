//! What a client may see of a task: an allow-list of members, cut out of a page's bytes.
//!
//! Nothing is parsed and printed again: what is shown are slices of the page, in their order. Whatever the list does not name is
//! hidden, and so is whatever does not have the form a path expects.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::json::{elements, members, offset, text};

/// The way to a member of a task: the names of the objects' members it passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath(Box<[Box<str>]>);

/// Not a way to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a path is 1 to 32 names, none of them empty where they are joined by dots")]
pub struct InvalidFieldPath;

impl FieldPath {
    /// Most names on a path. The upstream's deepest has five.
    pub const MAX_NAMES: usize = 32;

    /// Reads names that are joined by dots, such as `output.call_id`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidFieldPath`] where a name is empty or there are too many.
    pub fn dotted(text: &str) -> Result<Self, InvalidFieldPath> {
        let names: Vec<_> = text.split('.').map(str::to_owned).collect();
        if names.iter().any(String::is_empty) {
            return Err(InvalidFieldPath);
        }
        Self::new(names)
    }

    /// Takes names as they are: one may hold a dot, or be empty.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidFieldPath`] where there are none or too many.
    pub fn new(names: Vec<String>) -> Result<Self, InvalidFieldPath> {
        if (1..=Self::MAX_NAMES).contains(&names.len()) {
            Ok(Self(
                names.into_iter().map(String::into_boxed_str).collect(),
            ))
        } else {
            Err(InvalidFieldPath)
        }
    }
}

/// An allow-list of the members of a task, ready to be applied to pages.
#[derive(Clone, Debug)]
pub struct View {
    page: Allowed,
    id: ViewId,
}

/// Names what a view shows: equal for two that show the same of every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ViewId([u8; 32]);

/// What of a value is shown.
#[derive(Clone, Debug)]
enum Allowed {
    Whole,
    /// Of an object these members; of an array the same of each element; null; of anything else nothing.
    Members(Members),
}

type Members = BTreeMap<Box<str>, Allowed>;

impl View {
    /// Most views there may be at once: each may become a variant of every page.
    pub const MOST: usize = 32;

    /// A view that shows of each task what `fields` lead to, and of the page around them what every client needs.
    #[must_use]
    pub fn new<'a>(fields: impl IntoIterator<Item = &'a FieldPath>) -> Self {
        let mut task = Allowed::nothing();
        for FieldPath(names) in fields {
            task.allow(names);
        }
        let envelope = ["count", "status_code", "message"];
        let members = envelope
            .map(|name| (name.into(), Allowed::Whole))
            .into_iter()
            .chain([("data".into(), task)])
            .collect();
        Self::of(Allowed::Members(members))
    }

    fn of(page: Allowed) -> Self {
        let mut hasher = blake3::Hasher::new();
        page.digest(&mut hasher);
        Self {
            page,
            id: ViewId(hasher.finalize().into()),
        }
    }

    /// A view that shows what both show: the same as one applied to what the other shows.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self::of(self.page.intersection(&other.page))
    }

    /// Whether a row's member `name` is shown where it is a string.
    #[must_use]
    pub fn shows_text(&self, name: &str) -> bool {
        let row = self.page.member("data");
        let member = row.and_then(|row| row.member(name));
        matches!(member, Some(Allowed::Whole))
    }

    #[must_use]
    pub fn id(&self) -> ViewId {
        self.id
    }

    /// Returns what of `page`, a whole JSON document, this view shows; `None` where it is no JSON.
    ///
    /// Takes time in proportion to the page and to how deep its members are looked for, and a bounded stack: what nests deeper than 128
    /// arrays and objects on the way to a member is hidden.
    #[must_use]
    pub fn apply(&self, page: &[u8]) -> Option<Bytes> {
        let page = serde_json::from_slice::<&RawValue>(page).ok()?.get();
        if !self.page.shows(page) {
            return None;
        }
        let mut shown = Vec::new();
        cut(page, &self.page, 0, &mut shown).ok()?;
        // Boxed, so that it holds no more than it is weighed by.
        Some(shown.into_boxed_slice().into())
    }
}

impl Allowed {
    fn nothing() -> Self {
        Self::Members(Members::new())
    }

    /// Adds what `names` lead to. What is shown whole already stays so.
    fn allow(&mut self, names: &[Box<str>]) {
        match (self, names) {
            (Self::Whole, _) => {}
            (whole, []) => *whole = Self::Whole,
            (Self::Members(members), [name, rest @ ..]) => members
                .entry(name.clone())
                .or_insert_with(Self::nothing)
                .allow(rest),
        }
    }

    /// What both allow. A member that both name stays even where they share nothing of it: each shows an empty object there.
    fn intersection(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Whole, narrower) | (narrower, Self::Whole) => narrower.clone(),
            (Self::Members(ours), Self::Members(theirs)) => {
                let shared = ours.iter().filter_map(|(name, allowed)| {
                    let shared = allowed.intersection(theirs.get(name)?);
                    Some((name.clone(), shared))
                });
                Self::Members(shared.collect())
            }
        }
    }

    /// What is shown of the member `name` of an object, if anything.
    fn member(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Whole => Some(self),
            Self::Members(members) => members.get(name),
        }
    }

    /// Whether anything is shown of `value`.
    fn shows(&self, value: &str) -> bool {
        match self {
            Self::Whole => true,
            Self::Members(_) => value.starts_with(['{', '[', 'n']),
        }
    }

    fn digest(&self, hasher: &mut blake3::Hasher) {
        match self {
            Self::Whole => {
                hasher.update(b"*");
            }
            Self::Members(members) => {
                hasher.update(b"{");
                for (name, allowed) in members {
                    hasher.update(&(name.len() as u64).to_le_bytes());
                    hasher.update(name.as_bytes());
                    allowed.digest(hasher);
                }
                hasher.update(b"}");
            }
        }
    }
}

/// How deep objects and arrays are followed. A page may nest deeper than any stack; what is passed over or shown whole may too.
const MAX_DEPTH: usize = 128;

/// Copies what `allowed` shows of `value`, of which it shows something.
fn cut(
    value: &str,
    allowed: &Allowed,
    depth: usize,
    shown: &mut Vec<u8>,
) -> serde_json::Result<()> {
    let Some(items) = items(value, allowed)? else {
        shown.extend_from_slice(value.as_bytes());
        return Ok(());
    };
    let bytes = value.as_bytes();
    shown.push(bytes[0]);
    // Where the next item begins, the space before it included.
    let mut from = 1;
    let mut shows_any = false;
    for (allowed, item) in &items {
        let start = offset(bytes, item);
        let end = start + item.len();
        let next = end + length_of_space(&bytes[end..]);
        if let Some(allowed) = allowed.filter(|allowed| depth < MAX_DEPTH && allowed.shows(item)) {
            if shows_any {
                shown.push(b',');
            }
            shown.extend_from_slice(&bytes[from..start]);
            cut(item, allowed, depth + 1, shown)?;
            shown.extend_from_slice(&bytes[end..next]);
            shows_any = true;
        }
        // Behind the comma, if one stands here.
        from = next + 1;
    }
    let close = if items.is_empty() {
        from
    } else {
        bytes.len() - 1
    };
    shown.extend_from_slice(&bytes[close..]);
    Ok(())
}

/// What is shown of a value, if anything, and the value.
type Item<'a, 'b> = (Option<&'b Allowed>, &'a str);

/// The items of an object or array, each with what is shown of it; `None` of a value that is shown as it is.
fn items<'a, 'b>(
    value: &'a str,
    allowed: &'b Allowed,
) -> serde_json::Result<Option<Vec<Item<'a, 'b>>>> {
    let Allowed::Members(list) = allowed else {
        return Ok(None);
    };
    // One name has many spellings, and any reader takes them for the same. One that cannot be read is not on the list.
    let listed = |name| text(name).and_then(|name| list.get(&*name));
    Ok(match value.as_bytes().first() {
        Some(b'{') => {
            let members = members(value)?.into_iter();
            Some(members.map(|(name, value)| (listed(name), value)).collect())
        }
        Some(b'[') => {
            let elements = elements(value)?.into_iter();
            Some(elements.map(|element| (Some(allowed), element)).collect())
        }
        _ => None,
    })
}

fn length_of_space(bytes: &[u8]) -> usize {
    let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    bytes.iter().take_while(is_space).count()
}

#[cfg(test)]
mod tests;
