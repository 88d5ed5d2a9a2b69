//! How old a page is and what may be done with it: RFC 9111 section 4, RFC 5861, and the lifetimes of `[cache]`.
//!
//! [`judge`] is the one place that decides; the answer, `Cache-Status` and the metrics all follow its [`Verdict`].

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::{
    entry::Received,
    http_semantics::{
        MaxStale, RequestDirectives, ResponseDirectives, Vary, corrected_initial_age,
        explicit_lifetime, parse_age, vary,
    },
    status::Detail,
};
use crate::config::CacheConfig;

/// The lifetimes that apply where the upstream states none.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub ttl: Duration,
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Duration,
    /// Whether what the upstream states rules over them.
    pub obey_upstream: bool,
}

impl Lifetimes {
    #[must_use]
    pub fn new(config: &CacheConfig) -> Self {
        Self {
            ttl: config.ttl,
            stale_while_revalidate: config.stale_while_revalidate,
            stale_if_error: config.stale_if_error,
            obey_upstream: config.obey_upstream,
        }
    }

    /// The same with another lifetime.
    #[must_use]
    pub fn lasting(self, ttl: Duration) -> Self {
        Self { ttl, ..self }
    }
}

/// What is known of a stored page's age and of what its upstream allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Freshness {
    received: Instant,
    /// Its age when it was received: see [`initial_age`].
    initial_age: Duration,
    /// What of a configured lifetime had passed by the upstream's own `Age`: the lifetime counts from receipt all the same.
    age_at_receipt: Duration,
    lifetime: Duration,
    /// The factor that a configured lifetime varies by; `None` where the upstream states its own.
    jitter: Option<f64>,
    /// `no-cache`, or a `Vary` that nothing matches: validated on each use.
    always_validate: bool,
    /// `must-revalidate` and its kin, and what is validated on each use: never served stale, whatever happens (RFC 9111
    /// section 5.2.2.2).
    never_stale: bool,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
    /// How long after its freshness a client's `max-stale` may still get it: a right may have been revoked meanwhile, which
    /// nobody learns of who does not ask.
    max_stale: Duration,
}

impl Freshness {
    /// Reads what `answer` says of itself. `jitter` is the factor on a configured lifetime.
    #[must_use]
    pub fn new(answer: &Received<'_>, lifetimes: &Lifetimes, jitter: f64) -> Self {
        let nothing = HeaderMap::new();
        let headers = if lifetimes.obey_upstream {
            answer.headers
        } else {
            &nothing
        };
        let said = ResponseDirectives::parse(headers);
        let stated = explicit_lifetime(&said, headers, answer.received_unix);
        let must_validate = said.must_revalidate || said.proxy_revalidate;
        let always_validate = said.no_cache || vary(answer.headers) == Vary::Star;
        let initial_age = initial_age(answer, lifetimes);
        let age_at_receipt = match stated {
            Some(_) => Duration::ZERO,
            None => initial_age,
        };
        let stale_if_error = said
            .stale_if_error
            .map_or(lifetimes.stale_if_error, Into::into);
        Self {
            received: answer.received,
            initial_age,
            age_at_receipt,
            lifetime: stated.unwrap_or_else(|| age_at_receipt + lifetimes.ttl.mul_f64(jitter)),
            jitter: stated.is_none().then_some(jitter),
            always_validate,
            // RFC 9111 section 4.1: what matches no request stands in for no failed one either.
            never_stale: must_validate || always_validate || said.s_maxage.is_some(),
            // A lifetime that the upstream states is no invitation to go beyond it: it has words for that too.
            stale_while_revalidate: match said.stale_while_revalidate {
                Some(seconds) => seconds.into(),
                None if stated.is_some() => Duration::ZERO,
                None => lifetimes.stale_while_revalidate,
            },
            stale_if_error,
            max_stale: stale_if_error.min(lifetimes.stale_if_error),
        }
    }

    /// The freshness of a page cut from others: as old as the oldest, fresh as long as the first to end, and never served stale.
    ///
    /// `None` where a part may not be shown as it is, or is no longer fresh.
    #[must_use]
    pub fn of_parts(parts: &[Self], now: Instant) -> Option<Self> {
        let initial_age = parts.iter().map(|part| part.age(now)).max()?;
        let left = parts
            .iter()
            .map(|part| part.fresh_for(now))
            .min()
            .flatten()?;
        Some(Self {
            received: now,
            initial_age,
            age_at_receipt: initial_age,
            lifetime: initial_age + left,
            jitter: None,
            always_validate: false,
            never_stale: true,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            max_stale: Duration::ZERO,
        })
    }

    /// The same, lasting at least `lifetime`: what the quota asks for. Never beyond what the upstream states.
    #[must_use]
    pub fn stretched(self, lifetime: Duration) -> Self {
        match self.jitter {
            Some(jitter) => Self {
                lifetime: self
                    .lifetime
                    .max(self.age_at_receipt + lifetime.mul_f64(jitter)),
                ..self
            },
            None => self,
        }
    }

    /// The same, at least `age` old now: what a snapshot knows better than the answer's header.
    #[must_use]
    pub fn aged(self, age: Duration, lifetime: Duration) -> Self {
        Self {
            initial_age: self.initial_age.max(age),
            lifetime,
            ..self
        }
    }

    /// How long it may be served yet, as it is or stale.
    #[must_use]
    pub fn useful_for(&self, now: Instant) -> Duration {
        let stale = match self.never_stale {
            true => Duration::ZERO,
            false => self.stale_while_revalidate.max(self.stale_if_error),
        };
        (self.lifetime + stale).saturating_sub(self.age(now))
    }

    /// How long it is fresh from its birth.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// How long it may still be served without asking; `None`: not at all.
    #[must_use]
    pub fn fresh_for(&self, now: Instant) -> Option<Duration> {
        match self.remaining(None, now) {
            Remaining::Fresh(left) if !self.always_validate => Some(left),
            Remaining::Fresh(_) | Remaining::Stale(_) => None,
        }
    }

    /// When the upstream's answer came.
    #[must_use]
    pub fn received(&self) -> Instant {
        self.received
    }

    /// Its age now (RFC 9111 section 4.2.3).
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        self.initial_age + now.saturating_duration_since(self.received)
    }

    /// How long it is still fresh, or has not been.
    fn remaining(&self, moved_at: Option<Instant>, now: Instant) -> Remaining {
        let age = self.age(now);
        let stale_for = moved_at.map(|moved| now.saturating_duration_since(moved));
        // Fresh only while the lifetime is greater than the age (RFC 9111 section 4.2).
        match (self.lifetime.checked_sub(age), stale_for) {
            (Some(left), None) if !left.is_zero() => Remaining::Fresh(left),
            (Some(_), None) => Remaining::Stale(Duration::ZERO),
            (Some(_), Some(moved)) => Remaining::Stale(moved),
            (None, moved) => Remaining::Stale((age - self.lifetime).max(moved.unwrap_or_default())),
        }
    }

    /// Whether the page may stand in for a failed fill, and its `ttl` if so (RFC 5861 section 4).
    #[must_use]
    pub fn stand_in(&self, moved_at: Option<Instant>, now: Instant) -> Option<i64> {
        // A `Vary` that nothing matches forbids it fresh and stale alike (RFC 9111 section 4.1).
        if self.always_validate {
            return None;
        }
        match self.remaining(moved_at, now) {
            Remaining::Fresh(left) => Some(whole(left)),
            Remaining::Stale(for_) if !self.never_stale && for_ < self.stale_if_error => {
                Some(below_zero(for_))
            }
            Remaining::Stale(_) => None,
        }
    }

    /// Whether keeping the page could ever be of use.
    #[must_use]
    pub fn is_worth_keeping(&self, has_validator: bool) -> bool {
        has_validator || !self.always_validate
    }
}

/// Whether the upstream lets a shared cache keep `answer` (RFC 9111 section 3).
#[must_use]
pub fn may_store(headers: &HeaderMap, lifetimes: &Lifetimes) -> bool {
    let said = ResponseDirectives::parse(headers);
    !lifetimes.obey_upstream || !(said.no_store || said.private)
}

/// How old `answer` was when it came.
///
/// A lifetime that the upstream states follows the upstream's clock (RFC 9111 section 4.2.3). A configured one counts from receipt:
/// there only the upstream's own `Age` is believed, so that a slow clock does not switch the cache off.
#[must_use]
pub fn initial_age(answer: &Received<'_>, lifetimes: &Lifetimes) -> Duration {
    if !lifetimes.obey_upstream {
        return Duration::ZERO;
    }
    let said = ResponseDirectives::parse(answer.headers);
    match explicit_lifetime(&said, answer.headers, answer.received_unix) {
        Some(_) => {
            corrected_initial_age(answer.headers, answer.received_unix, answer.response_delay)
        }
        None => parse_age(answer.headers).unwrap_or_default(),
    }
}

/// How long a refusal is remembered: as its own answer states, else `configured`. `None`: not at all.
#[must_use]
pub fn refusal_lifetime(
    answer: Option<&Received<'_>>,
    lifetimes: &Lifetimes,
    configured: Duration,
) -> Option<Duration> {
    let lifetime = match answer.filter(|_| lifetimes.obey_upstream) {
        None => configured,
        Some(answer) => {
            let said = ResponseDirectives::parse(answer.headers);
            let always_validate = said.no_cache || vary(answer.headers) == Vary::Star;
            if said.no_store || said.private || always_validate {
                return None;
            }
            match explicit_lifetime(&said, answer.headers, answer.received_unix) {
                None => configured,
                Some(stated) => stated.saturating_sub(initial_age(answer, lifetimes)),
            }
        }
    };
    (!lifetime.is_zero()).then_some(lifetime)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remaining {
    Fresh(Duration),
    Stale(Duration),
}

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

/// Why the upstream must be asked, in the words of RFC 9211 section 2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillReason {
    UriMiss,
    Stale,
    Request,
    /// A miss whose client asks that nothing be stored.
    Bypass,
}

impl FillReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UriMiss => "uri-miss",
            Self::Stale => "stale",
            Self::Request => "request",
            Self::Bypass => "bypass",
        }
    }
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
        // No upstream request on this client's account, not even behind its back.
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
fn below_zero(stale_for: Duration) -> i64 {
    -whole(stale_for).max(1)
}

fn whole(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
