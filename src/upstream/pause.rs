//! What an answer's header says of calls: how many there are, and how long to make none. The one place that reads it.
//!
//! Times are taken against the answer's own `Date`, so that neither clock has to be right.

use std::time::{Duration, UNIX_EPOCH};

use http::{
    HeaderMap, HeaderName,
    header::{AGE, DATE, RETRY_AFTER},
};

use super::Head;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// A reset from here on is a time in Unix seconds (it is in 2001), below it a number of seconds to wait.
const FIRST_UNIX_SECOND: u64 = 1_000_000_000;
/// From here on it is a time in Unix milliseconds (1973; as seconds it would be beyond the year 5000).
const FIRST_UNIX_MILLISECOND: u64 = 100_000_000_000;
/// A reset that is further away says nothing of a limit per minute.
const FURTHEST_RESET: Duration = Duration::from_secs(86_400);

/// What a header says of calls, as far as it can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallLimits {
    /// Calls a minute.
    pub limit: Option<u32>,
    /// How many of them are left.
    pub remaining: Option<u32>,
    /// When there are all again.
    pub reset_in: Option<Duration>,
    /// Zero where it names a time that has passed.
    pub retry_after: Option<Duration>,
    /// Whether `Retry-After` is there at all, readable or not.
    pub asks_to_wait: bool,
}

impl CallLimits {
    #[must_use]
    pub fn read(head: &Head) -> Self {
        let headers = &head.headers;
        let now = date_of(head).unwrap_or(head.received_unix);
        Self {
            limit: count(headers, &LIMIT),
            remaining: count(headers, &REMAINING),
            reset_in: text(headers, &RESET).and_then(|text| reset_in(text, now)),
            retry_after: text(headers, &RETRY_AFTER).and_then(|text| retry_after(text, now)),
            asks_to_wait: headers.contains_key(RETRY_AFTER),
        }
    }

    /// How long to make no call; `None` where it names no time, or one that has passed.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        [self.retry_after, self.reset_in]
            .into_iter()
            .flatten()
            .find(|pause| !pause.is_zero())
    }

    /// Whether no call is left.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.remaining == Some(0)
    }
}

/// By how many seconds the upstream's clock is ahead of ours; negative where it is behind. `None`: it does not tell.
#[must_use]
pub(super) fn clock_skew(head: &Head) -> Option<i64> {
    // A stored answer tells when it was made, not what time it is.
    if head.headers.contains_key(AGE) {
        return None;
    }
    let date = date_of(head)?;
    // Made at any moment between the request and now, and whole seconds each.
    let sent = head.received_unix - i64::try_from(head.response_delay.as_secs()).unwrap_or(0) - 1;
    let nearest = date.clamp(sent, head.received_unix + 1);
    Some(date.saturating_sub(nearest))
}

fn date_of(head: &Head) -> Option<i64> {
    http_date(text(&head.headers, &DATE)?)
}

fn http_date(text: &str) -> Option<i64> {
    let date = httpdate::parse_http_date(text).ok()?;
    let since = date.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    Some(headers.get(name)?.to_str().ok()?.trim())
}

fn count(headers: &HeaderMap, name: &HeaderName) -> Option<u32> {
    text(headers, name)?.parse().ok()
}

/// `Retry-After` in seconds or as a date (RFC 9110 section 10.2.3).
fn retry_after(text: &str, now_unix: i64) -> Option<Duration> {
    match digits(text) {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => Some(until(http_date(text)?, now_unix)),
    }
}

/// `X-RateLimit-Reset`, which no standard defines: seconds to wait, Unix seconds or Unix milliseconds, told apart by their size; with a
/// fraction where a server prints a float; or a date.
fn reset_in(text: &str, now_unix: i64) -> Option<Duration> {
    let whole = match text.split_once('.') {
        Some((whole, fraction)) => digits(fraction).and(digits(whole)),
        None => digits(text),
    };
    let reset = match whole {
        None => until(http_date(text)?, now_unix),
        Some(seconds @ ..FIRST_UNIX_SECOND) => Duration::from_secs(seconds),
        Some(unix @ ..FIRST_UNIX_MILLISECOND) => until(signed(unix), now_unix),
        Some(millis) => until(signed(millis.div_ceil(1000)), now_unix),
    };
    (reset <= FURTHEST_RESET).then_some(reset)
}

/// A number of nothing but digits; the largest there is where it is larger.
fn digits(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

fn until(unix: i64, now_unix: i64) -> Duration {
    Duration::from_secs(unix.saturating_sub(now_unix).try_into().unwrap_or(0))
}

fn signed(unix: u64) -> i64 {
    i64::try_from(unix).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;

    /// Fri, 01 Jan 2027 00:00:00 GMT, when every answer here is received.
    const NOW: i64 = 1_798_761_600;

    fn head(fields: &[(&'static str, &str)]) -> Head {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        Head {
            headers,
            received: Instant::now(),
            received_unix: NOW,
            response_delay: Duration::ZERO,
        }
    }

    fn read(fields: &[(&'static str, &str)]) -> CallLimits {
        CallLimits::read(&head(fields))
    }

    // RFC 9110 section 10.2.3.
    #[test]
    fn retry_after_is_seconds_or_a_date() {
        for (text, seconds) in [
            ("0", Some(0)),
            ("17", Some(17)),
            (" 17 ", Some(17)),
            ("00017", Some(17)),
            ("Fri, 01 Jan 2027 00:00:30 GMT", Some(30)),
            ("Friday, 01-Jan-27 00:01:00 GMT", Some(60)),
            ("Fri Jan  1 00:02:00 2027", Some(120)),
            ("Thu, 31 Dec 2026 23:59:00 GMT", Some(0)),
            ("99999999999", Some(99_999_999_999)),
            ("99999999999999999999999999", Some(u64::MAX)),
            // Never Unix time: in `Retry-After` a number is a number of seconds.
            ("1798761630", Some(1_798_761_630)),
            ("", None),
            ("+17", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("17, 18", None),
            ("2027-01-01T00:00:30Z", None),
        ] {
            let limits = read(&[("retry-after", text)]);
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(limits.retry_after, expected, "{text:?}");
            assert!(limits.asks_to_wait, "{text:?}");
        }
        assert_eq!(read(&[]), CallLimits::default());
    }

    #[test]
    fn a_reset_is_read_by_its_size() {
        for (text, seconds) in [
            // Seconds to wait.
            ("0", Some(0)),
            ("1", Some(1)),
            ("30", Some(30)),
            (" 30 ", Some(30)),
            ("30.5", Some(30)),
            ("3600", Some(3600)),
            ("86400", Some(86_400)),
            // Unix seconds.
            ("1798761630", Some(30)),
            ("1798761630.25", Some(30)),
            ("1798761600", Some(0)),
            ("1798761540", Some(0)),
            // Unix milliseconds.
            ("1798761630000", Some(30)),
            ("1798761629001", Some(30)),
            ("1798761540000", Some(0)),
            // A date.
            ("Fri, 01 Jan 2027 00:00:30 GMT", Some(30)),
            // Too far away to mean what it says.
            ("86401", None),
            ("999999999", None),
            ("1898761630", None),
            ("99999999999", None),
            ("99999999999999999999999999", None),
            ("-30", None),
            ("+30", None),
            ("", None),
            (".5", None),
            ("30.", None),
            ("30s", None),
            ("soon", None),
        ] {
            let limits = read(&[("x-ratelimit-reset", text)]);
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(limits.reset_in, expected, "{text:?}");
        }
    }

    #[test]
    fn times_count_from_the_answers_own_date() {
        for (date, expected) in [
            ("Fri, 01 Jan 2027 00:00:00 GMT", 90),
            ("Fri, 01 Jan 2027 00:01:00 GMT", 30),
            ("Thu, 31 Dec 2026 23:59:00 GMT", 150),
            ("Fri, 01 Jan 2027 00:05:00 GMT", 0),
            // What is no date says nothing.
            ("yesterday", 90),
            ("", 90),
        ] {
            let expected = Duration::from_secs(expected);
            for (name, text) in [
                ("retry-after", "Fri, 01 Jan 2027 00:01:30 GMT"),
                ("x-ratelimit-reset", "1798761690"),
                ("x-ratelimit-reset", "1798761690000"),
            ] {
                let limits = read(&[("date", date), (name, text)]);
                let told = limits.retry_after.or(limits.reset_in);
                assert_eq!(told, Some(expected), "{date:?} {name}: {text}");
            }
            let limits = read(&[("date", date), ("retry-after", "7")]);
            assert_eq!(limits.pause(), Some(Duration::from_secs(7)), "{date:?}");
        }
    }

    #[test]
    fn a_pause_is_the_first_time_that_has_not_passed() {
        let past = "Thu, 31 Dec 2026 23:59:00 GMT";
        for (retry_after, reset, expected) in [
            (Some("7"), Some("30"), Some(7)),
            (Some("7"), None, Some(7)),
            (None, Some("30"), Some(30)),
            (Some("0"), Some("30"), Some(30)),
            (Some(past), Some("1798761630"), Some(30)),
            (Some("soon"), Some("30"), Some(30)),
            (Some("0"), Some("0"), None),
            (Some(past), None, None),
            (Some("-5"), Some("-5"), None),
            (None, Some("1798761540"), None),
            (None, None, None),
        ] {
            let retry_after = retry_after.map(|text| ("retry-after", text));
            let reset = reset.map(|text| ("x-ratelimit-reset", text));
            let fields: Vec<_> = retry_after.into_iter().chain(reset).collect();
            let expected = expected.map(Duration::from_secs);
            assert_eq!(read(&fields).pause(), expected, "{fields:?}");
        }
    }

    #[test]
    fn counts_are_numbers_or_nothing() {
        for (text, expected) in [
            ("60", Some(60)),
            (" 5 ", Some(5)),
            ("0", Some(0)),
            ("-1", None),
            ("60, 60;w=60", None),
            ("99999999999", None),
            ("", None),
        ] {
            let limits = read(&[("x-ratelimit-limit", text), ("x-ratelimit-remaining", text)]);
            assert_eq!((limits.limit, limits.remaining), (expected, expected));
            assert_eq!(limits.is_spent(), expected == Some(0));
        }
    }

    #[test]
    fn the_skew_is_what_the_way_of_the_answer_does_not_explain() {
        let ahead = "Fri, 01 Jan 2027 00:02:00 GMT";
        let behind = "Thu, 31 Dec 2026 23:58:00 GMT";
        for (date, age, delay, expected) in [
            (Some("Fri, 01 Jan 2027 00:00:00 GMT"), None, 0, Some(0)),
            (Some("Thu, 31 Dec 2026 23:59:59 GMT"), None, 0, Some(0)),
            (Some("Thu, 31 Dec 2026 23:59:52 GMT"), None, 8, Some(0)),
            (Some("Fri, 01 Jan 2027 00:00:01 GMT"), None, 0, Some(0)),
            (Some(ahead), None, 0, Some(119)),
            (Some(behind), None, 0, Some(-119)),
            (Some(behind), None, 10, Some(-109)),
            (Some(behind), Some("110"), 0, None),
            (Some("yesterday"), None, 0, None),
            (None, None, 0, None),
        ] {
            let date = date.map(|date| ("date", date));
            let age = age.map(|age| ("age", age));
            let fields: Vec<_> = date.into_iter().chain(age).collect();
            let head = Head {
                response_delay: Duration::from_secs(delay),
                ..head(&fields)
            };
            assert_eq!(clock_skew(&head), expected, "{fields:?} after {delay} s");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 4),
            received_unix: i64,
        ) {
            let names = [DATE, RETRY_AFTER, RESET, LIMIT];
            let fields = names.into_iter().zip(values);
            let headers: HeaderMap = fields
                .filter_map(|(name, value)| Some((name, HeaderValue::from_bytes(&value).ok()?)))
                .collect();
            let head = Head { headers, received_unix, ..head(&[]) };
            let _ = (CallLimits::read(&head).pause(), clock_skew(&head));
        }
    }
}
