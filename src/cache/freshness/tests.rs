use std::time::Duration;

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::cache::{http_semantics::RequestDirectives, status::Detail};

mod reuse;

/// Fri, 01 Jan 2027 00:00:00 GMT, when every answer here is received.
const NOW: i64 = 1_798_761_600;

const LIFETIMES: Lifetimes = Lifetimes {
    ttl: Duration::from_secs(30),
    ttl_min: Duration::from_secs(30),
    stale_while_revalidate: Duration::from_secs(60),
    stale_if_error: Duration::from_secs(3600),
    stale_if_quota: Duration::from_secs(24 * 3600),
    obey_upstream: true,
};

type Lines<'a> = [(&'static str, &'a str)];

fn fields(lines: &Lines<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let value = HeaderValue::from_str(value).unwrap();
        headers.append(HeaderName::from_static(name), value);
    }
    headers
}

fn cache_control(line: &str) -> HeaderMap {
    match line {
        "" => HeaderMap::new(),
        line => fields(&[("cache-control", line)]),
    }
}

fn asks(line: &str) -> RequestDirectives {
    RequestDirectives::parse(&cache_control(line))
}

fn received(headers: &HeaderMap, at: Instant) -> Received<'_> {
    Received {
        headers,
        received: at,
        received_unix: NOW,
        response_delay: Duration::ZERO,
    }
}

/// A page as received now, and a clock that starts then.
struct Page {
    freshness: Freshness,
    filled: Instant,
}

impl Page {
    fn with(lines: &Lines<'_>, lifetimes: &Lifetimes) -> Self {
        let filled = Instant::now();
        let headers = fields(lines);
        let freshness = Freshness::new(&received(&headers, filled), lifetimes, 1.0);
        Self { freshness, filled }
    }

    fn saying(line: &str) -> Self {
        match line {
            "" => Self::with(&[], &LIFETIMES),
            line => Self::with(&[("cache-control", line)], &LIFETIMES),
        }
    }

    fn after(&self, seconds: u64) -> Instant {
        self.filled + Duration::from_secs(seconds)
    }

    fn judged(&self, request: &str, seconds: u64) -> Verdict {
        judge(
            Some(Candidate {
                freshness: &self.freshness,
                moved_at: None,
                only_fresh: false,
            }),
            &asks(request),
            self.after(seconds),
        )
    }

    /// The first second at which a plain request is not answered fresh, looked for up to `limit`.
    fn fresh_for(&self, limit: u64) -> u64 {
        (0..limit)
            .find(|second| !matches!(self.judged("", *second), Verdict::Hit { .. }))
            .unwrap_or(limit)
    }

    fn stale_if_error(&self, seconds: u64) -> Option<i64> {
        let at = self.after(seconds);
        self.freshness.stale_if(StaleIf::Error, None, at)
    }

    fn stale_if_quota(&self, seconds: u64) -> Option<i64> {
        let at = self.after(seconds);
        self.freshness.stale_if(StaleIf::Quota, None, at)
    }
}

const fn hit(ttl: i64) -> Verdict {
    Verdict::Hit { ttl, detail: None }
}

const fn max_stale(ttl: i64) -> Verdict {
    let detail = Some(Detail::MaxStale);
    Verdict::Hit { ttl, detail }
}

const fn only_if_cached(ttl: i64) -> Verdict {
    let detail = Some(Detail::OnlyIfCached);
    Verdict::Hit { ttl, detail }
}

const fn refresh(ttl: i64) -> Verdict {
    Verdict::HitWhileRevalidate { ttl }
}

const MISS: Verdict = Verdict::Fill(FillReason::UriMiss);
const STALE: Verdict = Verdict::Fill(FillReason::Stale);
const REQUEST: Verdict = Verdict::Fill(FillReason::Request);
const BYPASS: Verdict = Verdict::Fill(FillReason::Bypass);
const NOT_CACHED: Verdict = Verdict::NotCached;

/// What happened to a page since it was filled.
#[derive(Clone, Copy, Debug)]
enum Since {
    /// Nothing is stored at all.
    Absent,
    /// Nothing.
    Kept,
    /// Its list moved in this second of its life.
    Moved(u64),
    /// Its credential is refused.
    Refused,
}
use Since::{Absent, Kept, Moved, Refused};

/// The cache's whole conduct. A configured lifetime is 30 s, then 60 s of `stale-while-revalidate`, then errors only.
#[test]
fn a_request_is_judged_by_the_pages_age_and_both_sides_words() {
    // (what the upstream said, what became of the page, its age in seconds, what the client asks, the verdict)
    let table: &[(&str, Since, u64, &str, Verdict)] = &[
        // Nothing stored: ask, unless the client wants nothing asked.
        ("", Absent, 0, "", MISS),
        ("", Absent, 0, "max-stale", MISS),
        ("", Absent, 0, "no-cache", MISS),
        ("", Absent, 0, "no-store", BYPASS),
        ("", Absent, 0, "only-if-cached", NOT_CACHED),
        ("", Absent, 0, "only-if-cached, no-store", NOT_CACHED),
        // The life of a page without a word of the upstream's: fresh, refreshed behind its back, gone but for errors.
        ("", Kept, 0, "", hit(30)),
        ("", Kept, 29, "", hit(1)),
        ("", Kept, 30, "", refresh(-1)),
        ("", Kept, 31, "", refresh(-1)),
        ("", Kept, 89, "", refresh(-59)),
        ("", Kept, 90, "", STALE),
        ("", Kept, 100_000, "", STALE),
        // A stated lifetime rules, shorter or longer, and brings no stale-while-revalidate it does not state.
        ("max-age=10", Kept, 9, "", hit(1)),
        ("max-age=10", Kept, 10, "", STALE),
        ("max-age=100", Kept, 99, "", hit(1)),
        ("s-maxage=100, max-age=1", Kept, 99, "", hit(1)),
        ("max-age=0", Kept, 0, "", STALE),
        (
            "max-age=10, stale-while-revalidate=5",
            Kept,
            10,
            "",
            refresh(-1),
        ),
        (
            "max-age=10, stale-while-revalidate=5",
            Kept,
            14,
            "",
            refresh(-4),
        ),
        ("max-age=10, stale-while-revalidate=5", Kept, 15, "", STALE),
        ("stale-while-revalidate=0", Kept, 30, "", STALE),
        // no-cache: asked each time. must-revalidate and its kin: never stale.
        ("no-cache", Kept, 0, "", STALE),
        ("no-cache, max-age=100", Kept, 0, "max-stale", STALE),
        ("must-revalidate", Kept, 29, "", hit(1)),
        ("must-revalidate", Kept, 30, "", STALE),
        ("must-revalidate", Kept, 30, "max-stale", STALE),
        ("max-age=10, proxy-revalidate", Kept, 10, "max-stale", STALE),
        (
            "s-maxage=10, stale-while-revalidate=60",
            Kept,
            11,
            "",
            STALE,
        ),
        // The client wants it younger.
        ("", Kept, 0, "no-cache", REQUEST),
        ("", Kept, 0, "max-age=0", REQUEST),
        ("", Kept, 10, "max-age=10", hit(20)),
        ("", Kept, 11, "max-age=10", REQUEST),
        ("", Kept, 40, "max-age=35", REQUEST),
        ("", Kept, 40, "max-age=50", STALE),
        ("", Kept, 20, "min-fresh=10", hit(10)),
        ("", Kept, 21, "min-fresh=10", REQUEST),
        ("", Kept, 40, "min-fresh=1", REQUEST),
        ("", Kept, 40, "min-fresh=1, max-stale", REQUEST),
        // The client takes it older: no call at all.
        ("", Kept, 40, "max-stale", max_stale(-10)),
        ("", Kept, 3629, "max-stale", max_stale(-3599)),
        ("", Kept, 3630, "max-stale", STALE),
        ("", Kept, 40, "max-stale=10", max_stale(-10)),
        ("", Kept, 41, "max-stale=10", refresh(-11)),
        ("", Kept, 100, "max-stale=10", STALE),
        ("", Kept, 40, "max-stale, max-age=35", REQUEST),
        // The client wants no call on its account, not even behind its back.
        ("", Kept, 10, "only-if-cached", hit(20)),
        ("", Kept, 40, "only-if-cached", only_if_cached(-10)),
        ("", Kept, 90, "only-if-cached", NOT_CACHED),
        ("", Kept, 90, "only-if-cached, max-stale", max_stale(-60)),
        ("", Kept, 4000, "only-if-cached, max-stale", NOT_CACHED),
        ("", Kept, 10, "only-if-cached, no-cache", NOT_CACHED),
        ("no-cache", Kept, 0, "only-if-cached", NOT_CACHED),
        // no-store speaks of storing, not of reuse.
        ("", Kept, 10, "no-store", hit(20)),
        ("", Kept, 100, "no-store", STALE),
        // The list moved: stale at once, whatever is left, and waited for.
        ("", Moved(10), 10, "", STALE),
        ("", Moved(10), 29, "", STALE),
        ("", Moved(10), 29, "max-stale", STALE),
        (
            "max-age=1000, stale-while-revalidate=1000",
            Moved(10),
            11,
            "",
            STALE,
        ),
        ("", Moved(10), 11, "only-if-cached", NOT_CACHED),
        ("", Moved(10), 11, "no-cache", REQUEST),
        // The credential is refused: fresh pages only.
        ("", Refused, 29, "", hit(1)),
        ("", Refused, 30, "", STALE),
        ("", Refused, 30, "max-stale", STALE),
        ("", Refused, 30, "only-if-cached", NOT_CACHED),
    ];
    for &(said, since, age, asked, expected) in table {
        let page = Page::saying(said);
        let (moved_at, only_fresh) = match since {
            Absent | Kept => (None, false),
            Moved(second) => (Some(page.after(second)), false),
            Refused => (None, true),
        };
        let candidate = Candidate {
            freshness: &page.freshness,
            moved_at,
            only_fresh,
        };
        let stored = (!matches!(since, Absent)).then_some(candidate);
        let verdict = judge(stored, &asks(asked), page.after(age));
        assert_eq!(
            verdict, expected,
            "upstream {said:?}, {since:?}, {age} s, client {asked:?}"
        );
    }
}

// RFC 9111 section 5.2.2: names in any case, unknown ones ignored, lines combined.
#[test]
fn directives_over_several_lines_combine() {
    let lines = [
        ("cache-control", "PUBLIC, X-Other=\"no-store\""),
        ("cache-control", "Max-Age=0010"),
    ];
    assert_eq!(Page::with(&lines, &LIFETIMES).fresh_for(100), 10);
}

// RFC 9111 sections 1.2.2 and 4.2.1.
#[test]
fn a_number_that_is_none_means_stale_and_a_huge_one_long() {
    for said in [
        "max-age=-1",
        "max-age='60'",
        "max-age=1.5",
        "max-age=x",
        "max-age",
        "s-maxage=x, max-age=60",
    ] {
        assert_eq!(Page::saying(said).judged("", 0), STALE, "{said}");
    }
    for said in ["max-age=4294967296", "max-age=99999999999999999999999999"] {
        let page = Page::saying(said);
        assert!(
            matches!(page.judged("", (1 << 31) - 1), Verdict::Hit { .. }),
            "{said}"
        );
    }
}

// RFC 9111 section 4.2.1: the order of what states a lifetime. No heuristic from Last-Modified (4.2.2).
#[test]
fn the_lifetime_is_the_first_that_is_stated() {
    const DATE: (&str, &str) = ("date", "Fri, 01 Jan 2027 00:00:00 GMT");
    const IN_20: (&str, &str) = ("expires", "Fri, 01 Jan 2027 00:00:20 GMT");
    const PAST: (&str, &str) = ("expires", "Thu, 31 Dec 2026 23:00:00 GMT");
    const INVALID: (&str, &str) = ("expires", "0");
    let table: &[(&Lines<'_>, u64)] = &[
        (
            &[("cache-control", "s-maxage=5, max-age=10"), IN_20, DATE],
            5,
        ),
        (&[("cache-control", "max-age=10"), IN_20, DATE], 10),
        (&[("cache-control", "max-age=10"), PAST, DATE], 10),
        (&[("cache-control", "max-age=10"), INVALID, DATE], 10),
        (&[IN_20, DATE], 20),
        (&[IN_20], 20),
        (&[IN_20, ("date", "now")], 20),
        (&[PAST, DATE], 0),
        (&[INVALID], 0),
        (
            &[("last-modified", "Fri, 01 Jan 2016 00:00:00 GMT"), DATE],
            90,
        ),
    ];
    for (lines, expected) in table {
        let page = Page::with(lines, &LIFETIMES);
        // Without a stated lifetime: 30 s fresh, 60 s refreshed meanwhile.
        let served = (0..200).find(|second| matches!(page.judged("", *second), Verdict::Fill(_)));
        assert_eq!(served, Some(*expected), "{lines:?}");
    }
}

// RFC 9111 section 4.2.3: a lifetime that the upstream states follows its clock.
#[test]
fn a_stated_lifetime_counts_what_passed_before_the_answer_came() {
    let table: &[(&Lines<'_>, u64)] = &[
        (&[], 0),
        (&[("age", "7")], 7),
        (&[("age", "x")], 0),
        (&[("date", "Thu, 31 Dec 2026 23:59:50 GMT")], 10),
        (
            &[("date", "Thu, 31 Dec 2026 23:59:50 GMT"), ("age", "12")],
            12,
        ),
        // A clock ahead of ours.
        (&[("date", "Fri, 01 Jan 2027 01:00:00 GMT")], 0),
    ];
    for (lines, expected) in table {
        let lines = [&[("cache-control", "max-age=30")], *lines].concat();
        let page = Page::with(&lines, &LIFETIMES);
        let age = |seconds| page.freshness.age(page.after(seconds)).as_secs();
        assert_eq!((age(0), age(5)), (*expected, expected + 5), "{lines:?}");
        assert_eq!(page.fresh_for(100), 30 - expected, "{lines:?}");
    }
}

#[test]
fn a_configured_lifetime_counts_from_receipt_whatever_the_upstreams_clock_says() {
    let table: &[(&Lines<'_>, u64)] = &[
        (&[], 0),
        (&[("date", "Thu, 31 Dec 2026 23:58:00 GMT")], 0),
        (&[("date", "Thu, 31 Dec 2026 22:00:00 GMT")], 0),
        (&[("date", "Fri, 01 Jan 2027 01:00:00 GMT")], 0),
        (&[("date", "yesterday")], 0),
        // `Age` goes on from what the upstream said, and takes nothing from the lifetime.
        (&[("age", "7")], 7),
        (&[("age", "300")], 300),
        (
            &[("date", "Thu, 31 Dec 2026 23:58:00 GMT"), ("age", "7")],
            7,
        ),
        (
            &[
                ("date", "Thu, 31 Dec 2026 23:58:00 GMT"),
                ("cache-control", "public, must-revalidate"),
            ],
            0,
        ),
    ];
    for (lines, own_age) in table {
        let page = Page::with(lines, &LIFETIMES);
        let age = |seconds| page.freshness.age(page.after(seconds)).as_secs();
        assert_eq!((age(0), age(5)), (*own_age, own_age + 5), "{lines:?}");
        assert_eq!(page.fresh_for(1000), 30, "{lines:?}");
        let stretched = page.freshness.fitted(Duration::from_secs(90));
        let left = stretched.fresh_for(page.after(10));
        assert_eq!(left, Some(Duration::from_secs(80)), "{lines:?}");
    }
}

// RFC 9111 section 4.2.3: what the response was under way counts with `Age`, where the upstream states a lifetime.
#[test]
fn the_age_counts_the_response_delay_of_a_stated_lifetime() {
    for (control, expected) in [("max-age=60", 7), ("public", 3)] {
        let headers = fields(&[("age", "3"), ("cache-control", control)]);
        let answer = Received {
            response_delay: Duration::from_secs(4),
            ..received(&headers, Instant::now())
        };
        let freshness = Freshness::new(&answer, &LIFETIMES, 1.0);
        let age = freshness.age(answer.received);
        assert_eq!(age, Duration::from_secs(expected), "{control}");
    }
}

// RFC 9110 section 12.5.5: `*` as any member of any line.
#[test]
fn what_varies_by_anything_is_never_reused_unasked() {
    for lines in [&["*"][..], &["accept, *"], &["accept", "*"]] {
        let lines: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
        let page = Page::with(&lines, &LIFETIMES);
        for age in [0, 29, 30, 60] {
            assert_eq!(page.judged("", age), STALE, "{lines:?}");
            assert_eq!(page.judged("max-stale", age), STALE, "{lines:?}");
            assert_eq!(page.stale_if_error(age), None, "{lines:?}");
        }
    }
    let named = Page::with(&[("vary", "Accept-Language, origin")], &LIFETIMES);
    assert_eq!(named.fresh_for(100), 30);
}

// RFC 5861 section 4: both windows count from the end of freshness.
#[test]
fn a_stale_page_stands_in_within_its_window() {
    let table = [
        // (what the upstream said, the last second in which it stands in, the first in which it does not)
        ("", 30 + 3599, 30 + 3600),
        ("max-age=10", 10 + 3599, 10 + 3600),
        ("max-age=10, stale-if-error=5", 14, 15),
        ("stale-if-error=5", 34, 35),
        ("max-age=10, stale-if-error=0", 9, 10),
        ("max-age=10, stale-if-error=x", 9, 10),
    ];
    for (said, last, gone) in table {
        let page = Page::saying(said);
        assert!(page.stale_if_error(last).is_some(), "{said}");
        assert_eq!(page.stale_if_error(gone), None, "{said}");
    }
    assert_eq!(Page::saying("").stale_if_error(45), Some(-15));
    // Below zero from the first moment: at 0 it may be fresh.
    assert_eq!(Page::saying("").stale_if_error(30), Some(-1));
    assert_eq!(Page::saying("").stale_if_error(10), Some(20));
}

#[test]
fn a_configured_lifetime_follows_the_calls_that_are_left() {
    let table = [
        // (`ttl_min`, what the upstream said, what the quota asks for, the lifetime)
        (30, "", 2, 30),
        (30, "", 90, 90),
        (5, "", 2, 5),
        (5, "", 12, 12),
        (5, "", 90, 90),
        (0, "", 2, 2),
        (5, "max-age=20", 2, 20),
        (5, "max-age=20", 90, 20),
    ];
    for (ttl_min, said, asked, expected) in table {
        let lifetimes = Lifetimes {
            ttl_min: Duration::from_secs(ttl_min),
            ..LIFETIMES
        };
        let lines = [("cache-control", said)];
        let page = Page::with(&lines[..usize::from(!said.is_empty())], &lifetimes);
        let fitted = page.freshness.fitted(Duration::from_secs(asked));
        assert_eq!(fitted.lifetime().as_secs(), expected, "{ttl_min} {asked}");
        // Without a known quota.
        assert!(page.freshness.lifetime().as_secs() >= 20);
        // As another replica filled it.
        let aged = page
            .freshness
            .aged(Duration::ZERO, page.freshness.lifetime());
        assert_eq!(aged.fitted(Duration::from_secs(asked)), fitted);
    }
    // The lifetime of a page of finished tasks is not shortened.
    let finished = LIFETIMES.lasting(Duration::from_secs(600));
    assert_eq!(finished.ttl_min, finished.ttl);
}

#[test]
fn for_want_of_a_call_a_page_may_be_older() {
    const DAY: u64 = 24 * 3600;
    let table = [
        // (what the upstream said, the first second in which it is not served for want of a call)
        ("", 30 + DAY),
        ("max-age=10", 10 + DAY),
        // Who says how long a page may stand in for an error means a missing call too.
        ("stale-if-error=5", 35),
        ("stale-if-error=100000", 30 + 100_000),
    ];
    for (said, gone) in table {
        let page = Page::saying(said);
        assert!(page.stale_if_quota(gone - 1).is_some(), "{said}");
        assert_eq!(page.stale_if_quota(gone), None, "{said}");
    }
    let page = Page::saying("");
    let useful_for = page.freshness.useful_for(page.filled);
    assert_eq!(useful_for.as_secs(), 30 + DAY);
    for said in ["must-revalidate", "s-maxage=30", "no-cache"] {
        assert_eq!(Page::saying(said).stale_if_quota(30), None, "{said}");
    }
}

// RFC 9111 sections 5.2.2.2, 5.2.2.4, 5.2.2.8 and 5.2.2.10.
#[test]
fn what_must_be_revalidated_never_stands_in() {
    for said in [
        "must-revalidate",
        "proxy-revalidate",
        "s-maxage=30",
        "must-revalidate, stale-if-error=1000",
    ] {
        let page = Page::saying(said);
        assert_eq!(page.stale_if_error(29), Some(1), "fresh: {said}");
        assert_eq!(page.stale_if_error(30), None, "{said}");
        assert_eq!(page.stale_if_error(31), None, "{said}");
    }
    for age in [0, 31] {
        assert_eq!(Page::saying("no-cache").stale_if_error(age), None);
    }
}

#[test]
fn a_page_whose_list_moved_stands_in_counting_from_the_move() {
    let page = Page::saying("");
    let moved = Some(page.after(10));
    let stand_in = |seconds| {
        page.freshness
            .stale_if(StaleIf::Error, moved, page.after(seconds))
    };
    assert_eq!(stand_in(15), Some(-5));
    assert_eq!(stand_in(10 + 3599), Some(-3599));
    assert_eq!(stand_in(10 + 3600), None);
    // Stale already when it moved: the earlier end counts.
    let moved = Some(page.after(40));
    let late = page
        .freshness
        .stale_if(StaleIf::Error, moved, page.after(45));
    assert_eq!(late, Some(-15));
}

#[test]
fn every_configured_window_may_be_zero() {
    let none = Lifetimes {
        ttl: Duration::ZERO,
        ttl_min: Duration::ZERO,
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        stale_if_quota: Duration::ZERO,
        obey_upstream: true,
    };
    let page = Page::with(&[], &none);
    assert_eq!(page.judged("", 0), STALE);
    assert_eq!(page.stale_if_error(0), None);
    assert_eq!(
        Page::with(&[("cache-control", "max-age=5")], &none).fresh_for(100),
        5
    );
}

#[test]
fn an_upstream_that_is_not_obeyed_states_nothing() {
    let deaf = Lifetimes {
        obey_upstream: false,
        ..LIFETIMES
    };
    for line in [
        ("cache-control", "max-age=1"),
        ("cache-control", "no-cache, must-revalidate"),
        ("cache-control", "no-store, private"),
        ("expires", "0"),
        ("age", "29"),
        ("date", "Thu, 31 Dec 2026 23:59:50 GMT"),
    ] {
        let page = Page::with(&[line], &deaf);
        assert_eq!(page.fresh_for(100), 30, "{line:?}");
        assert_eq!(page.judged("", 31), refresh(-1), "{line:?}");
        assert!(may_store(&fields(&[line]), &deaf), "{line:?}");
    }
}

#[test]
fn jitter_is_for_the_configured_lifetime_alone() {
    let filled = Instant::now();
    let lasts = |line: &str, jitter| {
        let headers = cache_control(line);
        Freshness::new(&received(&headers, filled), &LIFETIMES, jitter).lifetime
    };
    assert_eq!(lasts("", 1.1), Duration::from_secs(33));
    assert_eq!(lasts("", 0.9), Duration::from_secs(27));
    assert_eq!(lasts("max-age=30", 1.1), Duration::from_secs(30));
}

// RFC 9111 section 3 and sections 5.2.2.5, 5.2.2.7.
#[test]
fn what_forbids_storing_is_never_stored() {
    for said in [
        "no-store",
        "No-Store",
        "PRIVATE",
        "private=\"set-cookie\"",
        "public, max-age=60, no-store",
        "s-maxage=60, private",
    ] {
        assert!(!may_store(&cache_control(said), &LIFETIMES), "{said}");
    }
    // A cookie is no part of the key and no bar (RFC 9111 section 7.3).
    for lines in [
        &[][..],
        &[("cache-control", "max-age=0")],
        &[("cache-control", "no-cache")],
        &[("cache-control", "x=\"no-store\"")],
        &[("set-cookie", "a=b")],
        &[("vary", "*")],
    ] {
        assert!(may_store(&fields(lines), &LIFETIMES), "{lines:?}");
    }
}

// RFC 9111 section 3: stale from the start is of use with a validator, or to a client that takes it stale.
#[test]
fn a_page_is_kept_that_could_be_of_use() {
    for (said, without_validator) in [
        ("", true),
        ("max-age=0", true),
        ("must-revalidate, max-age=0", true),
        ("no-cache", false),
    ] {
        let freshness = Page::saying(said).freshness;
        assert!(freshness.is_worth_keeping(true), "{said}");
        assert_eq!(
            freshness.is_worth_keeping(false),
            without_validator,
            "{said}"
        );
    }
}

#[test]
fn a_refusal_is_remembered_as_its_answer_states() {
    let configured = Duration::from_secs(10);
    let table: &[(&Lines<'_>, Option<u64>)] = &[
        (&[], Some(10)),
        (&[("cache-control", "max-age=90")], Some(90)),
        (&[("cache-control", "s-maxage=5, max-age=90")], Some(5)),
        (&[("cache-control", "max-age=90"), ("age", "30")], Some(60)),
        (&[("cache-control", "max-age=90"), ("age", "90")], None),
        (&[("expires", "Fri, 01 Jan 2027 00:00:20 GMT")], Some(20)),
        (&[("cache-control", "max-age=0")], None),
        (&[("cache-control", "no-store")], None),
        (&[("cache-control", "private, max-age=90")], None),
        (&[("cache-control", "no-cache, max-age=90")], None),
        // Without a stated lifetime an age says nothing.
        (&[("age", "30")], Some(10)),
    ];
    for (lines, expected) in table {
        let headers = fields(lines);
        let answer = received(&headers, Instant::now());
        let lifetime = refusal_lifetime(Some(&answer), &LIFETIMES, configured);
        assert_eq!(lifetime, expected.map(Duration::from_secs), "{lines:?}");
    }
    assert_eq!(
        refusal_lifetime(None, &LIFETIMES, configured),
        Some(configured)
    );
    assert_eq!(refusal_lifetime(None, &LIFETIMES, Duration::ZERO), None);
    let deaf = Lifetimes {
        obey_upstream: false,
        ..LIFETIMES
    };
    let headers = fields(&[("cache-control", "no-store")]);
    let answer = received(&headers, Instant::now());
    assert_eq!(
        refusal_lifetime(Some(&answer), &deaf, configured),
        Some(configured)
    );
}

#[test]
fn only_who_may_refresh_can_cause_a_call() {
    let asked = asks("no-cache, no-store, only-if-cached, max-age=0, min-fresh=9, max-stale=5");
    assert_eq!(permitted(asked, true), asked);
    assert_eq!(permitted(asked, false), asks("only-if-cached, max-stale=5"));
}

#[test]
fn each_reason_has_the_word_of_rfc_9211() {
    for (reason, word) in [
        (FillReason::UriMiss, "uri-miss"),
        (FillReason::Stale, "stale"),
        (FillReason::Request, "request"),
        (FillReason::Bypass, "bypass"),
    ] {
        assert_eq!(reason.as_str(), word);
    }
}

fn any_upstream() -> impl Strategy<Value = Vec<&'static str>> {
    let directive = prop::sample::select(
        &[
            "max-age=10",
            "max-age=100",
            "s-maxage=20",
            "no-cache",
            "must-revalidate",
            "proxy-revalidate",
            "public",
            "stale-while-revalidate=50",
            "stale-if-error=50",
            "x=\"no-cache\"",
        ][..],
    );
    prop::collection::vec(directive, 0..5)
}

fn any_request() -> impl Strategy<Value = Vec<&'static str>> {
    let directive = prop::sample::select(
        &[
            "no-cache",
            "no-store",
            "only-if-cached",
            "max-age=0",
            "max-age=15",
            "min-fresh=5",
            "max-stale",
            "max-stale=20",
        ][..],
    );
    prop::collection::vec(directive, 0..5)
}

proptest! {
    // RFC 9111 section 4.2.4.
    #[test]
    fn what_must_be_revalidated_is_never_served_stale(
        mut said in any_upstream(),
        strict in prop::sample::select(&["must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=20"][..]),
        request in any_request(),
        age in 0..5000_u64,
    ) {
        said.insert(0, strict);
        let page = Page::saying(&said.join(", "));
        let stale = page.freshness.age(page.after(age)) >= page.freshness.lifetime;
        let verdict = page.judged(&request.join(", "), age);
        if stale {
            prop_assert!(matches!(verdict, Verdict::Fill(_) | Verdict::NotCached), "{verdict:?}");
            prop_assert_eq!(page.stale_if_error(age), None);
            prop_assert_eq!(page.stale_if_quota(age), None);
        }
    }

    #[test]
    fn only_if_cached_never_asks(said in any_upstream(), mut request in any_request(), age in 0..5000_u64) {
        request.push("only-if-cached");
        let verdict = Page::saying(&said.join(", ")).judged(&request.join(", "), age);
        prop_assert!(matches!(verdict, Verdict::Hit { .. } | Verdict::NotCached), "{verdict:?}");
    }

    // RFC 9110 sections 5.3 and 5.6.1.
    #[test]
    fn equivalent_spellings_get_the_same_verdict(
        said in any_upstream(), request in any_request(), age in 0..200_u64, moved in prop::option::of(0..100_u64),
    ) {
        let plain = Page::saying(&said.join(", "));
        let spelt = said.join(" ,,\t").to_uppercase();
        let filled = plain.filled;
        let mut headers = HeaderMap::new();
        for directive in &said {
            headers.append("cache-control", HeaderValue::from_static(directive));
        }
        let split = Freshness::new(&received(&headers, filled), &LIFETIMES, 1.0);
        let headers = cache_control(&spelt);
        let spelt = Freshness::new(&received(&headers, filled), &LIFETIMES, 1.0);
        let verdict = |freshness: &Freshness, request: &str| {
            let candidate = Candidate { freshness, moved_at: moved.map(|second| plain.after(second)), only_fresh: false };
            judge(Some(candidate), &asks(request), plain.after(age))
        };
        let expected = verdict(&plain.freshness, &request.join(", "));
        prop_assert_eq!(verdict(&split, &request.join(",")), expected);
        prop_assert_eq!(verdict(&spelt, &request.join(" ,, ").to_uppercase()), expected);
    }

    #[test]
    fn a_page_only_ever_grows_worse(said in any_upstream(), age in 0..500_u64) {
        let page = Page::saying(&said.join(", "));
        let rank = |verdict| match verdict {
            Verdict::Hit { .. } => 0,
            Verdict::HitWhileRevalidate { .. } => 1,
            Verdict::Fill(_) | Verdict::NotCached => 2,
        };
        prop_assert!(rank(page.judged("", age)) <= rank(page.judged("", age + 1)));
    }
}
