//! HTTP-date in its three encodings (RFC 9110 5.6.7), and nothing that merely resembles one.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderName};

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const SHORT_DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const LONG_DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const SECONDS_A_DAY: i64 = 86_400;
const SECONDS_A_YEAR: i64 = 31_556_952;
/// 9999-12-31T23:59:59Z, the last second four digits of a year can name.
const LAST_SECOND: i64 = 253_402_300_799;

/// Returns the Unix time an HTTP-date names. The weekday must be one, but need not be the right one.
///
/// `now_unix` settles the century of the two-digit years of RFC 850.
pub fn parse_http_date(value: &[u8], now_unix: i64) -> Option<i64> {
    imf_fixdate(Cursor(value))
        .or_else(|| rfc850_date(Cursor(value), now_unix))
        .or_else(|| asctime_date(Cursor(value)))
}

/// Returns the date in the first line of a field, `None` if it is absent or invalid.
pub fn date_field(headers: &HeaderMap, name: &HeaderName, now_unix: i64) -> Option<i64> {
    parse_http_date(headers.get(name)?.as_bytes().trim_ascii(), now_unix)
}

/// Returns `unix` as an IMF-fixdate, moved into the years 1970 to 9999 if it lies outside.
pub fn fmt_http_date(unix: i64) -> String {
    let seconds = unix.clamp(0, LAST_SECOND).unsigned_abs();
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(mut text: Cursor<'_>) -> Option<i64> {
    text.name(&SHORT_DAYS)?;
    text.literal(", ")?;
    let day = text.digits(2)?;
    text.literal(" ")?;
    let month = text.name(&MONTHS)?;
    text.literal(" ")?;
    let year = text.digits(4)?;
    text.literal(" ")?;
    let time = text.time_of_day()?;
    text.literal(" GMT")?;
    text.end()?;
    unix_time(year, month, day, time)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850_date(mut text: Cursor<'_>, now_unix: i64) -> Option<i64> {
    text.name(&LONG_DAYS)?;
    text.literal(", ")?;
    let day = text.digits(2)?;
    text.literal("-")?;
    let month = text.name(&MONTHS)?;
    text.literal("-")?;
    let year_in_century = text.digits(2)?;
    text.literal(" ")?;
    let time = text.time_of_day()?;
    text.literal(" GMT")?;
    text.end()?;

    let now = now_unix.clamp(0, LAST_SECOND);
    // RFC 9110 5.6.7: what seems over 50 years ahead is the latest past year that ends in these digits.
    let latest = now + 50 * SECONDS_A_YEAR;
    let century = (1970 + now / SECONDS_A_YEAR) / 100 * 100;
    [century + 100, century, century - 100]
        .into_iter()
        .map(|century| century + year_in_century)
        .find(|&year| days_from_epoch(year, month, day) * SECONDS_A_DAY + time <= latest)
        .and_then(|year| unix_time(year, month, day, time))
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime_date(mut text: Cursor<'_>) -> Option<i64> {
    text.name(&SHORT_DAYS)?;
    text.literal(" ")?;
    let month = text.name(&MONTHS)?;
    text.literal(" ")?;
    let day = match text.literal(" ") {
        Some(()) => text.digits(1)?,
        None => text.digits(2)?,
    };
    text.literal(" ")?;
    let time = text.time_of_day()?;
    text.literal(" ")?;
    let year = text.digits(4)?;
    text.end()?;
    unix_time(year, month, day, time)
}

fn unix_time(year: i64, month: i64, day: i64, time: i64) -> Option<i64> {
    let first_of_month = days_from_epoch(year, month, 1);
    let days_in_month = match month {
        12 => 31,
        _ => days_from_epoch(year, month + 1, 1) - first_of_month,
    };
    (1..=days_in_month)
        .contains(&day)
        .then_some((first_of_month + day - 1) * SECONDS_A_DAY + time)
}

/// Counts days from 1970-01-01 in the Gregorian calendar, years beginning in March so that a leap day comes last
/// (howardhinnant.github.io/date_algorithms.html, `days_from_civil`).
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// What is left to read of a date. Each step consumes what it names or fails; letters match in any case.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn literal(&mut self, expected: &str) -> Option<()> {
        let (found, rest) = self.0.split_at_checked(expected.len())?;
        found
            .eq_ignore_ascii_case(expected.as_bytes())
            .then(|| self.0 = rest)
    }

    /// Reads one of `names` and returns its place, counted from 1.
    fn name(&mut self, names: &[&str]) -> Option<i64> {
        (1..)
            .zip(names)
            .find_map(|(place, name)| self.literal(name).map(|()| place))
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        let (found, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        found.iter().try_fold(0, |number, byte| {
            byte.is_ascii_digit()
                .then(|| number * 10 + i64::from(byte - b'0'))
        })
    }

    /// Reads `hh:mm:ss` as seconds since midnight; the leap second counts as the next minute's first.
    fn time_of_day(&mut self) -> Option<i64> {
        let hour = self.digits(2)?;
        self.literal(":")?;
        let minute = self.digits(2)?;
        self.literal(":")?;
        let second = self.digits(2)?;
        (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{NOW, in_any_case},
        *,
    };

    // RFC 9110 5.6.7.
    #[test]
    fn each_of_the_three_forms_is_read() {
        let table = [
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
            ("Sun Nov  6 08:49:37 1994", 784_111_777),
            ("Sun Nov 06 08:49:37 1994", 784_111_777),
            ("sUN, 06 NOV 1994 08:49:37 gmt", 784_111_777),
            ("SUNDAY, 06-nov-94 08:49:37 Gmt", 784_111_777),
            ("Mon, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Wed, 31 Dec 1969 23:59:59 GMT", -1),
            ("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_800),
            ("Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_800),
            ("Tue, 19 Jan 2038 03:14:08 GMT", 1 << 31),
            ("Fri, 31 Dec 9999 23:59:59 GMT", LAST_SECOND),
        ];
        for (text, expected) in table {
            assert_eq!(
                parse_http_date(text.as_bytes(), NOW),
                Some(expected),
                "{text}"
            );
        }
    }

    // RFC 9110 5.6.7: recipients need not be lenient, and a lenient cache takes a past date for a future one.
    #[test]
    fn whatever_resembles_a_date_is_refused() {
        let table = [
            "",
            "0",
            "784111777",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun,06 Nov 1994 08:49:37 GMT",
            "Sun,  06  Nov 1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT ",
            " Sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 November 1994 08:49:37 GMT",
            "Xyz, 06 Nov 1994 08:49:37 GMT",
            "06 Nov 1994 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 32 Dec 1994 08:49:37 GMT",
            "Wed, 29 Feb 2023 00:00:00 GMT",
            "Mon, 29 Feb 2100 00:00:00 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:60:00 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Sun, 06 Nov +994 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
            "Sun Nov  6 08:49:37 94",
            "Sun Nov  6 08:49:37 1994 GMT",
            "1994-11-06T08:49:37Z",
        ];
        for text in table {
            assert_eq!(parse_http_date(text.as_bytes(), NOW), None, "{text}");
        }
    }

    // RFC 9110 5.6.7, the 50-year rule.
    #[test]
    fn a_two_digit_year_is_never_over_fifty_years_ahead() {
        let in_2090 = NOW + 64 * SECONDS_A_YEAR;
        let table = [
            (
                "Wednesday, 01-Jan-75 00:00:00 GMT",
                NOW,
                "Tue, 01 Jan 2075 00:00:00 GMT",
            ),
            (
                "Saturday, 01-Jan-77 00:00:00 GMT",
                NOW,
                "Sat, 01 Jan 1977 00:00:00 GMT",
            ),
            (
                "Saturday, 01-Jan-00 00:00:00 GMT",
                NOW,
                "Sat, 01 Jan 2000 00:00:00 GMT",
            ),
            (
                "Wednesday, 01-Jan-10 00:00:00 GMT",
                in_2090,
                "Wed, 01 Jan 2110 00:00:00 GMT",
            ),
        ];
        for (text, now, expected) in table {
            let unix = parse_http_date(text.as_bytes(), now);
            assert_eq!(unix, parse_http_date(expected.as_bytes(), now), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_written_date_reads_the_same(unix in 0..=LAST_SECOND, uppercase: [bool; 5]) {
            let written = fmt_http_date(unix);
            prop_assert_eq!(parse_http_date(written.as_bytes(), NOW), Some(unix));
            prop_assert_eq!(parse_http_date(in_any_case(&written, &uppercase).as_bytes(), NOW), Some(unix));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, now: i64) {
            parse_http_date(&bytes, now);
        }

        #[test]
        fn no_time_panics(unix: i64) {
            fmt_http_date(unix);
        }

        #[test]
        fn no_clock_panics(now: i64, year in 0..100) {
            let text = format!("Sunday, 06-Nov-{year:02} 08:49:37 GMT");
            prop_assert!(parse_http_date(text.as_bytes(), now).is_some());
        }
    }
}
