//! Rate limits per client, and the fields that report them.

use std::{
    fmt::Write as _,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use crate::{config::RateLimitConfig, shared::SharedLimit};

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

/// A budget of requests that fills up again at a steady rate: the generic cell rate algorithm (ITU-T I.371), by hand, since its state is
/// also told by Redis.
#[derive(Debug)]
pub struct Limiter {
    policy: &'static str,
    config: RateLimitConfig,
    /// In which one more request is allowed.
    period: Duration,
    /// When the budget is full again, as far as it is known here.
    full_at: Mutex<Instant>,
    /// The same budget as all replicas count it.
    shared: OnceLock<SharedLimit>,
    /// One permit for each request that may be allowed before Redis has answered those before it.
    unanswered: Arc<Semaphore>,
}

impl Limiter {
    /// A full budget; `policy` is its name towards clients.
    #[must_use]
    pub fn new(policy: &'static str, config: &RateLimitConfig) -> Self {
        let at_once = (config.burst.get() / 20).clamp(1, 1000) as usize;
        Self {
            policy,
            config: config.clone(),
            period: Duration::from_secs_f64(1.0 / config.per_second),
            full_at: Mutex::new(Instant::now()),
            shared: OnceLock::new(),
            unanswered: Arc::new(Semaphore::new(at_once)),
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
    /// It is decided by what is known here, and Redis is told afterwards. Only while a twentieth of the budget is told and not answered,
    /// the next request waits for the answer to it.
    ///
    /// # Errors
    ///
    /// Returns how long it takes until there is one, where there is none.
    pub async fn take(self: &Arc<Self>) -> Result<RateLimit, RateLimit> {
        let Some(shared) = self.shared.get().filter(|shared| shared.is_up()) else {
            return self.take_own();
        };
        if let Ok(permit) = self.unanswered.clone().try_acquire_owned() {
            let own = self.take_own()?;
            let (limiter, shared) = (self.clone(), shared.clone());
            tokio::spawn(async move {
                let sent = Instant::now();
                let charged = shared.charge(limiter.period, limiter.config.burst.get());
                if let Ok(taken) = charged.await {
                    limiter.learn(sent + taken.full_in);
                }
                drop(permit);
            });
            return Ok(own);
        }
        self.look()?;
        let sent = Instant::now();
        // Boxed, as whatever a hit does not wait for.
        let taken = Box::pin(shared.take(self.period, self.config.burst.get())).await;
        let Ok(taken) = taken else {
            return self.take_own();
        };
        self.learn(sent + taken.full_in);
        match taken.is_allowed {
            true => Ok(self.allowed(taken.full_in)),
            false => Err(self.refused(taken.full_in)),
        }
    }

    /// Takes in when Redis knows the budget to be full again: of two times the later counts.
    fn learn(&self, full_at: Instant) {
        let mut known = self.full_at.lock();
        *known = full_at.max(*known);
    }

    fn take_own(&self) -> Result<RateLimit, RateLimit> {
        let mut full_at = self.full_at.lock();
        let now = Instant::now();
        let full_in = full_at.saturating_duration_since(now);
        if full_in + self.period > self.window() {
            return Err(self.refused(full_in));
        }
        *full_at = now + full_in + self.period;
        Ok(self.allowed(full_in + self.period))
    }

    /// Whether there is one, as far as it is known here.
    fn look(&self) -> Result<(), RateLimit> {
        let full_in = (*self.full_at.lock()).saturating_duration_since(Instant::now());
        match full_in + self.period > self.window() {
            true => Err(self.refused(full_in)),
            false => Ok(()),
        }
    }

    fn window(&self) -> Duration {
        self.period * self.config.burst.get()
    }

    /// The state after a request was taken out of a budget that is full again after `full_in`.
    fn allowed(&self, full_in: Duration) -> RateLimit {
        let left = self.window().saturating_sub(full_in).as_nanos() / self.period.as_nanos();
        self.state(u32::try_from(left).unwrap_or(u32::MAX), full_in)
    }

    fn refused(&self, full_in: Duration) -> RateLimit {
        self.state(0, (full_in + self.period).saturating_sub(self.window()))
    }

    fn state(&self, remaining: u32, reset_after: Duration) -> RateLimit {
        RateLimit {
            policy: self.policy,
            quota: self.config.burst.get(),
            window: self.window(),
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
