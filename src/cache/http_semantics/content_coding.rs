//! Which content coding suits a caller (RFC 9110 12.5.3).

use http::{HeaderMap, header::ACCEPT_ENCODING};

use super::members;

/// How a body is encoded on the wire, in the order we prefer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContentCoding {
    Brotli,
    Zstd,
    Gzip,
    Identity,
}

impl ContentCoding {
    /// Every coding, best first, each at the place of its number.
    pub const BY_PREFERENCE: [Self; 4] = [Self::Brotli, Self::Zstd, Self::Gzip, Self::Identity];

    /// Returns the name that `Content-Encoding` knows it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Identity => "identity",
        }
    }

    fn from_name(name: &[u8]) -> Option<Self> {
        // RFC 9110 8.4.1.3: x-gzip is gzip.
        if name.eq_ignore_ascii_case(b"x-gzip") {
            return Some(Self::Gzip);
        }
        Self::BY_PREFERENCE
            .into_iter()
            .find(|coding| name.eq_ignore_ascii_case(coding.as_str().as_bytes()))
    }
}

/// Returns the coding of `offered` the caller likes best, without allocating; of several the first. `Identity` is always offered.
///
/// `Identity` is also the answer where the caller names none of them, or forbids everything: better than a 406.
pub fn negotiate(headers: &HeaderMap, offered: &[ContentCoding]) -> ContentCoding {
    let accepted = Accepted::by(headers);
    let mut best = (ContentCoding::Identity, Quality::default());
    for coding in offered.iter().chain(&[ContentCoding::Identity]) {
        let quality = accepted.quality_of(*coding);
        if quality > best.1 {
            best = (*coding, quality);
        }
    }
    best.0
}

/// Tells whether the caller takes a body that is not coded, much as it may like another better.
pub fn accepts_identity(headers: &HeaderMap) -> bool {
    let accepted = Accepted::by(headers);
    let named = accepted.named[ContentCoding::Identity as usize];
    named.or(accepted.others) != Some(Quality(0))
}

/// A weight in thousandths, 0 to 1000; zero is "not acceptable".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Quality(u16);

impl Quality {
    const FULL: Self = Self(1000);

    /// Reads `q=` and a number from 0 to 1 with at most three decimals (RFC 9110 12.4.2).
    fn parse(weight: &[u8]) -> Option<Self> {
        let [b'q' | b'Q', b'=', whole @ (b'0' | b'1'), fraction @ ..] = weight else {
            return None;
        };
        let decimals = match fraction {
            [] => fraction,
            [b'.', decimals @ ..] if decimals.len() <= 3 => decimals,
            _ => return None,
        };
        let mut thousandths = u16::from(whole - b'0') * 1000;
        for (decimal, scale) in decimals.iter().zip([100, 10, 1]) {
            thousandths += u16::from(decimal.is_ascii_digit().then(|| decimal - b'0')?) * scale;
        }
        (thousandths <= Self::FULL.0).then_some(Self(thousandths))
    }
}

/// What the caller says of each coding we know, and of all others (`*`).
#[derive(Debug, Default)]
struct Accepted {
    named: [Option<Quality>; 4],
    others: Option<Quality>,
}

impl Accepted {
    fn by(headers: &HeaderMap) -> Self {
        let mut accepted = Self::default();
        for member in members(headers, &ACCEPT_ENCODING) {
            accepted.add(member);
        }
        accepted
    }

    /// Takes note of one list member. A malformed one is ignored; of several for one coding the first counts.
    fn add(&mut self, member: &[u8]) {
        let mut parts = member.splitn(2, |&byte| byte == b';');
        let name = parts.next().unwrap_or_default().trim_ascii();
        let Some(quality) = parts.next().map_or(Some(Quality::FULL), |weight| {
            Quality::parse(weight.trim_ascii())
        }) else {
            return;
        };
        if name == b"*" {
            self.others.get_or_insert(quality);
        } else if let Some(coding) = ContentCoding::from_name(name) {
            self.named[coding as usize].get_or_insert(quality);
        }
    }

    /// `Identity` has a weight only by name; unnamed it comes last, which costs no caller a coding it accepts.
    fn quality_of(&self, coding: ContentCoding) -> Quality {
        let unnamed = match coding {
            ContentCoding::Identity => None,
            ContentCoding::Brotli | ContentCoding::Zstd | ContentCoding::Gzip => self.others,
        };
        self.named[coding as usize].or(unnamed).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{any_lines, fields, in_any_case},
        *,
    };

    const ALL: &[ContentCoding] = &[
        ContentCoding::Brotli,
        ContentCoding::Zstd,
        ContentCoding::Gzip,
    ];

    fn negotiated(lines: &[&str], available: &[ContentCoding]) -> ContentCoding {
        let lines: Vec<_> = lines
            .iter()
            .map(|line| ("accept-encoding", *line))
            .collect();
        negotiate(&fields(&lines), available)
    }

    // RFC 9110 12.5.3 and 12.4.2.
    #[test]
    fn the_heaviest_coding_wins() {
        let table: &[(&[&str], ContentCoding)] = &[
            (&[], ContentCoding::Identity),
            (&[""], ContentCoding::Identity),
            (&["gzip"], ContentCoding::Gzip),
            (&["X-GZip"], ContentCoding::Gzip),
            (&["deflate, compress"], ContentCoding::Identity),
            (&["gzip, deflate, br, zstd"], ContentCoding::Brotli),
            (&["gzip, zstd"], ContentCoding::Zstd),
            (&["gzip", "br"], ContentCoding::Brotli),
            (&["br;q=0.5, gzip ; q=0.501"], ContentCoding::Gzip),
            (&["br;Q=0.5, gzip;q=1.000"], ContentCoding::Gzip),
            (&["br;q=1., gzip"], ContentCoding::Brotli),
            (&["br;q=0, gzip;q=0.001"], ContentCoding::Gzip),
            (&["br;q=0, br"], ContentCoding::Identity),
            (&["*"], ContentCoding::Brotli),
            (&["br;q=0.1, *;q=0.5"], ContentCoding::Zstd),
            (&["br;q=0, *"], ContentCoding::Zstd),
            (&["gzip, *;q=0"], ContentCoding::Gzip),
            (&["*;q=0"], ContentCoding::Identity),
            (&["identity;q=0, gzip;q=0.5"], ContentCoding::Gzip),
            (&["identity;q=0"], ContentCoding::Identity),
            (&["identity, gzip;q=0.5"], ContentCoding::Identity),
            (&["identity, gzip"], ContentCoding::Gzip),
            (&["gzip;q=0.5"], ContentCoding::Gzip),
            (&["br;q=2, gzip"], ContentCoding::Gzip),
            (&["br;q=1.001, gzip"], ContentCoding::Gzip),
            (&["br;q=0.1234, gzip"], ContentCoding::Gzip),
            (&["br;q=-1, gzip"], ContentCoding::Gzip),
            (&["br;q= 1, gzip"], ContentCoding::Gzip),
            (&["br;q, gzip"], ContentCoding::Gzip),
            (&["br;, gzip"], ContentCoding::Gzip),
            (&["br;level=1, gzip"], ContentCoding::Gzip),
        ];
        for (lines, expected) in table {
            assert_eq!(negotiated(lines, ALL), *expected, "{lines:?}");
        }
    }

    // RFC 9110 12.5.3.
    #[test]
    fn identity_is_taken_unless_it_is_excluded() {
        let table: &[(&[&str], bool)] = &[
            (&[], true),
            (&[""], true),
            (&["gzip"], true),
            (&["gzip, *"], true),
            (&["gzip, *;q=0.1"], true),
            (&["gzip;q=0"], true),
            (&["identity;q=0.001"], true),
            (&["identity, *;q=0"], true),
            (&["*;q=0", "identity;q=0.5"], true),
            (&["identity;q=x"], true),
            (&["identity;q=0"], false),
            (&["gzip, Identity; Q=0.000"], false),
            (&["gzip, *;q=0"], false),
            (&["gzip", "*; q=0.0"], false),
            (&["identity;q=0, *"], false),
        ];
        for (lines, expected) in table {
            let lines: Vec<_> = lines
                .iter()
                .map(|line| ("accept-encoding", *line))
                .collect();
            assert_eq!(accepts_identity(&fields(&lines)), *expected, "{lines:?}");
        }
    }

    #[test]
    fn of_codings_liked_alike_the_first_offered_wins() {
        let offered = [ContentCoding::Gzip, ContentCoding::Brotli];
        assert_eq!(negotiated(&["br, gzip"], &offered), ContentCoding::Gzip);
        let better = negotiated(&["br, gzip;q=0.9"], &offered);
        assert_eq!(better, ContentCoding::Brotli);
    }

    #[test]
    fn only_available_codings_are_chosen() {
        assert_eq!(
            negotiated(&["br, gzip;q=0.1"], &[ContentCoding::Gzip]),
            ContentCoding::Gzip
        );
        assert_eq!(
            negotiated(&["br, identity;q=0"], &[]),
            ContentCoding::Identity
        );
    }

    proptest! {
        #[test]
        fn no_accept_encoding_panics(headers in any_lines(&ACCEPT_ENCODING)) {
            negotiate(&headers, ALL);
        }

        // RFC 9110 5.3, 5.6.1 and 8.4.1: case, white space, empty members and the split into lines say nothing.
        #[test]
        fn equal_lists_negotiate_equal(
            members in prop::collection::vec("(br|zstd|gzip|x-gzip|identity|\\*|x)(;q=(0(\\.[0-9]{0,3})?|1|2))?", 0..5),
            uppercase: [bool; 7],
            separator in prop::sample::select(&[",", ", ", " ,\t", ",, ,"][..]),
        ) {
            let plain = negotiated(&[&members.join(",")], ALL);
            let respelt = in_any_case(&members.join(separator).replace(';', " ;\t"), &uppercase);
            let lines: Vec<_> = members.iter().map(String::as_str).collect();
            prop_assert_eq!(negotiated(&[&respelt], ALL), plain);
            prop_assert_eq!(negotiated(&lines, ALL), plain);
        }
    }
}
