//! JSON as it lies in its bytes: all of it is checked, nothing of it is built.
//!
//! Its own reader rather than serde_json's, which goes through a page once to find its tasks and once more to look into them; what
//! it takes and refuses is the same, but that a string of no UTF-8 is refused wherever it stands.

use std::{borrow::Cow, ops::Range};

mod blocks;

use self::blocks::{BLOCK, run_ends_of};

/// Where a text turned out to be no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson {
    /// Its first byte that cannot be as it is.
    pub at: usize,
}

type Scanned<T = ()> = Result<T, NotJson>;

/// Goes through a text once, value by value.
#[derive(Debug)]
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
    /// The closing brackets that the value being skipped still needs, innermost last: a text may nest deeper than any stack.
    open: Vec<u8>,
    /// Which block was looked at last, and the ends of runs in it.
    block: usize,
    ends: u64,
}

impl<'a> Scanner<'a> {
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            open: Vec::new(),
            block: 0,
            ends: run_ends_of(text.as_bytes(), 0),
        }
    }

    /// Passes over the value that begins here and returns it, without the space around it.
    ///
    /// # Errors
    ///
    /// Returns where it is none.
    pub fn value(&mut self) -> Scanned<&'a str> {
        Ok(&self.text[self.span()?])
    }

    /// The same, but returns where the value lies.
    ///
    /// # Errors
    ///
    /// As [`Self::value`].
    pub fn span(&mut self) -> Scanned<Range<usize>> {
        self.peek()?;
        let from = self.at;
        self.skip()?;
        Ok(from..self.at)
    }

    /// Goes through the object that begins here; `member` is called before each member's value, which it has to pass over.
    ///
    /// # Errors
    ///
    /// Returns where it is none.
    pub fn members(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Scanned,
    ) -> Scanned {
        self.items(b'{', b'}', |scanner| {
            let name = scanner.name()?;
            member(scanner, name)
        })
    }

    /// The same, but with each name as it stands, its quotes included: one that stands for no text is told too.
    ///
    /// # Errors
    ///
    /// As [`Self::members`].
    pub fn raw_members(
        &mut self,
        mut member: impl FnMut(&mut Self, &'a str) -> Scanned,
    ) -> Scanned {
        self.items(b'{', b'}', |scanner| {
            let (_, name) = scanner.raw_name()?;
            member(scanner, name)
        })
    }

    /// Goes through the array that begins here; `element` is called before each element, which it has to pass over.
    ///
    /// # Errors
    ///
    /// Returns where it is none.
    pub fn elements(&mut self, element: impl FnMut(&mut Self) -> Scanned) -> Scanned {
        self.items(b'[', b']', element)
    }

    /// The first byte of the value that begins here.
    ///
    /// # Errors
    ///
    /// Returns where the text has ended.
    #[inline]
    pub fn peek(&mut self) -> Scanned<u8> {
        match self.bytes().get(self.at) {
            // Most JSON holds no space.
            Some(byte) if *byte > b' ' => Ok(*byte),
            Some(_) | None => self.peek_behind_space(),
        }
    }

    fn peek_behind_space(&mut self) -> Scanned<u8> {
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        while self.bytes().get(self.at).is_some_and(is_space) {
            self.at += 1;
        }
        self.bytes().get(self.at).copied().ok_or(self.here())
    }

    /// Where the scanner stands: how many bytes it has passed.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Some bytes of the text.
    #[must_use]
    pub fn between(&self, range: Range<usize>) -> &'a [u8] {
        &self.text.as_bytes()[range]
    }

    /// Makes sure that nothing follows.
    ///
    /// # Errors
    ///
    /// Returns where something does.
    pub fn end(mut self) -> Scanned {
        match self.peek() {
            Ok(_) => Err(self.here()),
            Err(_) => Ok(()),
        }
    }

    /// That the text is wrong where the scanner stands.
    #[must_use]
    pub fn here(&self) -> NotJson {
        NotJson { at: self.at }
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    fn items(
        &mut self,
        open: u8,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Scanned,
    ) -> Scanned {
        self.byte(open)?;
        if self.peek()? == close {
            self.at += 1;
            return Ok(());
        }
        loop {
            item(self)?;
            let byte = self.peek()?;
            if byte != b',' {
                return self.byte(close);
            }
            self.at += 1;
        }
    }

    /// Passes over the value that begins here.
    fn skip(&mut self) -> Scanned {
        let outside = self.open.len();
        loop {
            match self.peek()? {
                b'"' => self.skip_string()?,
                b'{' if self.opens(b'}')? => {
                    self.skip_name()?;
                    continue;
                }
                b'[' if self.opens(b']')? => continue,
                b'{' | b'[' => {}
                b'-' | b'0'..=b'9' => self.skip_number()?,
                b't' => self.skip_word("true")?,
                b'f' => self.skip_word("false")?,
                b'n' => self.skip_word("null")?,
                _ => return Err(self.here()),
            }
            if self.closes(outside)? {
                return Ok(());
            }
        }
    }

    /// Passes over an opening bracket. Whether anything stands behind it; else it is closed again.
    fn opens(&mut self, close: u8) -> Scanned<bool> {
        self.at += 1;
        if self.peek()? == close {
            self.at += 1;
            return Ok(false);
        }
        self.open.push(close);
        Ok(true)
    }

    /// Passes over what follows a value, up to the next one. Whether there is none: all that was open is closed but for `outside`.
    fn closes(&mut self, outside: usize) -> Scanned<bool> {
        while self.open.len() > outside {
            let close = self.open.last().copied();
            let byte = self.peek()?;
            if byte == b',' {
                self.at += 1;
                if close == Some(b'}') {
                    self.skip_name()?;
                }
                return Ok(false);
            }
            if Some(byte) != close {
                return Err(self.here());
            }
            self.at += 1;
            self.open.pop();
        }
        Ok(true)
    }

    /// The name of a member, and over the colon behind it.
    fn name(&mut self) -> Scanned<Cow<'a, str>> {
        let (at, name) = self.raw_name()?;
        text(name).ok_or(NotJson { at })
    }

    /// Where it begins, and as it stands.
    fn raw_name(&mut self) -> Scanned<(usize, &'a str)> {
        self.peek()?;
        let from = self.at;
        self.skip_name()?;
        let name = &self.text[from..self.at - 1];
        Ok((from, name.trim_ascii_end()))
    }

    fn skip_name(&mut self) -> Scanned {
        if self.peek()? != b'"' {
            return Err(self.here());
        }
        self.skip_string()?;
        self.byte(b':')
    }

    // Always: then names and values have a copy each, whose jumps are guessed by themselves. It takes a fifth off a page.
    #[inline(always)]
    fn skip_string(&mut self) -> Scanned {
        self.at += 1;
        loop {
            self.skip_plain();
            match self.bytes().get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.skip_escape()?,
                _ => return Err(self.here()),
            }
        }
    }

    /// Passes over what in a string stands for itself.
    #[inline(always)]
    fn skip_plain(&mut self) {
        self.look_at(self.at / BLOCK);
        let mut ends = self.ends & (u64::MAX << (self.at % BLOCK));
        while ends == 0 {
            self.look_at(self.block + 1);
            ends = self.ends;
        }
        self.at = BLOCK * self.block + ends.trailing_zeros() as usize;
    }

    #[inline(always)]
    fn look_at(&mut self, block: usize) {
        if block != self.block {
            self.block = block;
            self.ends = run_ends_of(self.bytes(), block);
        }
    }

    fn skip_escape(&mut self) -> Scanned {
        let length = match self.bytes().get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => 6,
            _ => return Err(self.here()),
        };
        let digits = self.bytes().get(self.at + 2..self.at + length);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(self.here());
        }
        self.at += length;
        Ok(())
    }

    fn skip_number(&mut self) -> Scanned {
        self.skip_any_of(b"-");
        // No digit may follow a leading zero, and none does where what follows a value is looked at.
        if !self.skip_any_of(b"0") {
            self.skip_digits()?;
        }
        if self.skip_any_of(b".") {
            self.skip_digits()?;
        }
        if self.skip_any_of(b"eE") {
            self.skip_any_of(b"+-");
            self.skip_digits()?;
        }
        Ok(())
    }

    fn skip_digits(&mut self) -> Scanned {
        let from = self.at;
        while self.bytes().get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at > from {
            Ok(())
        } else {
            Err(self.here())
        }
    }

    /// Passes over one of `wanted`, if one is here.
    fn skip_any_of(&mut self, wanted: &[u8]) -> bool {
        let byte = self.bytes().get(self.at);
        let found = byte.is_some_and(|byte| wanted.contains(byte));
        self.at += usize::from(found);
        found
    }

    fn skip_word(&mut self, word: &str) -> Scanned {
        if !self.bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(self.here());
        }
        self.at += word.len();
        Ok(())
    }

    fn byte(&mut self, wanted: u8) -> Scanned {
        if self.peek()? != wanted {
            return Err(self.here());
        }
        self.at += 1;
        Ok(())
    }
}

/// The text that `value` stands for, if it is a string.
#[must_use]
pub fn text(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str(value).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// The value of the member `name` of `object`, if it is one that has it, and once.
#[must_use]
pub fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let mut found = None;
    Scanner::new(object)
        .members(|scanner, is_called| {
            let value = scanner.value()?;
            if is_called == name && found.replace(value).is_some() {
                return Err(scanner.here());
            }
            Ok(())
        })
        .ok()?;
    found
}

#[cfg(test)]
mod tests;
