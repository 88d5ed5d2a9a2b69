use http::{HeaderName, HeaderValue};

use super::super::*;

/// 2026-01-01T00:00:00Z.
const NOW: i64 = 1_767_225_600;
const CONFIGURED: Lifetimes = Lifetimes {
    ttl: Duration::ZERO,
    stale_while_revalidate: Duration::ZERO,
    stale_if_error: Duration::from_secs(3600),
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
            freshness.stand_in(None, start + seconds(10)),
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
        ("max-age=100, max-stale=60", Verdict::Hit { ttl: -9 }),
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
