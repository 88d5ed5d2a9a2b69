use http::{HeaderName, HeaderValue};

use super::super::*;
use crate::cache::{http_semantics::RequestDirectives, status::Detail};

/// 2026-01-01T00:00:00Z.
const NOW: i64 = 1_767_225_600;
const CONFIGURED: Lifetimes = Lifetimes {
    ttl: Duration::ZERO,
    ttl_min: Duration::ZERO,
    stale_while_revalidate: Duration::ZERO,
    stale_if_error: Duration::from_secs(3600),
    stale_if_quota: Duration::from_secs(3600),
    obey_upstream: true,
};

type Lines = [(&'static str, &'static str)];

fn fields(lines: &Lines) -> HeaderMap {
    lines
        .iter()
        .map(|&(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect()
}

fn received(headers: &HeaderMap, received: Instant) -> Received<'_> {
    Received {
        headers,
        received,
        received_unix: NOW,
        response_delay: Duration::ZERO,
    }
}

fn request(line: &'static str) -> RequestDirectives {
    RequestDirectives::parse(&fields(&[("cache-control", line)]))
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// RFC 9111 4.1 and 4.2.4.
#[test]
fn what_is_validated_on_each_use_stands_in_for_no_error() {
    let table = [
        ("max-age=1", "accept", Some(-9)),
        ("max-age=1", "*", None),
        ("max-age=1", "accept, *", None),
        ("max-age=60", "*", None),
        ("max-age=1, no-cache", "accept", None),
        ("max-age=1, must-revalidate", "accept", None),
        ("s-maxage=1", "accept", None),
    ];
    for (cache_control, vary, expected) in table {
        let headers = fields(&[("cache-control", cache_control), ("vary", vary)]);
        let start = Instant::now();
        let freshness = Freshness::new(&received(&headers, start), &CONFIGURED, 1.0);
        assert_eq!(
            freshness.stale_if(StaleIf::Error, None, start + seconds(10)),
            expected,
            "{cache_control}; {vary}"
        );
    }
}

// RFC 9111 3, 4.1 and 4.2.
#[test]
fn a_refusal_is_remembered_as_long_as_its_answer_allows() {
    let table: &[(&Lines, Option<u64>)] = &[
        (&[], Some(5)),
        (&[("cache-control", "max-age=60")], Some(60)),
        (&[("cache-control", "max-age=60"), ("age", "20")], Some(40)),
        (&[("cache-control", "max-age=60"), ("age", "60")], None),
        (&[("cache-control", "max-age=0")], None),
        (&[("cache-control", "max-age=60, no-store")], None),
        (&[("cache-control", "max-age=60, private")], None),
        (&[("cache-control", "max-age=60, no-cache")], None),
        (&[("cache-control", "max-age=60"), ("vary", "*")], None),
        (&[("vary", "*")], None),
        (&[("vary", "accept-language")], Some(5)),
    ];
    for (lines, expected) in table {
        let headers = fields(lines);
        let answer = received(&headers, Instant::now());
        assert_eq!(
            refusal_lifetime(Some(&answer), &CONFIGURED, seconds(5)),
            expected.map(seconds),
            "{lines:?}"
        );
    }
}

// RFC 9111 5.2.1.1, 5.2.1.3 and 5.2.1.4.
#[test]
fn a_request_bounds_which_remembered_refusal_answers_it() {
    let table = [
        ("x", true),
        ("no-cache", false),
        ("max-age=0", false),
        ("max-age=9", false),
        ("max-age=10", true),
        ("min-fresh=30", true),
        ("min-fresh=31", false),
        ("no-store", true),
        ("only-if-cached", true),
    ];
    for (line, expected) in table {
        assert_eq!(
            refusal_answers(seconds(10), seconds(30), &request(line)),
            expected,
            "{line}"
        );
    }
}

// RFC 9111 5.2.1.1, RFC 5861 3.
#[test]
fn a_request_with_max_age_takes_stale_by_its_max_stale_only() {
    let headers = fields(&[("cache-control", "max-age=1, stale-while-revalidate=60")]);
    let start = Instant::now();
    let freshness = Freshness::new(&received(&headers, start), &CONFIGURED, 1.0);
    let candidate = Candidate {
        freshness: &freshness,
        moved_at: None,
        only_fresh: false,
    };
    let table = [
        ("x", Verdict::HitWhileRevalidate { ttl: -9 }),
        ("max-age=100", Verdict::Fill(FillReason::Stale)),
        ("max-age=5", Verdict::Fill(FillReason::Request)),
        (
            "max-age=100, max-stale=60",
            Verdict::Hit {
                ttl: -9,
                detail: Some(Detail::MaxStale),
            },
        ),
        ("max-age=100, only-if-cached", Verdict::NotCached),
    ];
    for (line, expected) in table {
        assert_eq!(
            judge(Some(candidate), &request(line), start + seconds(10)),
            expected,
            "{line}"
        );
    }
}

// RFC 9111 5.2.1.2: how much staleness a client takes is bounded by how much anybody is shown.
#[test]
fn max_stale_takes_nothing_beyond_stale_if_error() {
    let hour = 3600;
    // (what the upstream says, `cache.stale_if_error`, what the client asks, for how long a page is shown after its freshness)
    let table: &[(&str, u64, &str, u64)] = &[
        ("", hour, "max-stale", 3599),
        ("", hour, "max-stale=60", 60),
        ("", hour, "max-stale=3599", 3599),
        ("", hour, "max-stale=3600", 3599),
        ("", hour, "max-stale=99999999999", 3599),
        ("", hour, "max-stale=\"60\"", 60),
        ("", 1, "max-stale", 0),
        ("max-age=10", hour, "max-stale", 3599),
        ("max-age=10, stale-if-error=5", hour, "max-stale", 4),
        ("max-age=10, stale-if-error=86400", hour, "max-stale", 3599),
        ("stale-if-error=86400", 60, "max-stale=600", 59),
        ("stale-if-error=5", hour, "only-if-cached, max-stale", 4),
    ];
    for &(said, stale_if_error, asked, last) in table {
        let shown = |stale_for| is_shown(said, stale_if_error, asked, stale_for);
        assert!(shown(0) && shown(last), "{said:?}, {asked:?}");
        for after in [last + 1, last + 2, 86_400, 86_400 * 30] {
            assert!(!shown(after), "{said:?}, {asked:?}, {after} s");
        }
    }
    let never: &[(&str, u64, &str)] = &[
        ("", 0, "max-stale"),
        ("", 0, "max-stale=60"),
        ("stale-if-error=60", 0, "max-stale"),
        ("stale-if-error=0", hour, "max-stale"),
        ("stale-if-error=x", hour, "max-stale"),
        ("must-revalidate", hour, "max-stale"),
        ("proxy-revalidate, stale-if-error=60", hour, "max-stale"),
        ("s-maxage=10, stale-if-error=60", hour, "max-stale"),
        ("no-cache", hour, "max-stale"),
        ("", hour, "max-stale=x"),
        ("", hour, "max-stale=-1"),
        ("", hour, "max-stale="),
        ("", hour, "max-stale, min-fresh=1"),
        ("", hour, "max-stale, no-cache"),
    ];
    for &(said, stale_if_error, asked) in never {
        for stale_for in [0, 1, 59, 86_400] {
            let shown = is_shown(said, stale_if_error, asked, stale_for);
            assert!(!shown, "{said:?}, {asked:?}, {stale_for} s");
        }
    }
}

/// Whether a client that asks so is shown a page that has not been fresh for so many seconds, without asking the upstream.
fn is_shown(said: &'static str, stale_if_error: u64, asked: &'static str, stale_for: u64) -> bool {
    let headers = fields(&[("cache-control", said)]);
    let lifetimes = Lifetimes {
        ttl: seconds(10),
        stale_if_error: seconds(stale_if_error),
        ..CONFIGURED
    };
    let start = Instant::now();
    let freshness = Freshness::new(&received(&headers, start), &lifetimes, 1.0);
    let candidate = Candidate {
        freshness: &freshness,
        moved_at: None,
        only_fresh: false,
    };
    let end = start + freshness.lifetime();
    let verdict = judge(Some(candidate), &request(asked), end + seconds(stale_for));
    match verdict {
        Verdict::Hit { detail, .. } => {
            assert_eq!(detail, Some(Detail::MaxStale), "it is told");
            true
        }
        Verdict::HitWhileRevalidate { .. } | Verdict::Fill(_) | Verdict::NotCached => false,
    }
}
