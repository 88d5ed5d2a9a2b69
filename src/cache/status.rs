//! `Cache-Status` (RFC 9211): what the cache did for an answer.

use http::HeaderValue;
use sfv::{ItemSerializer, KeyRef, TokenRef, key_ref, token_ref};

use super::freshness::FillReason;

/// What the cache did. Written as the header field, counted under [`CacheStatus::outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// Answered from the store; `ttl` in seconds, negative where stale.
    Hit { ttl: i64, detail: Option<Detail> },
    /// Asked the upstream.
    Forward {
        reason: FillReason,
        /// The upstream's status, where it answered a page or a 304.
        status: Option<u16>,
        stored: bool,
        /// Waited for a fill that another request began.
        collapsed: bool,
    },
    /// Nothing usable stored, and the client wanted no upstream call.
    NotCached,
}

/// Where a page came from that was not simply stored and fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    StaleWhileRevalidate,
    StaleIfError,
    Quota,
    /// Cut from other pages of the same list; not stale at all.
    Assembled,
}

impl Detail {
    fn as_token(self) -> &'static TokenRef {
        match self {
            Self::StaleWhileRevalidate => token_ref("stale-while-revalidate"),
            Self::StaleIfError => token_ref("stale-if-error"),
            Self::Quota => token_ref("quota"),
            Self::Assembled => token_ref("assembled"),
        }
    }
}

impl CacheStatus {
    /// Every outcome that is counted.
    pub const OUTCOMES: [&'static str; 9] = [
        "hit",
        "stale_while_revalidate",
        "stale_if_error",
        "quota",
        "assembled",
        "miss",
        "stale",
        "joined",
        "not_cached",
    ];

    /// The outcome under which it is counted and logged.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Hit { detail, .. } => match detail {
                None => "hit",
                Some(Detail::StaleWhileRevalidate) => "stale_while_revalidate",
                Some(Detail::StaleIfError) => "stale_if_error",
                Some(Detail::Quota) => "quota",
                Some(Detail::Assembled) => "assembled",
            },
            Self::Forward {
                collapsed: true, ..
            } => "joined",
            Self::Forward { reason, .. } => match reason {
                FillReason::UriMiss | FillReason::Bypass => "miss",
                FillReason::Stale | FillReason::Request => "stale",
            },
            Self::NotCached => "not_cached",
        }
    }

    /// The field value, such as `unpod-gateway; hit; ttl=29`.
    #[must_use]
    pub fn header_value(&self) -> HeaderValue {
        let item = ItemSerializer::new().bare_item(token_ref("unpod-gateway"));
        let text = match *self {
            Self::Hit { ttl, detail } => {
                let item = item
                    .parameter(key_ref("hit"), true)
                    .parameter(key_ref("ttl"), clamp(ttl));
                match detail {
                    None => item.finish(),
                    Some(detail) => item
                        .parameter(key_ref("detail"), detail.as_token())
                        .finish(),
                }
            }
            Self::Forward {
                reason,
                status,
                stored,
                collapsed,
            } => {
                let mut item = item.parameter(
                    key_ref("fwd"),
                    TokenRef::from_str(reason.as_str()).expect("each reason is a token"),
                );
                if let Some(status) = status {
                    item = item.parameter(key_ref("fwd-status"), sfv::Integer::from(status));
                }
                for (name, set) in [("stored", stored), ("collapsed", collapsed)] {
                    if set {
                        item = item
                            .parameter(KeyRef::from_str(name).expect("both names are keys"), true);
                    }
                }
                item.finish()
            }
            Self::NotCached => item
                .parameter(key_ref("fwd"), token_ref(FillReason::UriMiss.as_str()))
                .finish(),
        };
        // Spaced as RFC 9211 and our documentation write it, so that a person can search for it; parsers take both. No value of ours
        // holds a semicolon.
        HeaderValue::try_from(text.replace(';', "; ")).expect("a structured field is visible ASCII")
    }
}

/// sfv's integers have fifteen digits.
fn clamp(ttl: i64) -> sfv::Integer {
    const MOST: i64 = 999_999_999_999_999;
    sfv::Integer::try_from(ttl.clamp(-MOST, MOST)).expect("clamped to fifteen digits")
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
        }
    }
}
