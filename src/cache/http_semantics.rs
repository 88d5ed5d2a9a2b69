//! What HTTP fields mean to a shared cache: the parsers of RFC 9111 and of the parts of RFC 9110 it leans on.
//!
//! Pure functions of header fields and a clock reading: nothing here stores, serves or decides. The cache calls them
//! on an upstream's answer when it stores one, and on the caller's request at each hit, where none of them allocates.

mod age;
mod cache_control;
mod conditional;
mod content_coding;
mod date;

use std::time::Duration;

use http::{
    HeaderMap, HeaderName,
    header::{DATE, EXPIRES, VARY},
};

pub use self::{
    age::{corrected_initial_age, parse_age},
    cache_control::{MaxStale, RequestDirectives, ResponseDirectives, Seconds},
    conditional::{EntityTag, if_none_match_matches, is_of_stored, not_modified},
    content_coding::{ContentCoding, accepts_identity, negotiate},
    date::{date_field, fmt_http_date, parse_http_date},
};

/// Which request fields an upstream answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vary {
    /// The answer suits every request.
    None,
    /// It depends on named fields; those the gateway itself sends are the same each time.
    Names,
    /// It depends on more than the request and is never reused without validation.
    Star,
}

/// Returns the freshness lifetime an upstream states, or `None` where it states none.
///
/// A value that cannot be read is `Some(ZERO)`: the answer is stale, and no configured lifetime applies.
pub fn explicit_lifetime(
    directives: &ResponseDirectives,
    headers: &HeaderMap,
    received_unix: i64,
) -> Option<Duration> {
    // RFC 9111 4.2.1: a shared cache takes s-maxage first, and either directive over Expires.
    match directives.s_maxage.or(directives.max_age) {
        Some(seconds) => Some(seconds.into()),
        None => expires_lifetime(headers, received_unix),
    }
}

fn expires_lifetime(headers: &HeaderMap, received_unix: i64) -> Option<Duration> {
    let mut dates = headers
        .get_all(EXPIRES)
        .into_iter()
        .map(|line| parse_http_date(line.as_bytes().trim_ascii(), received_unix));
    let first = dates.next()?;
    // RFC 9111 5.3: an invalid date, notably "0", is in the past. 4.2.1: of several lines the first counts.
    let Some(expires) = first.filter(|_| dates.all(|date| date.is_some())) else {
        return Some(Duration::ZERO);
    };
    let date = date_field(headers, &DATE, received_unix).unwrap_or(received_unix);
    Some(seconds_between(date, expires))
}

/// Returns what the `Vary` lines say together; `*` counts as any member on any line (RFC 9110 12.5.5).
pub fn vary(headers: &HeaderMap) -> Vary {
    let mut found = Vary::None;
    for member in members(headers, &VARY) {
        if member == b"*" {
            return Vary::Star;
        }
        found = Vary::Names;
    }
    found
}

/// Returns the time from `earlier` to `later`, zero if they are the other way round.
fn seconds_between(earlier: i64, later: i64) -> Duration {
    Duration::from_secs(later.saturating_sub(earlier).try_into().unwrap_or(0))
}

/// Returns the members of an unquoted list over all its lines, the empty ones left out (RFC 9110 5.6.1).
fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// 2026-01-01T00:00:00Z.
    pub(super) const NOW: i64 = 1_767_225_600;

    /// Header lines, as name and value.
    pub(super) type Lines<'a> = [(&'static str, &'a str)];

    pub(super) fn fields(lines: &Lines<'_>) -> HeaderMap {
        lines
            .iter()
            .map(|&(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).expect("a field value"),
                )
            })
            .collect()
    }

    /// Several lines of one field, of any bytes a field may hold.
    pub(super) fn any_lines(name: &HeaderName) -> impl Strategy<Value = HeaderMap> + use<> {
        let name = name.clone();
        let value =
            prop::collection::vec(any::<u8>(), 0..40).prop_filter_map("no field value", |bytes| {
                let bytes: Vec<u8> = bytes
                    .into_iter()
                    .filter(|&byte| byte >= b' ' && byte != 127)
                    .collect();
                HeaderValue::from_bytes(&bytes).ok()
            });
        prop::collection::vec(value, 0..4).prop_map(move |values| {
            values
                .into_iter()
                .map(|value| (name.clone(), value))
                .collect()
        })
    }

    /// One way among many to spell `text`: each letter in either case.
    pub(super) fn in_any_case(text: &str, uppercase: &[bool]) -> String {
        text.chars()
            .zip(uppercase.iter().cycle())
            .map(|(letter, upper)| {
                if *upper {
                    letter.to_ascii_uppercase()
                } else {
                    letter.to_ascii_lowercase()
                }
            })
            .collect()
    }

    // RFC 9111 4.2.1 and 5.3.
    #[test]
    fn the_lifetime_is_the_one_the_upstream_states() {
        let date = ("date", "Thu, 01 Jan 2026 00:00:00 GMT");
        let minute_later = ("expires", "Thu, 01 Jan 2026 00:01:00 GMT");
        let minute_earlier = ("expires", "Wed, 31 Dec 2025 23:59:00 GMT");
        let table: &[(&Lines, Option<u64>)] = &[
            (&[], None),
            (&[date], None),
            (
                &[("cache-control", "max-age=5, s-maxage=7"), minute_later],
                Some(7),
            ),
            (&[("cache-control", "max-age=5"), minute_earlier], Some(5)),
            (&[("cache-control", "max-age=5"), ("expires", "0")], Some(5)),
            (&[("cache-control", "max-age=0"), minute_later], Some(0)),
            (&[("cache-control", "s-maxage=x, max-age=5")], Some(0)),
            (&[date, minute_later], Some(60)),
            (&[date, minute_earlier], Some(0)),
            (&[minute_later], Some(70)),
            (&[("date", "yesterday"), minute_later], Some(70)),
            (&[date, ("expires", "0")], Some(0)),
            (&[date, ("expires", "")], Some(0)),
            (&[date, minute_later, ("expires", "0")], Some(0)),
            (&[date, minute_later, minute_earlier], Some(60)),
            (
                &[date, ("expires", "Fri, 01 Jan 2286 00:00:00 GMT")],
                Some(8_204_803_200),
            ),
        ];
        for (lines, expected) in table {
            let headers = fields(lines);
            let lifetime =
                explicit_lifetime(&ResponseDirectives::parse(&headers), &headers, NOW - 10);
            assert_eq!(lifetime, expected.map(Duration::from_secs), "{lines:?}");
        }
    }

    // RFC 9110 12.5.5, RFC 9111 4.1.
    #[test]
    fn a_star_anywhere_in_vary_is_a_star() {
        let table: &[(&[&str], Vary)] = &[
            (&[], Vary::None),
            (&["", " , "], Vary::None),
            (&["Accept"], Vary::Names),
            (&["*"], Vary::Star),
            (&["*, *"], Vary::Star),
            (&[", *"], Vary::Star),
            (&["", "*"], Vary::Star),
            (&["Accept", "Origin ,\t*"], Vary::Star),
            (&["*a"], Vary::Names),
        ];
        for (lines, expected) in table {
            let lines: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
            assert_eq!(vary(&fields(&lines)), *expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn no_freshness_field_panics(expires in any_lines(&EXPIRES), date in any_lines(&DATE), received: i64) {
            let mut headers = expires;
            headers.extend(date);
            explicit_lifetime(&ResponseDirectives::default(), &headers, received);
            corrected_initial_age(&headers, received, Duration::MAX);
        }

        #[test]
        fn no_vary_panics(headers in any_lines(&VARY)) {
            vary(&headers);
        }
    }
}
