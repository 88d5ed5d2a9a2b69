//! Authenticates the client before anything else is revealed.

use std::{
    collections::HashMap,
    future::Ready,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::{
    api::{ApiError, Client, context::RequestContext, rate_limit::RateLimit},
    peer::ConnectionInfo,
    telemetry::metrics::{AuthFailure, Metrics},
};

const WINDOW: Duration = Duration::from_secs(60);
/// Addresses whose failures are counted at once.
const MAX_ADDRESSES: usize = 10_000;
/// Time to verify new tokens in, for each second and address with too many failures. It is a fifth of a core, and verifies 700 tokens by
/// ES256 or 4400 by EdDSA: who shares an address with an attacker is let in beside hundreds of forgeries a second.
const VERIFY_FOR_ADDRESS: Duration = Duration::from_millis(200);
/// The same for all such addresses together.
const VERIFY_FOR_ALL: Duration = Duration::from_millis(400);
/// The verification budget is renewed after this.
const VERIFY_AGAIN: Duration = Duration::from_secs(1);

/// Lets authenticated clients through.
#[derive(Clone, Debug)]
pub struct InternalAuthLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    failures: Failures,
    metrics: Arc<Metrics>,
}

impl InternalAuthLayer {
    /// `max_failures` a minute and address, 0 being no limit.
    #[must_use]
    pub fn new(max_failures: u32, metrics: Arc<Metrics>) -> Self {
        Self {
            shared: Arc::new(Shared {
                failures: Failures::new(max_failures),
                metrics,
            }),
        }
    }
}

impl<S> Layer<S> for InternalAuthLayer {
    type Service = InternalAuth<S>;

    fn layer(&self, inner: S) -> InternalAuth<S> {
        InternalAuth {
            inner,
            shared: self.shared.clone(),
        }
    }
}

/// Puts the [`Client`] into the request's context and its account into the request's record, or answers 401.
#[derive(Clone, Debug)]
pub struct InternalAuth<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B, R> Service<Request<B>> for InternalAuth<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.shared.identify_traced(&request) {
            Ok(client) => {
                let context = RequestContext::of_mut(request.extensions_mut());
                let account = client.account.clone();
                context.record.note(|record| record.account = Some(account));
                context.client = Some(client);
                Either::Left(self.inner.call(request))
            }
            Err(reason) => {
                let error = self.shared.refuse(&request, reason);
                Either::Right(std::future::ready(Ok(error.into_answer())))
            }
        }
    }
}

/// The one `Authorization`; two could be read differently by whoever stands before us.
pub(in crate::api) fn sole_authorization(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).into_iter();
    let first = values.next()?;
    values.next().is_none().then(|| first.as_bytes())
}

impl Shared {
    fn identify_traced<B>(&self, request: &Request<B>) -> Result<Arc<Client>, AuthFailure> {
        let mut span = RequestContext::of(request.extensions()).trace.begin("auth");
        let identified = self.identify(request);
        match &identified {
            Ok(client) => span.set_with("gateway.client", || client.name().to_string()),
            Err(reason) => span.fail(reason.as_str()),
        }
        identified
    }

    /// By `Authorization` where there is one, good or bad; else by the connection's certificate.
    fn identify<B>(&self, request: &Request<B>) -> Result<Arc<Client>, AuthFailure> {
        let context = RequestContext::of(request.extensions());
        let (clients, headers) = (&context.policy.clients, request.headers());
        let connection = request.extensions().get::<ConnectionInfo>();
        let certificate = connection.and_then(|connection| connection.certificate.as_ref());
        match certificate {
            Some(certificate) if !headers.contains_key(AUTHORIZATION) => {
                clients.recognize(certificate, SystemTime::now()).cloned()
            }
            Some(_) | None => {
                let may_verify = |cost| {
                    let address = context.client_address;
                    self.failures.may_verify(address, cost, Instant::now())
                };
                clients.authenticate(sole_authorization(headers), SystemTime::now, may_verify)
            }
        }
    }

    fn refuse<B>(&self, request: &Request<B>, reason: AuthFailure) -> ApiError {
        let context = RequestContext::of(request.extensions());
        if reason == AuthFailure::KeysNotLoaded {
            let health = context.policy.clients.issuers().keys_health();
            let next = health.map(|health| health.next_reading.duration_since(Instant::now()));
            let retry_after = next.unwrap_or_default();
            return ApiError::IdentityUnavailable { retry_after };
        }
        let too_many = match reason {
            // The credential was not verified.
            AuthFailure::RateLimited => Some(VERIFY_AGAIN),
            AuthFailure::Missing
            | AuthFailure::Malformed
            | AuthFailure::Unknown
            | AuthFailure::Expired
            | AuthFailure::KeysNotLoaded
            | AuthFailure::UnknownKey
            | AuthFailure::WrongAlgorithm
            | AuthFailure::BadSignature
            | AuthFailure::WrongIssuer
            | AuthFailure::WrongAudience
            | AuthFailure::NotYetValid
            | AuthFailure::BadClaims
            | AuthFailure::UnknownClient => {
                self.failures.count(context.client_address, Instant::now())
            }
        };
        match too_many {
            None => {
                self.metrics.auth.failed(reason);
                ApiError::Unauthenticated
            }
            Some(reset_after) => {
                self.metrics.auth.failed(AuthFailure::RateLimited);
                ApiError::RateLimited(self.limit(reset_after))
            }
        }
    }

    fn limit(&self, reset_after: Duration) -> RateLimit {
        RateLimit {
            policy: "auth-failures",
            quota: self.failures.most,
            window: WINDOW,
            remaining: 0,
            reset_after,
        }
    }
}

/// How often each address failed within its minute, and what verifying tokens for those that failed too often took.
#[derive(Debug)]
pub(in crate::api) struct Failures {
    most: u32,
    began: Instant,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_address: HashMap<Option<IpAddr>, Window>,
    verified: Work,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    count: u32,
    verified: Work,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self {
            began: now,
            count: 0,
            verified: Work::default(),
        }
    }
}

/// What was done within the last second in which anything was.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    second: u64,
    took: Duration,
}

impl Work {
    /// Whether `cost` more in this second is no more than `most`; if so it counts as done.
    fn allows(&mut self, second: u64, cost: Duration, most: Duration) -> bool {
        if self.second != second {
            *self = Self {
                second,
                took: Duration::ZERO,
            };
        }
        let allows = self.took + cost <= most;
        if allows {
            self.took += cost;
        }
        allows
    }
}

impl Failures {
    /// `most` a minute from one address; 0: no limit.
    pub(in crate::api) fn new(most: u32) -> Self {
        Self {
            most,
            began: Instant::now(),
            known: Mutex::default(),
        }
    }

    /// Counts a failure; once there are too many, says how long until they are forgotten.
    pub(in crate::api) fn count(&self, address: Option<IpAddr>, now: Instant) -> Option<Duration> {
        if self.most == 0 {
            return None;
        }
        let address = address.map(network);
        let known = &mut self.known.lock().by_address;
        if known.len() >= MAX_ADDRESSES && !known.contains_key(&address) {
            forget_the_least(known, now);
        }
        let window = known.entry(address).or_insert(Window::new(now));
        if now - window.began >= WINDOW {
            *window = Window::new(now);
        }
        window.count = window.count.saturating_add(1);
        (window.count > self.most).then(|| WINDOW - (now - window.began))
    }

    /// Whether a token from `address` may cost so much time: with too many failures behind it there is little in each second.
    fn may_verify(&self, address: Option<IpAddr>, cost: Duration, now: Instant) -> bool {
        let mut known = self.known.lock();
        let Known {
            by_address,
            verified,
        } = &mut *known;
        let Some(window) = by_address.get_mut(&address.map(network)) else {
            return true;
        };
        if now - window.began >= WINDOW || window.count < self.most {
            return true;
        }
        let second = (now - self.began).as_secs();
        // In this order: an address that has spent its own budget takes nothing from the shared one.
        window.verified.allows(second, cost, VERIFY_FOR_ADDRESS)
            && verified.allows(second, cost, VERIFY_FOR_ALL)
    }
}

/// Makes room: whose minute is over goes, and the half with the fewest failures. So who fails once from each of many addresses (an
/// IPv6 network has thousands of /64s) forgets its own, and nobody who failed too often.
fn forget_the_least(known: &mut HashMap<Option<IpAddr>, Window>, now: Instant) {
    let mut counts: Vec<u32> = known.values().map(|window| window.count).collect();
    let middle = counts.len() / 2;
    let (_, median, _) = counts.select_nth_unstable(middle);
    known.retain(|_, window| now - window.began < WINDOW && window.count > *median);
}

/// An IPv6 host has a /64 of addresses to choose from.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn failures_beyond_the_limit_wait_for_the_minute_to_end() {
        let failures = Failures::new(2);
        let now = Instant::now();
        let from = address("192.0.2.1");
        assert_eq!(failures.count(from, now), None);
        assert_eq!(failures.count(from, now), None);
        assert_eq!(
            failures.count(from, now + Duration::from_secs(20)),
            Some(Duration::from_secs(40))
        );
        assert_eq!(failures.count(address("192.0.2.2"), now), None);
        assert_eq!(failures.count(from, now + WINDOW), None);
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_limit_tokens_are_verified_for_a_part_of_each_second() {
        let failures = Failures::new(1);
        let start = Instant::now();
        let cost = Duration::from_millis(1);
        let verified = |from: &str, now| {
            let tries = 0..1000;
            tries
                .filter(|_| failures.may_verify(address(from), cost, now))
                .count()
        };
        let of_address = 200;
        assert_eq!(verified("192.0.2.1", start), 1000, "without a failure");
        for from in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            failures.count(address(from), start);
        }
        assert_eq!(verified("192.0.2.1", start), of_address);
        assert_eq!(verified("192.0.2.1", start), 0);
        assert_eq!(verified("192.0.2.2", start), of_address);
        assert_eq!(verified("192.0.2.3", start), 0, "all have had theirs");
        assert_eq!(verified("192.0.2.4", start), 1000);
        let next = start + VERIFY_AGAIN;
        assert_eq!(verified("192.0.2.3", next), of_address);
        assert_eq!(verified("192.0.2.1", start + WINDOW), 1000);
        let unlimited = Failures::new(0);
        unlimited.count(address("192.0.2.1"), start);
        let from = address("192.0.2.1");
        assert!((0..1000).all(|_| unlimited.may_verify(from, cost, start)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_ipv6_network_is_one_address_and_zero_is_no_limit() {
        let failures = Failures::new(1);
        let now = Instant::now();
        assert_eq!(failures.count(address("2001:db8::1"), now), None);
        assert!(failures.count(address("2001:db8::2"), now).is_some());
        assert_eq!(failures.count(address("2001:db8:0:1::1"), now), None);
        let unlimited = Failures::new(0);
        assert!((0..100).all(|_| unlimited.count(None, now).is_none()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_map_of_addresses_is_bounded_and_forgets_the_least_first() {
        let networks = |number: u32| {
            let host = u128::from(number) << 64 | 0x2001_0db8 << 96;
            IpAddr::V6(host.into())
        };
        let anywhere = |number: u32| IpAddr::V4(number.into());
        for (name, attacker) in [
            ("one /48", &networks as &dyn Fn(u32) -> IpAddr),
            ("anywhere", &anywhere),
        ] {
            let failures = Failures::new(1);
            let now = Instant::now();
            let blocked = address("203.0.113.9");
            failures.count(blocked, now);
            assert!(failures.count(blocked, now).is_some(), "{name}");
            for number in 0..3 * MAX_ADDRESSES as u32 {
                failures.count(Some(attacker(number)), now);
                assert!(failures.known.lock().by_address.len() <= MAX_ADDRESSES);
            }
            assert!(failures.count(blocked, now).is_some(), "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_all_failed_too_often_make_room_too() {
        let failures = Failures::new(1);
        let now = Instant::now();
        for number in 0..2 * MAX_ADDRESSES as u32 {
            for _ in 0..3 {
                failures.count(Some(IpAddr::V4(number.into())), now);
            }
        }
        assert!(failures.known.lock().by_address.len() <= MAX_ADDRESSES);
    }
}
