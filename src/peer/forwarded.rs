//! The hops that `X-Forwarded-For` and `Forwarded` (RFC 7239) report, read from the right.
//!
//! Each proxy writes at the end what it knows, and passes on what came before. So the end is read first, and nothing that stands
//! left of a hop can change how that hop is read: a quotation mark that a client left open least of all.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::config::ForwardedHeader;

/// The hops of one line, the last first; `None` for one that cannot be read whole. What comes after that means nothing.
pub(super) fn hops(
    field: ForwardedHeader,
    line: &[u8],
) -> Box<dyn Iterator<Item = Option<IpAddr>> + '_> {
    match field {
        ForwardedHeader::XForwardedFor => Box::new(addresses(line)),
        ForwardedHeader::Forwarded => {
            let mut rest = Backwards(line);
            Box::new(std::iter::from_fn(move || rest.hop()))
        }
    }
}

/// A list without quoting. Empty members are allowed (RFC 9110 section 5.6.1.2).
fn addresses(line: &[u8]) -> impl Iterator<Item = Option<IpAddr>> {
    line.rsplit(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
        .map(|member| {
            let text = std::str::from_utf8(member).ok()?;
            let bare = text.parse().map(|address: IpAddr| address.to_canonical());
            bare.ok().or_else(|| node(text))
        })
}

/// An IPv4 address, or an IPv6 address in brackets, with or without a port (RFC 7239 section 6).
fn node(text: &str) -> Option<IpAddr> {
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (IpAddr::V6(address.parse::<Ipv6Addr>().ok()?), port)
        }
        None => {
            let (address, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (IpAddr::V4(address.parse::<Ipv4Addr>().ok()?), port)
        }
    };
    is_port(port).then(|| address.to_canonical())
}

/// Nothing, or a colon and a number or a made-up name.
fn is_port(text: &str) -> bool {
    let Some(port) = text.strip_prefix(':') else {
        return text.is_empty();
    };
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let fits_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    is_number
        || port
            .strip_prefix('_')
            .is_some_and(|name| !name.is_empty() && name.bytes().all(fits_name))
}

/// What of a `Forwarded` line is still to be read, from its end.
struct Backwards<'a>(&'a [u8]);

impl<'a> Backwards<'a> {
    /// The next element's `for`; `None` at the end of the line.
    fn hop(&mut self) -> Option<Option<IpAddr>> {
        while self.0.last().is_some_and(|byte| is_space(*byte)) || self.skip(b',') {
            self.skip_space();
        }
        (!self.0.is_empty()).then(|| self.element())
    }

    /// Reads an element down to the comma before it: pairs with semicolons between them.
    fn element(&mut self) -> Option<IpAddr> {
        let mut reported = None;
        loop {
            self.skip_space();
            if self.skip(b';') {
                continue;
            }
            if self.is_at_the_begin() {
                break;
            }
            let value = self.value()?;
            let name = self.skip(b'=').then(|| self.token())??;
            // Twice, and each reader picks its own.
            if name.eq_ignore_ascii_case(b"for") && reported.replace(value).is_some() {
                return None;
            }
            self.skip_space();
            if !self.is_at_the_begin() && !self.skip(b';') {
                return None;
            }
        }
        node(std::str::from_utf8(&reported?).ok()?)
    }

    fn is_at_the_begin(&self) -> bool {
        matches!(self.0.last(), None | Some(b','))
    }

    fn value(&mut self) -> Option<Cow<'a, [u8]>> {
        if self.skip(b'"') {
            self.quoted().map(Cow::Owned)
        } else {
            self.token().map(Cow::Borrowed)
        }
    }

    /// What stands between the closing quotation mark, which was read, and the opening one: the first that no backslash escapes.
    fn quoted(&mut self) -> Option<Vec<u8>> {
        let begin = (0..self.0.len())
            .rev()
            .find(|at| self.0[*at] == b'"' && is_bare(&self.0[..*at]))?;
        let content = &self.0[begin + 1..];
        self.0 = &self.0[..begin];
        unescaped(content)
    }

    fn token(&mut self) -> Option<&'a [u8]> {
        let length = self.0.iter().rev().take_while(|byte| is_token(**byte));
        let (rest, token) = self.0.split_at(self.0.len() - length.count());
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    fn skip(&mut self, byte: u8) -> bool {
        let rest = self.0.strip_suffix(&[byte]);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn skip_space(&mut self) {
        while let Some((last, rest)) = self.0.split_last()
            && is_space(*last)
        {
            self.0 = rest;
        }
    }
}

/// Whether what follows `text` is escaped by no backslash.
fn is_bare(text: &[u8]) -> bool {
    let backslashes = text.iter().rev().take_while(|byte| **byte == b'\\');
    backslashes.count() % 2 == 0
}

/// The value that the inside of a quoted string stands for (RFC 9110 section 5.6.4); of ASCII alone.
fn unescaped(content: &[u8]) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(content.len());
    let mut bytes = content.iter().copied();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'\\' { bytes.next()? } else { byte };
        if !matches!(byte, b'\t' | b' '..=b'~') {
            return None;
        }
        value.push(byte);
    }
    Some(value)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
