//! Decides what a request gets, by what is stored and what its client asks for.

use std::time::Duration;

use tokio::time::Instant;

use super::{Freshness, Remaining};
use crate::cache::{
    http_semantics::{MaxStale, RequestDirectives},
    status::{Detail, FillReason},
};

/// What to do about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Serve what is stored. `ttl` is in seconds, negative where the client takes it stale; `detail` is why it does.
    Hit { ttl: i64, detail: Option<Detail> },
    /// Serve what is stored and refresh it meanwhile.
    HitWhileRevalidate { ttl: i64 },
    /// Ask the upstream and wait.
    Fill(FillReason),
    /// Nothing usable is stored, and the client wants nothing else.
    NotCached,
}

/// What is stored under a key, as far as judging goes.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub freshness: &'a Freshness,
    /// When its list moved on, if it did since: stale from then, and no `stale-while-revalidate`, which would show the old list.
    pub moved_at: Option<Instant>,
    /// Whether only a fresh page may be shown: its credential is refused at the moment.
    pub only_fresh: bool,
}

/// Decides what to do about a request for `stored`.
///
/// `request` holds what the client may ask for: see [`permitted`].
#[must_use]
pub fn judge(stored: Option<Candidate<'_>>, request: &RequestDirectives, now: Instant) -> Verdict {
    let verdict = match stored {
        None if request.no_store => Verdict::Fill(FillReason::Bypass),
        None => Verdict::Fill(FillReason::UriMiss),
        Some(candidate) => judge_stored(candidate, request, now),
    };
    match verdict {
        Verdict::Fill(_) if request.only_if_cached => Verdict::NotCached,
        // No upstream request on this client's account, not even in the background.
        Verdict::HitWhileRevalidate { ttl } if request.only_if_cached => Verdict::Hit {
            ttl,
            detail: Some(Detail::OnlyIfCached),
        },
        other => other,
    }
}

fn judge_stored(candidate: Candidate<'_>, request: &RequestDirectives, now: Instant) -> Verdict {
    let Candidate {
        freshness,
        moved_at,
        only_fresh,
    } = candidate;
    let remaining = freshness.remaining(moved_at, now);
    if freshness.always_validate {
        return Verdict::Fill(FillReason::Stale);
    }
    if request.no_cache || too_old(freshness.age(now), request.max_age) {
        return Verdict::Fill(FillReason::Request);
    }
    match remaining {
        Remaining::Fresh(left) => match request.min_fresh {
            Some(wanted) if left < wanted => Verdict::Fill(FillReason::Request),
            _ => Verdict::Hit {
                ttl: whole(left),
                detail: None,
            },
        },
        Remaining::Stale(_) if freshness.never_stale || only_fresh || moved_at.is_some() => {
            Verdict::Fill(FillReason::Stale)
        }
        // RFC 9111 section 5.2.1.3: it wants freshness to spare, so it takes nothing stale.
        Remaining::Stale(_) if request.min_fresh.is_some() => Verdict::Fill(FillReason::Request),
        Remaining::Stale(for_)
            if for_ < freshness.max_stale && takes_stale(for_, request.max_stale) =>
        {
            Verdict::Hit {
                ttl: below_zero(for_),
                detail: Some(Detail::MaxStale),
            }
        }
        // RFC 9111 section 5.2.1.1: who names a `max-age` takes something stale by its own `max-stale` only.
        Remaining::Stale(for_)
            if for_ < freshness.stale_while_revalidate && request.max_age.is_none() =>
        {
            Verdict::HitWhileRevalidate {
                ttl: below_zero(for_),
            }
        }
        Remaining::Stale(_) => Verdict::Fill(FillReason::Stale),
    }
}

/// Whether a refusal of this `age`, still remembered for `left`, answers `request`.
#[must_use]
pub fn refusal_answers(age: Duration, left: Duration, request: &RequestDirectives) -> bool {
    !request.no_cache
        && !too_old(age, request.max_age)
        && request.min_fresh.is_none_or(|wanted| left >= wanted)
}

/// `max-age=0` asks for validation even of what came this very instant.
fn too_old(age: Duration, max_age: Option<Duration>) -> bool {
    max_age.is_some_and(|max_age| max_age.is_zero() || age > max_age)
}

fn takes_stale(stale_for: Duration, max_stale: Option<MaxStale>) -> bool {
    match max_stale {
        None => false,
        Some(MaxStale::Any) => true,
        Some(MaxStale::Within(limit)) => stale_for <= limit,
    }
}

/// What a client may ask of the cache: without `may_refresh`, nothing that would cost an upstream call.
#[must_use]
pub fn permitted(asked: RequestDirectives, may_refresh: bool) -> RequestDirectives {
    if may_refresh {
        asked
    } else {
        RequestDirectives {
            only_if_cached: asked.only_if_cached,
            max_stale: asked.max_stale,
            ..RequestDirectives::default()
        }
    }
}

/// The `ttl` of a page that has been stale for so long. -1 within the first second too: at 0 a page may be fresh.
pub(super) fn below_zero(stale_for: Duration) -> i64 {
    -whole(stale_for).max(1)
}

pub(super) fn whole(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
