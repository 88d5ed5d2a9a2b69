//! How old an answer was when it arrived (RFC 9111 4.2.3 and 5.1).

use std::time::Duration;

use http::{
    HeaderMap,
    header::{AGE, DATE},
};

use super::{cache_control::Seconds, date::date_field, seconds_between};

/// Returns the `Age` an upstream states; `None` also if what it states is no number.
pub fn parse_age(headers: &HeaderMap) -> Option<Duration> {
    // RFC 9111 5.1: of several lines or members the first counts, and an invalid field is ignored.
    let first = headers
        .get(AGE)?
        .as_bytes()
        .split(|&byte| byte == b',')
        .next()?;
    Seconds::from_digits(first.trim_ascii()).map(Duration::from)
}

/// Returns the age of an answer at the moment it was received (RFC 9111 4.2.3, `corrected_initial_age`).
pub fn corrected_initial_age(
    headers: &HeaderMap,
    received_unix: i64,
    response_delay: Duration,
) -> Duration {
    let sent = date_field(headers, &DATE, received_unix).unwrap_or(received_unix);
    let apparent_age = seconds_between(sent, received_unix);
    let corrected_age = parse_age(headers)
        .unwrap_or_default()
        .saturating_add(response_delay);
    apparent_age.max(corrected_age)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{Lines, NOW, any_lines, fields},
        *,
    };

    // RFC 9111 5.1 and 1.2.2.
    #[test]
    fn the_first_age_counts_if_it_is_a_number() {
        let largest = Some(Seconds::MAX.0);
        let table: &[(&[&str], Option<u64>)] = &[
            (&[], None),
            (&["0"], Some(0)),
            (&["0060"], Some(60)),
            (&["60, 0"], Some(60)),
            (&["0 , 60"], Some(0)),
            (&["60", "0"], Some(60)),
            (&["x", "60"], None),
            (&["", "60"], None),
            (&["old"], None),
            (&["-60"], None),
            (&["+60"], None),
            (&["60.0"], None),
            (&["\"60\""], None),
            (&["60;x=1"], None),
            (&["2147483648"], Some(2_147_483_648)),
            (&["99999999999999999999999"], largest),
        ];
        for (lines, expected) in table {
            let lines: Vec<_> = lines.iter().map(|line| ("age", *line)).collect();
            assert_eq!(
                parse_age(&fields(&lines)),
                expected.map(Duration::from_secs),
                "{lines:?}"
            );
        }
    }

    // RFC 9111 4.2.3.
    #[test]
    fn the_initial_age_is_the_larger_of_the_two_estimates() {
        let date = ("date", "Thu, 01 Jan 2026 00:00:00 GMT");
        let table: &[(&Lines, i64, u64)] = &[
            (&[date], NOW + 30, 30),
            (&[date, ("age", "10")], NOW + 30, 30),
            (&[date, ("age", "40")], NOW + 30, 42),
            (&[date, ("age", "x")], NOW, 2),
            (&[date], NOW - 30, 2),
            (&[("date", "x"), ("age", "10")], NOW + 30, 12),
            (&[], NOW, 2),
        ];
        for &(lines, received, expected) in table {
            let age = corrected_initial_age(&fields(lines), received, Duration::from_secs(2));
            assert_eq!(age, Duration::from_secs(expected), "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn no_age_panics(headers in any_lines(&AGE)) {
            parse_age(&headers);
        }
    }
}
