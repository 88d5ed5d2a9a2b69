//! How old a page is and what may be done with it: RFC 9111 section 4, RFC 5861, and the lifetimes of `[cache]`.
//!
//! [`judge`] is the one place that decides; the answer, `Cache-Status` and the metrics all follow its [`Verdict`].

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::http_semantics::{
    ResponseDirectives, Vary, corrected_initial_age, explicit_lifetime, parse_age, vary,
};
use crate::config::CacheConfig;

mod verdict;

pub use self::verdict::{Candidate, Verdict, judge, permitted, refusal_answers};
use self::verdict::{below_zero, whole};
pub use super::status::FillReason;

/// The header of an answer, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    pub headers: &'a HeaderMap,
    pub received: Instant,
    /// The same moment on the wall clock, in Unix seconds.
    pub received_unix: i64,
    /// From asking to having the header.
    pub response_delay: Duration,
}

/// The lifetimes that apply where the upstream states none.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub ttl: Duration,
    /// How short it may become where the quota has calls left; no longer than `ttl`.
    pub ttl_min: Duration,
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Duration,
    /// No shorter than `stale_if_error`.
    pub stale_if_quota: Duration,
    /// Whether what the upstream states rules over them.
    pub obey_upstream: bool,
}

impl Lifetimes {
    #[must_use]
    pub fn new(config: &CacheConfig) -> Self {
        Self {
            ttl: config.ttl,
            ttl_min: config.ttl_min.unwrap_or(config.ttl).min(config.ttl),
            stale_while_revalidate: config.stale_while_revalidate,
            stale_if_error: config.stale_if_error,
            stale_if_quota: config.stale_if_quota.max(config.stale_if_error),
            obey_upstream: config.obey_upstream,
        }
    }

    /// The same with another lifetime, which is not shortened.
    #[must_use]
    pub fn lasting(self, ttl: Duration) -> Self {
        Self {
            ttl,
            ttl_min: ttl,
            ..self
        }
    }
}

/// Why a stale page may be served although it was not revalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleIf {
    /// Its fill failed (RFC 5861 section 4).
    Error,
    /// There is no call for its fill, and that is all.
    Quota,
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
    /// How short it may become where the quota has calls left.
    lifetime_min: Duration,
    /// The factor that a configured lifetime varies by; `None` where the upstream states its own.
    jitter: Option<f64>,
    /// `no-cache`, or a `Vary` that nothing matches: validated on each use.
    always_validate: bool,
    /// `must-revalidate` and its kin, and what is validated on each use: never served stale, whatever happens (RFC 9111
    /// section 5.2.2.2).
    never_stale: bool,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
    stale_if_quota: Duration,
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
        let lifetime = |ttl: Duration| stated.unwrap_or(age_at_receipt + ttl.mul_f64(jitter));
        Self {
            received: answer.received,
            initial_age,
            age_at_receipt,
            lifetime: lifetime(lifetimes.ttl),
            lifetime_min: lifetime(lifetimes.ttl_min),
            jitter: stated.is_none().then_some(jitter),
            always_validate,
            // RFC 9111 section 4.1: what matches no request is no fallback for a failed one either.
            never_stale: must_validate || always_validate || said.s_maxage.is_some(),
            // A lifetime that the upstream states is no invitation to go beyond it: it has words for that too.
            stale_while_revalidate: match said.stale_while_revalidate {
                Some(seconds) => seconds.into(),
                None if stated.is_some() => Duration::ZERO,
                None => lifetimes.stale_while_revalidate,
            },
            stale_if_error,
            // The upstream that says how long a page may stand in for an error means a missing call too.
            stale_if_quota: said
                .stale_if_error
                .map_or(lifetimes.stale_if_quota, Into::into),
            max_stale: stale_if_error.min(lifetimes.stale_if_error),
        }
    }

    /// The freshness of a page cut from others: as old as the oldest, fresh as long as the first to end, and served stale for an error alone,
    /// as long as each of them may be.
    ///
    /// `None` of no parts.
    #[must_use]
    pub fn of_parts(parts: &[Self], now: Instant) -> Option<Self> {
        let stale_for = |part: &Self| part.age(now).saturating_sub(part.lifetime);
        let fresh_for = |part: &Self| part.lifetime.saturating_sub(part.age(now));
        let initial_age = parts.iter().map(|part| part.age(now)).max()?;
        let longest_stale = parts.iter().map(stale_for).max()?;
        let left = parts.iter().map(fresh_for).min()?;
        // The windows count from the end of freshness.
        let window = |of: fn(&Self) -> Duration| {
            let left = |part: &Self| of(part).saturating_sub(stale_for(part));
            Some(longest_stale + parts.iter().map(left).min()?)
        };
        let lifetime = (initial_age + left).saturating_sub(longest_stale);
        Some(Self {
            received: now,
            initial_age,
            age_at_receipt: initial_age,
            lifetime,
            lifetime_min: lifetime,
            jitter: None,
            always_validate: parts.iter().any(|part| part.always_validate),
            never_stale: parts.iter().any(|part| part.never_stale),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: window(|part| part.stale_if_error)?,
            stale_if_quota: window(|part| part.stale_if_quota)?,
            max_stale: Duration::ZERO,
        })
    }

    /// The same, lasting as long as the quota asks for with `lifetime`, and no shorter than `ttl_min`. Never another than what the upstream
    /// states.
    #[must_use]
    pub fn fitted(self, lifetime: Duration) -> Self {
        match self.jitter {
            Some(jitter) => Self {
                lifetime: self
                    .lifetime_min
                    .max(self.age_at_receipt + lifetime.mul_f64(jitter)),
                ..self
            },
            None => self,
        }
    }

    /// The same, whatever the quota asks for from now on.
    #[must_use]
    pub fn fixed(self) -> Self {
        Self {
            jitter: None,
            ..self
        }
    }

    /// The same, at least `age` old now: what a snapshot knows better than the answer's header.
    #[must_use]
    pub fn aged(self, age: Duration, lifetime: Duration) -> Self {
        Self {
            initial_age: self.initial_age.max(age),
            lifetime,
            lifetime_min: self.lifetime_min.min(lifetime),
            ..self
        }
    }

    /// How long it may be served yet, as it is or stale.
    #[must_use]
    pub fn useful_for(&self, now: Instant) -> Duration {
        let stale = match self.never_stale {
            true => Duration::ZERO,
            false => self.stale_while_revalidate.max(self.stale_if_quota),
        };
        (self.lifetime + stale).saturating_sub(self.age(now))
    }

    /// When it is twice as old as its lifetime.
    #[must_use]
    pub fn overdue_at(&self, now: Instant) -> Instant {
        now + (2 * self.lifetime).saturating_sub(self.age(now))
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

    /// The page's `ttl` if it may be served as a stale fallback for `reason`.
    #[must_use]
    pub fn stale_if(
        &self,
        reason: StaleIf,
        moved_at: Option<Instant>,
        now: Instant,
    ) -> Option<i64> {
        let window = match reason {
            StaleIf::Error => self.stale_if_error,
            StaleIf::Quota => self.stale_if_quota,
        };
        // A `Vary` that nothing matches forbids it fresh and stale alike (RFC 9111 section 4.1).
        if self.always_validate {
            return None;
        }
        match self.remaining(moved_at, now) {
            Remaining::Fresh(left) => Some(whole(left)),
            Remaining::Stale(for_) if !self.never_stale && for_ < window => Some(below_zero(for_)),
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

#[cfg(test)]
mod tests;
