//! What a client may see of a task: an allow-list of members, cut out of a page's bytes.
//!
//! Nothing is parsed and printed again: what is shown are slices of the page, in their order. Whatever the list does not name is
//! hidden, and so is whatever does not have the form a path expects.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::json::{NotJson, Scanner, text};

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

    #[must_use]
    pub fn id(&self) -> ViewId {
        self.id
    }

    /// Returns what of `page`, a whole JSON document, this view shows; `None` where it is no JSON.
    ///
    /// Takes time in proportion to the page, and a bounded stack: what nests deeper than 128 arrays and objects on the way to a member is hidden.
    #[must_use]
    pub fn apply(&self, page: &[u8]) -> Option<Bytes> {
        let mut scanner = Scanner::new(std::str::from_utf8(page).ok()?);
        if !self.page.shows(scanner.peek().ok()?) {
            return None;
        }
        let mut shown = Vec::new();
        cut(&mut scanner, &self.page, 0, &mut shown).ok()?;
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

    /// Whether anything is shown of a value that begins with `first`.
    fn shows(&self, first: u8) -> bool {
        match self {
            Self::Whole => true,
            Self::Members(_) => matches!(first, b'{' | b'[' | b'n'),
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

/// Copies what `allowed` shows of the value that begins here, of which it shows something.
fn cut(
    scanner: &mut Scanner<'_>,
    allowed: &Allowed,
    depth: usize,
    shown: &mut Vec<u8>,
) -> Result<(), NotJson> {
    match (allowed, scanner.peek()?) {
        (Allowed::Members(members), b'{') => {
            let mut list = CutList::begin(scanner, shown);
            scanner.raw_members(|scanner, name| {
                // One name has many spellings, and any reader takes them for the same. One that cannot be read is not on the list.
                let allowed = text(name).and_then(|name| members.get(&*name));
                list.item(scanner, allowed, depth, shown)
            })?;
            list.end(scanner, shown);
        }
        (Allowed::Members(_), b'[') => {
            let mut list = CutList::begin(scanner, shown);
            scanner.elements(|scanner| list.item(scanner, Some(allowed), depth, shown))?;
            list.end(scanner, shown);
        }
        (Allowed::Members(_) | Allowed::Whole, _) => {
            shown.extend_from_slice(scanner.value()?.as_bytes());
        }
    }
    Ok(())
}

/// An object or array on its way out: what stands between its brackets, but for the items that are not shown.
struct CutList {
    /// Where the next item begins, the space before it included.
    from: usize,
    is_empty: bool,
    shows_any: bool,
}

impl CutList {
    fn begin(scanner: &Scanner<'_>, shown: &mut Vec<u8>) -> Self {
        let open = scanner.at();
        shown.extend_from_slice(scanner.between(open..open + 1));
        Self {
            from: open + 1,
            is_empty: true,
            shows_any: false,
        }
    }

    /// Takes the item whose value begins here.
    fn item(
        &mut self,
        scanner: &mut Scanner<'_>,
        allowed: Option<&Allowed>,
        depth: usize,
        shown: &mut Vec<u8>,
    ) -> Result<(), NotJson> {
        let first = scanner.peek()?;
        match allowed.filter(|allowed| depth < MAX_DEPTH && allowed.shows(first)) {
            Some(allowed) => {
                if self.shows_any {
                    shown.push(b',');
                }
                shown.extend_from_slice(scanner.between(self.from..scanner.at()));
                cut(scanner, allowed, depth + 1, shown)?;
                let end = scanner.at();
                scanner.peek()?;
                shown.extend_from_slice(scanner.between(end..scanner.at()));
                self.shows_any = true;
            }
            None => {
                scanner.value()?;
                scanner.peek()?;
            }
        }
        // Behind the comma, if one stands here.
        self.from = scanner.at() + 1;
        self.is_empty = false;
        Ok(())
    }

    /// Closes what was opened: the scanner stands behind it.
    fn end(self, scanner: &Scanner<'_>, shown: &mut Vec<u8>) {
        let close = scanner.at();
        let from = if self.is_empty { self.from } else { close - 1 };
        shown.extend_from_slice(scanner.between(from..close));
    }
}

#[cfg(test)]
mod tests;
