//! What one credential may spend, counted so that no minute sees more calls than its plan allows.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode, header::DATE};
use tokio::{sync::Notify, time::Instant};

use crate::upstream::{Head, retry_after};

const MINUTE: Duration = Duration::from_secs(60);
/// The longest that an upstream's `Retry-After` is believed.
const LONGEST_HOLD: Duration = Duration::from_secs(3600);
/// One call in this many is kept back from background fills.
const RESERVE: u32 = 5;

/// How much a call matters when few are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A client waits, and has nothing else: it stands in line.
    Waiting,
    /// A client waits, but a stale page may stand in: it takes what is there.
    CanStandIn,
    /// Nobody waits: it leaves the last calls to those who do.
    Background,
}

/// The calls one credential may make.
#[derive(Debug)]
pub struct Purse {
    /// Calls a minute; 0: as many as the upstream's own headers allow.
    configured: AtomicU32,
    opened: Instant,
    /// Who stands in line, first come first served.
    line: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
    /// Told when a call ends, since its place in the minute is known only then.
    call_ended: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_flight: u32,
    /// When each call of the last minute ended, oldest first.
    ended: VecDeque<Instant>,
    /// Calls that others made with this credential, and until when they count.
    others: Option<(u32, Instant)>,
    hold_until: Option<Instant>,
    learned: Option<u32>,
}

impl Purse {
    #[must_use]
    pub fn new(quota_per_minute: u32) -> Self {
        Self {
            configured: AtomicU32::new(quota_per_minute),
            opened: Instant::now(),
            line: tokio::sync::Mutex::default(),
            waiting: AtomicUsize::new(0),
            call_ended: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// Changes what is configured; what was spent stays spent.
    pub fn set_quota(&self, per_minute: u32) {
        self.configured.store(per_minute, Ordering::Relaxed);
    }

    fn configured(&self) -> u32 {
        self.configured.load(Ordering::Relaxed)
    }

    /// Calls allowed a minute, as configured or as the upstream says; `None`: unlimited.
    #[must_use]
    pub fn per_minute(&self) -> Option<u32> {
        self.limit(&self.lock())
    }

    fn limit(&self, state: &State) -> Option<u32> {
        match (self.configured(), state.learned) {
            (0, learned) => learned,
            (configured, learned) => Some(learned.map_or(configured, |l| l.min(configured))),
        }
    }

    /// Calls left in this minute; `None`: no limit is known.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Option<u32> {
        let mut state = self.lock();
        let limit = self.limit(&state)?;
        state.forget(now);
        if state.hold_until.is_some_and(|until| until > now) {
            return Some(0);
        }
        Some(self.allowed(limit, now).saturating_sub(state.used()))
    }

    /// Waits until a call may be made, as long as `urgency` warrants and `patience` allows.
    ///
    /// # Errors
    ///
    /// Returns after what time a call may be possible.
    pub async fn spend(
        self: &Arc<Self>,
        urgency: Urgency,
        patience: Duration,
    ) -> Result<Call, Duration> {
        let now = Instant::now();
        match urgency {
            // Where nothing is counted there is no line to stand in.
            Urgency::Waiting if self.is_bounded(now) => self.stand_in_line(patience).await,
            Urgency::Waiting => self.take(urgency, now),
            Urgency::CanStandIn | Urgency::Background => {
                self.yield_to_those_in_line(now)?;
                self.take(urgency, now)
            }
        }
    }

    /// Whether a call could be had now.
    ///
    /// # Errors
    ///
    /// Returns after what time one may be possible.
    pub fn would_take(&self, urgency: Urgency, now: Instant) -> Result<(), Duration> {
        self.yield_to_those_in_line(now)?;
        self.check(&mut self.lock(), urgency, now)
    }

    /// Who has something to show, or nobody to show it to, takes no call before those who have nothing.
    fn yield_to_those_in_line(&self, now: Instant) -> Result<(), Duration> {
        if self.waiting.load(Ordering::Acquire) > 0 && self.is_bounded(now) {
            return Err(self.wait_of_one());
        }
        Ok(())
    }

    fn is_bounded(&self, now: Instant) -> bool {
        let state = self.lock();
        self.limit(&state).is_some() || state.hold_until.is_some_and(|until| until > now)
    }

    async fn stand_in_line(self: &Arc<Self>, patience: Duration) -> Result<Call, Duration> {
        let given_up = Instant::now() + patience;
        let place = InLine::new(self);
        // Those ahead each need a call too, beyond what is there already.
        let ahead = u32::try_from(place.ahead).unwrap_or(u32::MAX);
        let ahead = ahead.saturating_sub(self.remaining(Instant::now()).unwrap_or(u32::MAX));
        let at_best = self.wait_of_one().saturating_mul(ahead);
        if ahead > 0 && at_best > patience {
            return Err(at_best);
        }
        let _first = self.line.lock().await;
        loop {
            let ended = self.call_ended.notified();
            let now = Instant::now();
            match self.take(Urgency::Waiting, now) {
                Ok(call) => return Ok(call),
                Err(wait) if now + wait > given_up => return Err(wait),
                Err(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = ended => {}
                },
            }
        }
    }

    /// How long a call takes to come free on average.
    fn wait_of_one(&self) -> Duration {
        self.per_minute()
            .map_or(Duration::ZERO, |limit| MINUTE / limit.max(1))
    }

    /// Takes a call if one may be made now.
    fn take(self: &Arc<Self>, urgency: Urgency, now: Instant) -> Result<Call, Duration> {
        let mut state = self.lock();
        self.check(&mut state, urgency, now)?;
        state.in_flight += 1;
        Ok(Call(self.clone()))
    }

    /// Whether one more call is allowed now; if not, how long until it may be.
    fn check(&self, state: &mut State, urgency: Urgency, now: Instant) -> Result<(), Duration> {
        if let Some(until) = state.hold_until.filter(|until| *until > now) {
            return Err(until - now);
        }
        if let Some(limit) = self.limit(state) {
            state.forget(now);
            let reserve = match urgency {
                Urgency::Background => limit / RESERVE,
                Urgency::Waiting | Urgency::CanStandIn => 0,
            };
            let allowed = self.allowed(limit, now) - reserve;
            // Half a minute's calls at once, the rest evenly: a window that starts anywhere sees no double edge.
            let burst = limit.div_ceil(2);
            let burst_window = MINUTE * burst / limit.max(1);
            // The calls of others count for the minute alone: nobody knows when in it they were made.
            let (others, until) = state.others.unwrap_or((0, now));
            let own = allowed.saturating_sub(others);
            state.room(own, MINUTE, now).map_err(|wait| match others {
                0 => wait,
                _ => wait.min(until - now),
            })?;
            state.room(burst.min(allowed), burst_window, now)?;
        }
        Ok(())
    }

    /// What may be spent in the minute that ends now. In the process's first minute it is half: nobody knows what the process
    /// before it spent.
    fn allowed(&self, limit: u32, now: Instant) -> u32 {
        if self.configured() > 0 && now - self.opened < MINUTE {
            limit.div_ceil(2)
        } else {
            limit
        }
    }

    /// Corrects the count by an answer's header.
    ///
    /// Times are taken against the answer's own `Date`, so that neither clock need be right.
    pub fn learn(&self, status: StatusCode, head: &Head) {
        let said = Said::read(&head.headers, head.received_unix);
        let now = head.received;
        let mut state = self.lock();
        if let Some(limit) = said.limit.filter(|limit| *limit > 0) {
            state.learned = Some(limit);
        }
        let reset = said.reset_in.unwrap_or(MINUTE).min(MINUTE);
        if let (Some(limit), Some(remaining)) = (said.limit, said.remaining) {
            state.forget(now);
            let spent = limit.saturating_sub(remaining);
            // This very call is still in flight, and in the upstream's count.
            let ours = state.in_flight + u32::try_from(state.ended.len()).unwrap_or(u32::MAX);
            let others = spent.saturating_sub(ours);
            state.others = (others > 0).then(|| (others, now + reset));
        }
        let hold = match status {
            StatusCode::TOO_MANY_REQUESTS => {
                Some(retry_after(&head.headers, head.received_unix).unwrap_or(reset))
            }
            _ if said.remaining == Some(0) => Some(reset),
            _ => None,
        };
        if let Some(hold) = hold {
            let until = now + hold.min(LONGEST_HOLD);
            state.hold_until = state.hold_until.max(Some(until));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Drops what no longer counts.
    fn forget(&mut self, now: Instant) {
        while self
            .ended
            .front()
            .is_some_and(|ended| now - *ended >= MINUTE)
        {
            self.ended.pop_front();
        }
        if self.others.is_some_and(|(_, until)| until <= now) {
            self.others = None;
        }
    }

    /// Calls that count now: only after [`State::forget`].
    fn used(&self) -> u32 {
        let ended = u32::try_from(self.ended.len()).unwrap_or(u32::MAX);
        let others = self.others.map_or(0, |(count, _)| count);
        ended.saturating_add(self.in_flight).saturating_add(others)
    }

    /// Whether one more call keeps to `most` within `window`; if not, how long until it may.
    fn room(&self, most: u32, window: Duration, now: Instant) -> Result<(), Duration> {
        let Some(left) = most.checked_sub(self.in_flight).filter(|left| *left > 0) else {
            // Nobody knows when a call in flight ends; `call_ended` tells.
            return Err(window);
        };
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        // The call that must be out of the window before another fits.
        let Some(blocking) = self.ended.len().checked_sub(left) else {
            return Ok(());
        };
        let free_at = self.ended[blocking] + window;
        if free_at > now {
            Err(free_at - now)
        } else {
            Ok(())
        }
    }
}

/// A call that was paid for. It counts from its end, which is no earlier than the upstream counts it.
#[derive(Debug)]
pub struct Call(Arc<Purse>);

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight -= 1;
        if self.0.limit(&state).is_some() {
            state.ended.push_back(Instant::now());
        }
        drop(state);
        self.0.call_ended.notify_waiters();
    }
}

/// A place in a purse's line.
struct InLine<'a> {
    purse: &'a Purse,
    ahead: usize,
}

impl<'a> InLine<'a> {
    fn new(purse: &'a Purse) -> Self {
        let ahead = purse.waiting.fetch_add(1, Ordering::AcqRel);
        Self { purse, ahead }
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.purse.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What `X-RateLimit-*` says.
#[derive(Debug, Default)]
struct Said {
    limit: Option<u32>,
    remaining: Option<u32>,
    reset_in: Option<Duration>,
}

impl Said {
    fn read(headers: &HeaderMap, received_unix: i64) -> Self {
        let number = |name: &str| {
            let text = headers.get(name)?.to_str().ok()?;
            text.trim().parse::<i64>().ok()
        };
        let count = |name| number(name).and_then(|count| u32::try_from(count).ok());
        let now = headers
            .get(DATE)
            .and_then(|date| date.to_str().ok())
            .and_then(|date| httpdate::parse_http_date(date).ok())
            .and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok())
            .and_then(|since| i64::try_from(since.as_secs()).ok())
            .unwrap_or(received_unix);
        Self {
            limit: count("x-ratelimit-limit"),
            remaining: count("x-ratelimit-remaining"),
            reset_in: number("x-ratelimit-reset")
                .map(|reset| Duration::from_secs(u64::try_from(reset - now).unwrap_or(0))),
        }
    }
}

#[cfg(test)]
mod tests;
