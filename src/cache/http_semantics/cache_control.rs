//! `Cache-Control` as an upstream and as a caller may state it (RFC 9111 5.2, RFC 5861).

use std::time::Duration;

use http::{
    HeaderMap, HeaderName,
    header::{CACHE_CONTROL, PRAGMA},
};

/// A number of whole seconds as caches write it, RFC 9111's delta-seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u64);

impl Seconds {
    /// What larger numbers count as. RFC 9111 1.2.2 asks for at least 2^31; sums of a few of these fit a `Duration`.
    pub const MAX: Self = Self(u32::MAX as u64);

    /// Reads digits and nothing else, at least one of them.
    pub(super) fn from_digits(digits: &[u8]) -> Option<Self> {
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let number = digits.iter().fold(0, |number, digit| {
            Self::MAX.0.min(number * 10 + u64::from(digit - b'0'))
        });
        Some(Self(number))
    }
}

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        Self::from_secs(seconds.0)
    }
}

/// What an upstream answer's `Cache-Control` says, all lines combined.
///
/// The qualified encodings `no-cache="field"` and `private="field"` count as the plain ones, as 5.2.2.4 and 5.2.2.7 allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    pub no_store: bool,
    pub private: bool,
    pub no_cache: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub public: bool,
    pub s_maxage: Option<Seconds>,
    pub max_age: Option<Seconds>,
    pub stale_while_revalidate: Option<Seconds>,
    pub stale_if_error: Option<Seconds>,
}

impl ResponseDirectives {
    /// Reads the answer's fields. A number that cannot be read is zero: it grants no time at all.
    pub fn parse(headers: &HeaderMap) -> Self {
        let mut parsed = Self::default();
        for directive in directives(headers, &CACHE_CONTROL) {
            parsed.add(&directive);
        }
        parsed
    }

    fn add(&mut self, directive: &Directive<'_>) {
        for (name, flag) in [
            ("no-store", &mut self.no_store),
            ("private", &mut self.private),
            ("no-cache", &mut self.no_cache),
            ("must-revalidate", &mut self.must_revalidate),
            ("proxy-revalidate", &mut self.proxy_revalidate),
            ("public", &mut self.public),
        ] {
            *flag |= directive.is(name);
        }
        for (name, stated) in [
            ("s-maxage", &mut self.s_maxage),
            ("max-age", &mut self.max_age),
            ("stale-while-revalidate", &mut self.stale_while_revalidate),
            ("stale-if-error", &mut self.stale_if_error),
        ] {
            if directive.is(name) {
                // RFC 9111 4.2.1: of several the first counts, and invalid freshness means stale.
                stated.get_or_insert(directive.seconds().unwrap_or_default());
            }
        }
    }
}

/// How much staleness a caller puts up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxStale {
    /// `max-stale` without a number.
    Any,
    /// `max-stale=N`.
    Within(Duration),
}

/// What a caller's request directives ask for (RFC 9111 5.2.1). Those that cannot be read ask for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    pub no_cache: bool,
    pub no_store: bool,
    pub only_if_cached: bool,
    pub max_age: Option<Duration>,
    pub min_fresh: Option<Duration>,
    pub max_stale: Option<MaxStale>,
}

impl RequestDirectives {
    /// Reads the request's fields, without allocating.
    pub fn parse(headers: &HeaderMap) -> Self {
        let mut parsed = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            // RFC 9111 5.4: Pragma counts only where there is no Cache-Control.
            parsed.no_cache =
                directives(headers, &PRAGMA).any(|directive| directive.is("no-cache"));
            return parsed;
        }
        for directive in directives(headers, &CACHE_CONTROL) {
            parsed.add(&directive);
        }
        parsed
    }

    /// Tells whether the caller asks for nothing out of the ordinary.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, directive: &Directive<'_>) {
        self.no_cache |= directive.is("no-cache");
        self.no_store |= directive.is("no-store");
        self.only_if_cached |= directive.is("only-if-cached");
        let seconds = directive.seconds().map(Duration::from);
        if directive.is("max-age") {
            self.max_age = self.max_age.or(seconds);
        }
        if directive.is("min-fresh") {
            self.min_fresh = self.min_fresh.or(seconds);
        }
        if directive.is("max-stale") {
            let stated = match directive.argument {
                None => Some(MaxStale::Any),
                Some(_) => seconds.map(MaxStale::Within),
            };
            self.max_stale = self.max_stale.or(stated);
        }
    }
}

/// One member of a directive list, still as it was spelt.
struct Directive<'a> {
    name: &'a [u8],
    argument: Option<&'a [u8]>,
}

impl<'a> Directive<'a> {
    fn new(member: &'a [u8]) -> Self {
        let mut halves = member.splitn(2, |&byte| byte == b'=');
        let spelt = halves.next().unwrap_or_default().trim_ascii_start();
        let name = spelt.trim_ascii_end();
        // RFC 9111 5.2 has no space around "="; an argument after one is there, but cannot be read.
        let tight = name.len() == spelt.len();
        let argument = halves.next().map(|argument| {
            if tight {
                argument.trim_ascii_end()
            } else {
                b""
            }
        });
        Self { name, argument }
    }

    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// Returns the argument as a number, written bare or quoted: RFC 9111 5.2 asks recipients to accept both.
    fn seconds(&self) -> Option<Seconds> {
        let argument = self.argument?;
        let unquoted = argument
            .strip_prefix(b"\"")
            .and_then(|rest| rest.strip_suffix(b"\""));
        Seconds::from_digits(unquoted.unwrap_or(argument))
    }
}

fn directives<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = Directive<'a>> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| Members(line.as_bytes()))
        .map(Directive::new)
}

/// The comma-separated members of one line. A comma inside a quoted string separates nothing; a string that is
/// never closed ends with its line.
struct Members<'a>(&'a [u8]);

impl<'a> Iterator for Members<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let line = self.0;
        let end = member_len(line);
        self.0 = line.get(end + 1..).unwrap_or_default();
        Some(&line[..end])
    }
}

fn member_len(line: &[u8]) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    let ends = |&byte: &u8| {
        match byte {
            b'"' if !escaped => quoted = !quoted,
            b',' if !quoted => return true,
            _ => {}
        }
        // RFC 9110 5.6.4: a backslash escapes only inside a quoted string.
        escaped = quoted && !escaped && byte == b'\\';
        false
    };
    line.iter().position(ends).unwrap_or(line.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{any_lines, fields, in_any_case},
        *,
    };

    fn response(lines: &[&str]) -> ResponseDirectives {
        let lines: Vec<_> = lines.iter().map(|line| ("cache-control", *line)).collect();
        ResponseDirectives::parse(&fields(&lines))
    }

    fn request(line: &str) -> RequestDirectives {
        RequestDirectives::parse(&fields(&[("cache-control", line)]))
    }

    // RFC 9111 1.2.2, 4.2.1 and 5.2.
    #[test]
    fn max_age_is_a_number_or_nothing() {
        let table: &[(&[&str], Option<u64>)] = &[
            (&["public"], None),
            (&["max-age=60"], Some(60)),
            (&["max-age=0060"], Some(60)),
            (&["MaX-aGe=60"], Some(60)),
            (&["max-age=\"60\""], Some(60)),
            (&["max-age=60, max-age=1"], Some(60)),
            (&["max-age=1", "max-age=60"], Some(1)),
            (&["max-age=x, max-age=60"], Some(0)),
            (&["foo, max-age=60, bar=\"baz\""], Some(60)),
            (&["max-age=2147483648"], Some(2_147_483_648)),
            (&["max-age=99999999999999999999999"], Some(Seconds::MAX.0)),
            (&["max-age=-60"], Some(0)),
            (&["max-age='60'"], Some(0)),
            (&["max-age=\"60"], Some(0)),
            (&["max-age=60.5"], Some(0)),
            (&["max-age=60s"], Some(0)),
            (&["max-age=s60"], Some(0)),
            (&["max-age="], Some(0)),
            (&["max-age"], Some(0)),
            (&["max-age =60"], Some(0)),
            (&["max-age= 60"], Some(0)),
            (&["x-max-age=60"], None),
        ];
        for (lines, expected) in table {
            assert_eq!(response(lines).max_age, expected.map(Seconds), "{lines:?}");
        }
    }

    // RFC 9111 5.2 and RFC 9110 5.6.4.
    #[test]
    fn quoted_text_is_no_directive() {
        let sixty = ResponseDirectives {
            max_age: Some(Seconds(60)),
            ..ResponseDirectives::default()
        };
        for line in [
            "x=\"max-age=1\", max-age=60",
            "max-age=60, x=\"a, no-store, b\"",
            "x=\"a\\\", no-store, \\\\\", max-age=60",
            "\"no-store\", max-age=60",
            "max-age=60, x=\"a, no-store",
        ] {
            assert_eq!(response(&[line]), sixty, "{line}");
        }
        assert!(response(&["x=\"a", "no-store"]).no_store);
    }

    // RFC 9111 5.2.2, RFC 5861 3 and 4.
    #[test]
    fn every_directive_is_known() {
        let all = ResponseDirectives {
            no_store: true,
            private: true,
            no_cache: true,
            must_revalidate: true,
            proxy_revalidate: true,
            public: true,
            s_maxage: Some(Seconds(1)),
            max_age: Some(Seconds(2)),
            stale_while_revalidate: Some(Seconds(3)),
            stale_if_error: Some(Seconds(4)),
        };
        let lines = [
            "No-Store, private=\"set-cookie\",no-cache=\"a, b\" , must-revalidate",
            "proxy-revalidate,, public, s-maxage=1, max-age=2",
            "stale-while-revalidate=3, stale-if-error=4, immutable",
        ];
        assert_eq!(response(&lines), all);
    }

    // RFC 9111 5.2.1.
    #[test]
    fn a_request_says_what_it_needs() {
        let none = RequestDirectives::default();
        let seconds = Duration::from_secs;
        let table = [
            ("", none),
            ("something-else", none),
            (
                "No-Cache",
                RequestDirectives {
                    no_cache: true,
                    ..none
                },
            ),
            (
                "no-store",
                RequestDirectives {
                    no_store: true,
                    ..none
                },
            ),
            (
                "only-if-cached",
                RequestDirectives {
                    only_if_cached: true,
                    ..none
                },
            ),
            (
                "max-age=0",
                RequestDirectives {
                    max_age: Some(seconds(0)),
                    ..none
                },
            ),
            (
                "max-age=x, max-age=5",
                RequestDirectives {
                    max_age: Some(seconds(5)),
                    ..none
                },
            ),
            ("max-age", none),
            (
                "min-fresh=5",
                RequestDirectives {
                    min_fresh: Some(seconds(5)),
                    ..none
                },
            ),
            (
                "max-stale",
                RequestDirectives {
                    max_stale: Some(MaxStale::Any),
                    ..none
                },
            ),
            (
                "max-stale=5",
                RequestDirectives {
                    max_stale: Some(MaxStale::Within(seconds(5))),
                    ..none
                },
            ),
            ("max-stale=x", none),
            ("max-stale =5", none),
            ("x=\"no-cache, no-store\"", none),
        ];
        for (line, expected) in table {
            assert_eq!(request(line), expected, "{line}");
            assert_eq!(request(line).is_default(), expected == none, "{line}");
        }
    }

    // RFC 9111 5.4.
    #[test]
    fn pragma_counts_only_alone() {
        let no_cache = |lines| RequestDirectives::parse(&fields(lines)).no_cache;
        assert!(no_cache(&[("pragma", "foo, No-Cache")]));
        assert!(!no_cache(&[("pragma", "foo")]));
        assert!(!no_cache(&[
            ("pragma", "no-cache"),
            ("cache-control", "max-stale")
        ]));
        assert!(
            !response(&[]).no_cache
                && !ResponseDirectives::parse(&fields(&[("pragma", "no-cache")])).no_cache
        );
    }

    proptest! {
        #[test]
        fn no_cache_control_panics(headers in any_lines(&CACHE_CONTROL), pragma in any_lines(&PRAGMA)) {
            ResponseDirectives::parse(&headers);
            RequestDirectives::parse(&headers);
            RequestDirectives::parse(&pragma);
        }

        // RFC 9110 5.3 and 5.6.1: case, white space, empty members and the split into lines say nothing.
        #[test]
        fn equal_lists_parse_equal(
            names in prop::collection::vec(prop::sample::select(&[
                "no-store", "private", "no-cache", "public", "max-age=60", "s-maxage=\"7\"", "stale-if-error=x",
                "max-stale", "max-stale=5", "min-fresh=3", "only-if-cached", "x=\"no-store, a\"",
            ][..]), 0..6),
            uppercase: [bool; 7],
            separator in prop::sample::select(&[",", ", ", " ,\t", ",, ,"][..]),
        ) {
            let plain = fields(&[("cache-control", &names.join(", "))]);
            let spelt = in_any_case(&names.join(separator), &uppercase);
            let respelt = fields(&[("cache-control", &spelt)]);
            let mut split: Vec<_> = names.iter().map(|name| ("cache-control", *name)).collect();
            split.push(("cache-control", ""));
            for headers in [respelt, fields(&split)] {
                prop_assert_eq!(ResponseDirectives::parse(&headers), ResponseDirectives::parse(&plain));
                prop_assert_eq!(RequestDirectives::parse(&headers), RequestDirectives::parse(&plain));
            }
        }

        #[test]
        fn leading_zeros_say_nothing(number: u32, zeros in 0..30_usize) {
            let line = format!("max-age={}{number}", "0".repeat(zeros));
            prop_assert_eq!(response(&[&line]).max_age, Some(Seconds(number.into())));
        }
    }
}
