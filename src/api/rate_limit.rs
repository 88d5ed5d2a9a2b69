//! Rate limits per client, and the fields that report them.

use std::{
    fmt::Write as _,
    sync::{Arc, OnceLock},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::StateInformationMiddleware,
    state::{InMemoryState, NotKeyed},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::{
    config::RateLimitConfig,
    shared::{SharedLimit, Taken},
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The state of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The limit's name.
    pub policy: &'static str,
    pub quota: u32,
    pub window: Duration,
    pub remaining: u32,
    /// Until the budget is full again; of a spent limit, until one request is allowed.
    pub reset_after: Duration,
}

/// Writes where `limits` stand as fields of draft-ietf-httpapi-ratelimit-headers-10; none where there are none.
pub fn write(limits: &[RateLimit], headers: &mut HeaderMap) {
    if limits.is_empty() {
        return;
    }
    let (mut policies, mut states) = (String::new(), String::new());
    for limit in limits {
        let separator = if policies.is_empty() { "" } else { ", " };
        let RateLimit {
            policy,
            quota,
            remaining,
            ..
        } = limit;
        let (window, reset) = (
            whole_seconds(limit.window),
            whole_seconds(limit.reset_after),
        );
        // Writing to a String cannot fail.
        let _ = write!(policies, "{separator}\"{policy}\";q={quota};w={window}");
        let _ = write!(states, "{separator}\"{policy}\";r={remaining};t={reset}");
    }
    for (name, value) in [(RATE_LIMIT_POLICY, policies), (RATE_LIMIT, states)] {
        let value = HeaderValue::try_from(value);
        headers.insert(
            name,
            value.expect("numbers and fixed names are visible ASCII"),
        );
    }
}

/// Rounded up, so that a client that waits this long waits long enough.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A budget of requests that fills up again at a steady rate.
#[derive(Debug)]
pub struct Limiter {
    policy: &'static str,
    config: RateLimitConfig,
    /// In which one more request is allowed.
    period: Duration,
    cells: RateLimiter<NotKeyed, InMemoryState, TokioClock, StateInformationMiddleware>,
    /// The same budget as all replicas count it.
    shared: OnceLock<SharedLimit>,
}

impl Limiter {
    /// A full budget; `policy` is its name towards clients.
    #[must_use]
    pub fn new(policy: &'static str, config: &RateLimitConfig) -> Self {
        let period = Duration::from_secs_f64(1.0 / config.per_second);
        let quota =
            Quota::with_period(period).expect("a rate is checked to be no more than 1000000");
        Self {
            policy,
            config: config.clone(),
            period,
            cells: RateLimiter::new(
                quota.allow_burst(config.burst),
                InMemoryState::default(),
                TokioClock(Instant::now()),
            ),
            shared: OnceLock::new(),
        }
    }

    /// This budget, drawn on at all replicas together for as long as they can be asked.
    pub fn share(&self, shared: impl FnOnce() -> SharedLimit) {
        self.shared.get_or_init(shared);
    }

    /// What it was made of.
    #[must_use]
    pub fn config(&self) -> &RateLimitConfig {
        &self.config
    }

    /// Takes one request out of the budget and says what is left.
    ///
    /// # Errors
    ///
    /// Returns how long it takes until there is one, where there is none.
    pub async fn take(&self) -> Result<RateLimit, RateLimit> {
        // Always: if Redis becomes unreachable, what was spent here still counts.
        let own = self.take_own();
        let Some(shared) = self.shared.get() else {
            return own;
        };
        // Boxed, as whatever a hit does not wait for.
        let taken = Box::pin(shared.take(self.period, self.config.burst.get())).await;
        match taken {
            Ok(Taken::Yes { left, full_in }) => Ok(self.state(left, full_in)),
            Ok(Taken::No { wait }) => Err(self.state(0, wait)),
            Err(_lost) => own,
        }
    }

    fn take_own(&self) -> Result<RateLimit, RateLimit> {
        match self.cells.check() {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let missing = self.config.burst.get().saturating_sub(remaining);
                Ok(self.state(remaining, self.period * missing))
            }
            Err(refused) => {
                let wait = refused.wait_time_from(self.cells.clock().now());
                // It may have come between the two looks at the clock: but this request was refused.
                Err(self.state(0, wait.max(Duration::from_nanos(1))))
            }
        }
    }

    fn state(&self, remaining: u32, reset_after: Duration) -> RateLimit {
        RateLimit {
            policy: self.policy,
            quota: self.config.burst.get(),
            window: self.period * self.config.burst.get(),
            remaining,
            reset_after,
        }
    }
}

/// Takes one request out of each of `limiters`, the narrowest first.
///
/// One that refuses ends it: what the narrower ones before it gave is not given back. That costs only who is refused anyway; a
/// wider budget, which others share, is asked when all others have allowed the request.
///
/// # Errors
///
/// Returns the limit that is spent.
pub(super) async fn take_all(limiters: &[Arc<Limiter>]) -> Result<Vec<RateLimit>, RateLimit> {
    let mut limits = Vec::with_capacity(limiters.len());
    for limiter in limiters {
        limits.push(limiter.take().await?);
    }
    Ok(limits)
}

/// tokio's clock, which tests can turn, as time since some moment.
#[derive(Clone, Copy, Debug)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use sfv::{BareItem, List, ListEntry, Parser};

    use super::*;

    fn limiter(policy: &'static str, per_second: f64, burst: u32) -> Limiter {
        let burst = NonZeroU32::new(burst).unwrap();
        Limiter::new(policy, &RateLimitConfig { per_second, burst })
    }

    fn left(limiter: &Limiter) -> (u32, Duration) {
        let state = limiter.take_own().unwrap();
        (state.remaining, state.reset_after)
    }

    fn wait(limiter: &Limiter) -> Duration {
        limiter.take_own().unwrap_err().reset_after
    }

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_may_be_spent_at_once_and_fills_up_at_the_rate() {
        let limiter = limiter("default", 2.0, 3);
        assert_eq!(left(&limiter), (2, milliseconds(500)));
        assert_eq!(left(&limiter), (1, milliseconds(1000)));
        assert_eq!(left(&limiter), (0, milliseconds(1500)));
        assert_eq!(wait(&limiter), milliseconds(500));
        // Asking in vain costs nothing.
        assert_eq!(wait(&limiter), milliseconds(500));

        tokio::time::advance(milliseconds(499)).await;
        assert_eq!(wait(&limiter), milliseconds(1));
        tokio::time::advance(milliseconds(1)).await;
        assert_eq!(left(&limiter), (0, milliseconds(1500)));
        assert_eq!(wait(&limiter), milliseconds(500));

        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(left(&limiter), (2, milliseconds(500)));
    }

    #[tokio::test(start_paused = true)]
    async fn rates_from_three_hours_to_a_microsecond_keep_their_count() {
        for (per_second, burst, period) in [
            (0.0001, 1_000_000, Duration::from_secs(10_000)),
            (0.5, 1, Duration::from_secs(2)),
            (1_000_000.0, 2, Duration::from_micros(1)),
        ] {
            let limiter = limiter("default", per_second, burst);
            for spent in 1..=burst {
                assert_eq!(limiter.take_own().unwrap().remaining, burst - spent);
            }
            assert_eq!(wait(&limiter), period, "{per_second}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_that_others_share_is_spared_by_who_is_refused_anyway() {
        let shared = Arc::new(limiter("default", 1.0, 3));
        let own = |burst| Arc::new(limiter("token", 1.0, burst));
        let greedy = [own(1), shared.clone()];
        let modest = [own(5), shared.clone()];
        let remaining = |limits: Vec<RateLimit>| -> Vec<_> {
            limits.iter().map(|limit| limit.remaining).collect()
        };

        assert_eq!(take_all(&greedy).await.map(remaining), Ok(vec![0, 2]));
        for _ in 0..5 {
            assert_eq!(take_all(&greedy).await.unwrap_err().policy, "token");
        }
        assert_eq!(take_all(&modest).await.map(remaining), Ok(vec![4, 1]));
        assert_eq!(take_all(&modest).await.map(remaining), Ok(vec![3, 0]));
        assert_eq!(take_all(&modest).await.unwrap_err().policy, "default");
        assert_eq!(take_all(&[]).await, Ok(Vec::new()));
    }

    fn parsed(headers: &HeaderMap, name: &str) -> List {
        let value = headers[name].as_bytes();
        Parser::new(value).parse().unwrap()
    }

    /// The member of `list` called `policy`: its parameters and their integers.
    fn parameters(list: &List, policy: &str) -> Vec<(String, i64)> {
        let found = list.iter().find_map(|entry| match entry {
            ListEntry::Item(item)
                if item
                    .bare_item
                    .as_string()
                    .is_some_and(|name| name.as_str() == policy) =>
            {
                Some(item)
            }
            ListEntry::Item(_) | ListEntry::InnerList(_) => None,
        });
        let parameters = found.unwrap().params.iter();
        let integer = |value: &BareItem| i64::from(value.as_integer().unwrap());
        parameters
            .map(|(name, value)| (name.to_string(), integer(value)))
            .collect()
    }

    #[test]
    fn the_fields_are_structured_fields_with_whole_seconds() {
        let limit = |policy, reset_after| RateLimit {
            policy,
            quota: 100,
            window: milliseconds(1999),
            remaining: 7,
            reset_after,
        };
        let limits = [
            limit("token", milliseconds(1)),
            limit("default", milliseconds(2000)),
        ];
        let mut headers = HeaderMap::new();

        write(&limits, &mut headers);

        let policies = parsed(&headers, "ratelimit-policy");
        let states = parsed(&headers, "ratelimit");
        assert_eq!((policies.len(), states.len()), (2, 2));
        let named = |pairs: &[(&str, i64)]| -> Vec<_> {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect()
        };
        for policy in ["token", "default"] {
            assert_eq!(
                parameters(&policies, policy),
                named(&[("q", 100), ("w", 2)])
            );
        }
        assert_eq!(parameters(&states, "token"), named(&[("r", 7), ("t", 1)]));
        assert_eq!(parameters(&states, "default"), named(&[("r", 7), ("t", 2)]));

        let mut none = HeaderMap::new();
        write(&[], &mut none);
        assert!(none.is_empty());
    }
}
