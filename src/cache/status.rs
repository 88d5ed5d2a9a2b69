//! `Cache-Status` (RFC 9211): what the cache did for an answer.

use std::fmt::Write as _;

use http::HeaderValue;

use crate::telemetry::metrics::CacheOutcome;

/// What the cache is called.
const NAME: &str = "unpod-gateway";
/// As long as any value of the field.
const LONGEST: usize = 96;

/// What the cache did. Written as the header field, counted under [`CacheStatus::outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// Answered from the store; `ttl` in seconds, negative where stale.
    Hit { ttl: i64, detail: Option<Detail> },
    /// Asked the upstream, or waited for a fill that did.
    Forward {
        reason: FillReason,
        /// The upstream's status, where it answered a page or a 304.
        status: Option<u16>,
        stored: bool,
        /// Waited for a fill that another request began.
        collapsed: bool,
    },
    /// Neither served nor asked.
    NotForwarded(NotForwarded),
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

/// Why the upstream was not asked though nothing stored could be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotForwarded {
    /// The client wanted no upstream call.
    OnlyIfCached,
    /// No call was left.
    Quota,
    /// The upstream is left alone for a while: it kept failing, or refused the credential.
    CircuitOpen,
    /// The gateway's own limits.
    Overloaded,
}

impl From<NotForwarded> for CacheStatus {
    fn from(reason: NotForwarded) -> Self {
        Self::NotForwarded(reason)
    }
}

impl NotForwarded {
    fn as_str(self) -> &'static str {
        match self {
            Self::OnlyIfCached => "only-if-cached",
            Self::Quota => "quota",
            Self::CircuitOpen => "circuit-open",
            Self::Overloaded => "overloaded",
        }
    }

    fn outcome(self) -> CacheOutcome {
        match self {
            Self::OnlyIfCached => CacheOutcome::NotCached,
            Self::Quota => CacheOutcome::QuotaExhausted,
            Self::CircuitOpen => CacheOutcome::CircuitOpen,
            Self::Overloaded => CacheOutcome::Overloaded,
        }
    }
}

/// Where a page came from that was not simply stored and fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    StaleWhileRevalidate,
    StaleIfError,
    /// Its fill takes too long, and goes on.
    StaleIfSlow,
    Quota,
    /// The client's `max-stale`.
    MaxStale,
    /// The client's `only-if-cached`: otherwise it would be refreshed meanwhile.
    OnlyIfCached,
    /// Cut from other pages of the same list; not stale at all.
    Assembled,
    /// Those rows of the same list that match a filter; not stale either.
    Filtered,
}

impl Detail {
    fn as_str(self) -> &'static str {
        match self {
            Self::StaleWhileRevalidate => "stale-while-revalidate",
            Self::StaleIfError => "stale-if-error",
            Self::StaleIfSlow => "stale-if-slow",
            Self::Quota => "quota",
            Self::MaxStale => "max-stale",
            Self::OnlyIfCached => "only-if-cached",
            Self::Assembled => "assembled",
            Self::Filtered => "filtered",
        }
    }

    fn outcome(self) -> CacheOutcome {
        match self {
            Self::StaleWhileRevalidate => CacheOutcome::StaleWhileRevalidate,
            Self::StaleIfError => CacheOutcome::StaleIfError,
            Self::StaleIfSlow => CacheOutcome::StaleIfSlow,
            Self::Quota => CacheOutcome::Quota,
            Self::MaxStale => CacheOutcome::MaxStale,
            Self::OnlyIfCached => CacheOutcome::OnlyIfCached,
            Self::Assembled => CacheOutcome::Assembled,
            Self::Filtered => CacheOutcome::Filtered,
        }
    }
}

impl CacheStatus {
    /// The outcome under which it is counted and logged.
    #[must_use]
    pub fn outcome(&self) -> CacheOutcome {
        match self {
            Self::Hit { detail, .. } => detail.map_or(CacheOutcome::Hit, Detail::outcome),
            Self::Forward {
                collapsed: true, ..
            } => CacheOutcome::Joined,
            Self::Forward { reason, .. } => match reason {
                FillReason::UriMiss | FillReason::Bypass => CacheOutcome::Miss,
                FillReason::Stale | FillReason::Request => CacheOutcome::Stale,
            },
            Self::NotForwarded(reason) => reason.outcome(),
        }
    }

    /// The field value, such as `unpod-gateway; hit; ttl=29`.
    ///
    /// Spaced as RFC 9211 and our documentation write it, so that a person can search for it; parsers take both. Put together by hand:
    /// it holds nothing but words of ours and one number.
    #[must_use]
    pub fn header_value(&self) -> HeaderValue {
        // Room for any of them: on its way to this length a string is allocated three times.
        let mut text = String::with_capacity(LONGEST);
        text.push_str(NAME);
        // Writing to a String cannot fail.
        match *self {
            Self::Hit { ttl, detail } => {
                let _ = write!(text, "; hit; ttl={}", clamp(ttl));
                if let Some(detail) = detail {
                    let _ = write!(text, "; detail={}", detail.as_str());
                }
            }
            Self::Forward {
                reason,
                status,
                stored,
                collapsed,
            } => {
                let _ = write!(text, "; fwd={}", reason.as_str());
                if let Some(status) = status {
                    let _ = write!(text, "; fwd-status={status}");
                }
                for (name, set) in [("; stored", stored), ("; collapsed", collapsed)] {
                    if set {
                        text.push_str(name);
                    }
                }
            }
            // RFC 9211 section 2.2: `fwd` says that the request went forward.
            Self::NotForwarded(reason) => {
                let _ = write!(text, "; detail={}", reason.as_str());
            }
        }
        // A copy of just its length: of a longer buffer `Bytes` keeps more than one allocation.
        HeaderValue::from_str(&text).expect("our words and digits are visible ASCII")
    }
}

/// A structured field's integers have fifteen digits (RFC 9651 section 3.3.1).
fn clamp(ttl: i64) -> i64 {
    const MOST: i64 = 999_999_999_999_999;
    ttl.clamp(-MOST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_written_as_the_contract_says() {
        let forward = |reason, status, stored, collapsed| CacheStatus::Forward {
            reason,
            status,
            stored,
            collapsed,
        };
        let hit = |ttl, detail| CacheStatus::Hit { ttl, detail };
        let table = [
            (hit(29, None), "hit; ttl=29"),
            (
                hit(-4, Some(Detail::StaleIfError)),
                "hit; ttl=-4; detail=stale-if-error",
            ),
            (
                hit(-4, Some(Detail::StaleIfSlow)),
                "hit; ttl=-4; detail=stale-if-slow",
            ),
            (
                hit(-4, Some(Detail::StaleWhileRevalidate)),
                "hit; ttl=-4; detail=stale-while-revalidate",
            ),
            (
                forward(FillReason::UriMiss, Some(200), true, false),
                "fwd=uri-miss; fwd-status=200; stored",
            ),
            (
                forward(FillReason::UriMiss, None, false, true),
                "fwd=uri-miss; collapsed",
            ),
            (forward(FillReason::Stale, None, false, false), "fwd=stale"),
            (hit(i64::MAX, None), "hit; ttl=999999999999999"),
            (hit(1, Some(Detail::Quota)), "hit; ttl=1; detail=quota"),
            (
                hit(0, Some(Detail::Assembled)),
                "hit; ttl=0; detail=assembled",
            ),
            (
                hit(-90, Some(Detail::MaxStale)),
                "hit; ttl=-90; detail=max-stale",
            ),
            (
                hit(-4, Some(Detail::OnlyIfCached)),
                "hit; ttl=-4; detail=only-if-cached",
            ),
            (
                CacheStatus::NotForwarded(NotForwarded::OnlyIfCached),
                "detail=only-if-cached",
            ),
            (
                CacheStatus::NotForwarded(NotForwarded::Quota),
                "detail=quota",
            ),
            (
                CacheStatus::NotForwarded(NotForwarded::CircuitOpen),
                "detail=circuit-open",
            ),
            (
                CacheStatus::NotForwarded(NotForwarded::Overloaded),
                "detail=overloaded",
            ),
            (
                forward(FillReason::Request, None, false, false),
                "fwd=request",
            ),
            (
                forward(FillReason::Bypass, Some(200), false, false),
                "fwd=bypass; fwd-status=200",
            ),
        ];
        for (status, expected) in table {
            let value = status.header_value();
            assert_eq!(value, format!("unpod-gateway; {expected}"));
            let item = sfv::Parser::new(value.as_bytes()).parse::<sfv::Item>();
            assert!(item.is_ok(), "{expected} is a structured field");
        }
    }
}
