//! What a client may see of a task: an allow-list of members, cut out of a page's bytes.
//!
//! Nothing is parsed and printed again: what is shown are slices of the page, in their order. Whatever the list does not name is
//! hidden, and so is whatever does not have the form a path expects.

use std::collections::BTreeMap;

use bytes::Bytes;

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
        let mut cutter = Cutter {
            text: page,
            at: 0,
            shown: Vec::new(),
        };
        cutter.skip_space();
        if !self.page.shows(cutter.peek()?) {
            return None;
        }
        cutter.cut(&self.page, 0)?;
        // Boxed, so that it holds no more than it is weighed by.
        Some(cutter.shown.into_boxed_slice().into())
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

/// What is shown of the member called `name`, a JSON string. A name that cannot be read is not on the list.
fn member<'a>(members: &'a Members, name: &[u8]) -> Option<&'a Allowed> {
    // One name has many spellings, and any reader takes them for the same.
    if name.contains(&b'\\') {
        let name: String = serde_json::from_slice(name).ok()?;
        return members.get(name.as_str());
    }
    let inner = name.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    members.get(std::str::from_utf8(inner).ok()?)
}

/// How deep objects and arrays are followed. A page may nest deeper than any stack; what is passed over or shown whole may too.
const MAX_DEPTH: usize = 128;

/// Walks through JSON once and copies what is shown.
struct Cutter<'a> {
    text: &'a [u8],
    at: usize,
    shown: Vec<u8>,
}

impl<'a> Cutter<'a> {
    /// Copies what `allowed` shows of the value that begins here, of which it shows something.
    fn cut(&mut self, allowed: &Allowed, depth: usize) -> Option<()> {
        match (allowed, self.peek()?) {
            (Allowed::Members(members), b'{') => self.cut_members(members, depth),
            (Allowed::Members(_), b'[') => self.cut_elements(allowed, depth),
            (Allowed::Members(_) | Allowed::Whole, _) => {
                let from = self.at;
                self.skip_value()?;
                self.show(from);
                Some(())
            }
        }
    }

    fn cut_members(&mut self, members: &Members, depth: usize) -> Option<()> {
        self.cut_list(b'}', depth, |cutter| {
            let name = cutter.skip_string()?;
            cutter.skip_space();
            cutter.skip_byte(b':')?;
            cutter.skip_space();
            Some(member(members, name))
        })
    }

    fn cut_elements(&mut self, allowed: &Allowed, depth: usize) -> Option<()> {
        self.cut_list(b']', depth, |_| Some(Some(allowed)))
    }

    /// Copies the items of a list up to `close`, of which each begins with what `head` reads: it says what of the item is shown.
    fn cut_list<'b>(
        &mut self,
        close: u8,
        depth: usize,
        mut head: impl FnMut(&mut Self) -> Option<Option<&'b Allowed>>,
    ) -> Option<()> {
        let open = self.next()?;
        self.shown.push(open);
        let mut from = self.at;
        self.skip_space();
        if self.peek()? == close {
            self.at += 1;
            self.show(from);
            return Some(());
        }
        let mut is_first = true;
        loop {
            let allowed = head(self)?;
            let first = self.peek()?;
            match allowed.filter(|allowed| depth < MAX_DEPTH && allowed.shows(first)) {
                Some(allowed) => {
                    if !is_first {
                        self.shown.push(b',');
                    }
                    is_first = false;
                    self.show(from);
                    self.cut(allowed, depth + 1)?;
                    from = self.at;
                    self.skip_space();
                    self.show(from);
                }
                None => {
                    self.skip_value()?;
                    self.skip_space();
                }
            }
            if self.ends_list(close)? {
                self.shown.push(close);
                return Some(());
            }
            from = self.at;
            self.skip_space();
        }
    }

    /// Passes over what stands behind an item: a comma, or the end of its list.
    fn ends_list(&mut self, close: u8) -> Option<bool> {
        let byte = self.next()?;
        (byte == close || byte == b',').then_some(byte == close)
    }

    /// Copies what has been passed since `from`.
    fn show(&mut self, from: usize) {
        self.shown.extend_from_slice(&self.text[from..self.at]);
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn skip_byte(&mut self, expected: u8) -> Option<()> {
        (self.next()? == expected).then_some(())
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
    }

    /// Passes over a value without recursion, however deep it nests.
    fn skip_value(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.skip_string()?;
                }
                b'{' | b'[' => {
                    self.at += 1;
                    depth += 1;
                }
                b'}' | b']' => {
                    self.at += 1;
                    depth = depth.checked_sub(1)?;
                }
                byte if depth > 0 && (is_space(byte) || matches!(byte, b',' | b':')) => {
                    self.at += 1;
                }
                _ => self.skip_literal()?,
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// Passes over a number, `true`, `false` or `null`.
    fn skip_literal(&mut self) -> Option<()> {
        let from = self.at;
        let belongs = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        while self.peek().is_some_and(belongs) {
            self.at += 1;
        }
        (self.at > from).then_some(())
    }

    /// Passes over a string and returns it, its quotes included.
    fn skip_string(&mut self) -> Option<&'a [u8]> {
        let from = self.at;
        self.skip_byte(b'"')?;
        loop {
            match self.next()? {
                b'"' => return Some(&self.text[from..self.at]),
                b'\\' => {
                    self.next()?;
                }
                _ => {}
            }
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests;
