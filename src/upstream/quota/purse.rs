//! What one credential may spend, counted so that no minute sees more calls than its plan allows.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::shared::{Calls, Grant, Lost, SharedCall};
use crate::upstream::{
    CallLimits, Claims, Urgency,
    line::{Line, TurnedAway},
};

const MINUTE: Duration = Duration::from_secs(60);
/// The longest that an upstream's `Retry-After` is believed.
const LONGEST_HOLD: Duration = Duration::from_secs(3600);
/// The shortest pause after a throttle that names none; it doubles while throttles follow each other, up to a minute.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Calls of the last minute that are remembered: no quota is larger.
const MOST_REMEMBERED: usize = 65_536;
/// One call in this many is kept back from background fills.
const RESERVE: u32 = 5;

/// How long who may wait waits for what replicas share to be back: it may be any moment.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Why no call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCall {
    /// None is left; one may be after this time.
    Spent(Duration),
    /// Too many wait for one.
    LineFull,
}

impl From<Duration> for NoCall {
    fn from(wait: Duration) -> Self {
        Self::Spent(wait)
    }
}

impl From<TurnedAway> for NoCall {
    fn from(_: TurnedAway) -> Self {
        Self::LineFull
    }
}

/// The calls one credential may make.
#[derive(Debug)]
pub struct Purse {
    /// Calls a minute; 0: as many as the upstream's own headers allow.
    configured: AtomicU32,
    /// Who waits for a call; woken when one ends, since its place in the minute is known only then.
    line: Line,
    /// What replicas share, where they do: then each call is asked for there too.
    shared: OnceLock<Arc<Calls>>,
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
    /// Throttles in a row that named no pause.
    unexplained_throttles: u32,
    learned: Option<u32>,
    /// Until then all replicas together have spent what there is.
    shared_until: Option<Instant>,
    /// Until then the process before this one may have spent what nobody knows of.
    cautious_until: Option<Instant>,
    is_closed: bool,
}

/// What was spent of a minute, as times before or after the moment it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// How long ago each call ended.
    pub ago: Vec<Duration>,
    /// Calls that others made, and how long they count.
    pub others: Option<(u32, Duration)>,
    /// How long no call may be made.
    pub hold: Option<Duration>,
    /// Calls a minute as the upstream told.
    pub learned: Option<u32>,
}

impl Purse {
    /// For how long what was spent counts.
    pub const MEMORY: Duration = MINUTE;

    /// A purse of `quota_per_minute` calls, for which `max_queue` may wait.
    #[must_use]
    pub fn new(quota_per_minute: u32, max_queue: usize) -> Self {
        Self {
            configured: AtomicU32::new(quota_per_minute),
            line: Line::new(max_queue),
            shared: OnceLock::new(),
            state: Mutex::new(State {
                cautious_until: Some(Instant::now() + MINUTE),
                ..State::default()
            }),
        }
    }

    /// Asks for each call among all replicas from now on; what is shared already stays so.
    pub fn share(&self, calls: Arc<Calls>) {
        let _ = self.shared.set(calls);
    }

    /// What replicas share.
    #[must_use]
    pub fn shared(&self) -> Option<&Arc<Calls>> {
        self.shared.get()
    }

    /// What a purse after this one must know. No call is made from now on.
    pub fn close(&self, now: Instant) -> Spent {
        let mut state = self.state.lock();
        state.forget(now);
        let told = |until: Option<Instant>| until.map(|until| until.saturating_duration_since(now));
        // A call in flight ends by now, or is never heard of again.
        let in_flight = (0..state.in_flight).map(|_| Duration::ZERO);
        let spent = Spent {
            ago: state
                .ended
                .iter()
                .map(|ended| now.saturating_duration_since(*ended))
                .chain(in_flight)
                .collect(),
            others: state.others.map(|(count, until)| (count, until - now)),
            hold: told(state.hold_until).filter(|hold| !hold.is_zero()),
            learned: state.learned,
        };
        state.is_closed = true;
        spent
    }

    /// Goes on where the purse before this one ended, so that its first minute need not be a cautious one.
    pub fn resume(&self, spent: &Spent, now: Instant) {
        let mut state = self.state.lock();
        // What was longer ago than this machine runs counts no more.
        let at = |ago: Duration| now.checked_sub(ago);
        state.ended = spent.ago.iter().filter_map(|ago| at(*ago)).collect();
        state.ended.make_contiguous().sort_unstable();
        state.others = spent
            .others
            .map(|(count, left)| (count, now + left.min(MINUTE)));
        state.hold_until = spent.hold.map(|hold| now + hold.min(LONGEST_HOLD));
        state.learned = spent.learned;
        state.cautious_until = None;
    }

    /// Changes what is configured; what was spent stays spent.
    pub fn set_quota(&self, per_minute: u32) {
        self.configured.store(per_minute, Ordering::Relaxed);
        self.line.wake();
    }

    fn configured(&self) -> u32 {
        self.configured.load(Ordering::Relaxed)
    }

    /// Calls allowed a minute, as configured or as the upstream says; `None`: unlimited.
    #[must_use]
    pub fn per_minute(&self) -> Option<u32> {
        self.limit(&self.state.lock())
    }

    fn limit(&self, state: &State) -> Option<u32> {
        let limit = match (self.configured(), state.learned) {
            (0, learned) => learned?,
            (configured, learned) => learned.map_or(configured, |l| l.min(configured)),
        };
        Some(
            self.shared
                .get()
                .map_or(limit, |calls| calls.share_of(limit)),
        )
    }

    /// Calls left in this minute; `None`: no limit is known.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Option<u32> {
        let mut state = self.state.lock();
        let limit = self.limit(&state)?;
        state.forget(now);
        if !state.held_for(now).is_zero() {
            return Some(0);
        }
        Some(
            self.allowed(&state, limit, now)
                .saturating_sub(state.used()),
        )
    }

    /// How many calls wait for the quota.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.line.len()
    }

    /// Waits until a call may be made, as long as the most urgent of `claims` warrants, and no longer than until `given_up`.
    ///
    /// Clients that wait take turns, so that one that wants many calls leaves the others theirs.
    ///
    /// # Errors
    ///
    /// Returns why there is none.
    pub async fn spend(
        self: &Arc<Self>,
        claims: &Claims,
        given_up: Instant,
    ) -> Result<Call, NoCall> {
        loop {
            let urgency = claims.urgency();
            match self.spend_as(urgency, claims, given_up).await {
                // Somebody joined meanwhile to whom it matters more.
                Err(_) if claims.urgency() < urgency => {}
                spent => return spent,
            }
        }
    }

    async fn spend_as(
        self: &Arc<Self>,
        urgency: Urgency,
        claims: &Claims,
        given_up: Instant,
    ) -> Result<Call, NoCall> {
        let now = Instant::now();
        match urgency {
            // Where nothing is counted there is no line to stand in.
            Urgency::Waiting | Urgency::Retry if self.is_bounded(now) => {
                self.stand_in_line(claims, given_up).await
            }
            Urgency::Waiting | Urgency::Retry => Ok(self.take(urgency, now).await?),
            Urgency::CanStandIn | Urgency::Background => {
                self.yield_to_those_in_line(now)?;
                Ok(self.take(urgency, now).await?)
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
        self.check(&mut self.state.lock(), urgency, now)
    }

    /// Who has something to show, or nobody to show it to, takes no call before those who have nothing.
    fn yield_to_those_in_line(&self, now: Instant) -> Result<(), Duration> {
        if !self.line.is_empty() && self.is_bounded(now) {
            return Err(self.wait_of_one().max(self.state.lock().held_for(now)));
        }
        Ok(())
    }

    fn is_bounded(&self, now: Instant) -> bool {
        let state = self.state.lock();
        self.limit(&state).is_some() || !state.held_for(now).is_zero()
    }

    async fn stand_in_line(
        self: &Arc<Self>,
        claims: &Claims,
        given_up: Instant,
    ) -> Result<Call, NoCall> {
        let now = Instant::now();
        // Where nobody waits there is no line to stand in, nor need there be room for one.
        if self.line.is_empty()
            && let Ok(call) = self.take(claims.urgency(), now).await
        {
            return Ok(call);
        }
        // Those ahead each need a call too, beyond what is there already.
        let ahead = u32::try_from(self.line.ahead_of(claims)).unwrap_or(u32::MAX);
        let ahead = ahead.saturating_sub(self.remaining(now).unwrap_or(u32::MAX));
        let in_line = self.wait_of_one().saturating_mul(ahead);
        let at_best = in_line.max(self.state.lock().held_for(now));
        if ahead > 0 && now + at_best > given_up {
            return Err(at_best.into());
        }
        let taken = self.line.stand(claims, || async {
            let now = Instant::now();
            match self.take(claims.urgency(), now).await {
                Ok(call) => ControlFlow::Break(Ok(call)),
                Err(wait) if now + wait > given_up => ControlFlow::Break(Err(wait)),
                Err(wait) => ControlFlow::Continue(Some(wait)),
            }
        });
        // Who is not first is not asked whether it gives up.
        match tokio::time::timeout_at(given_up, taken).await {
            Ok(taken) => Ok(taken??),
            Err(_) => {
                let held = self.state.lock().held_for(Instant::now());
                Err(self.wait_of_one().max(held).into())
            }
        }
    }

    /// How long a call takes to come free on average.
    fn wait_of_one(&self) -> Duration {
        self.per_minute()
            .map_or(Duration::ZERO, |limit| MINUTE / limit.max(1))
    }

    /// Takes a call if one may be made now, by what this process counts and by what all replicas do.
    async fn take(self: &Arc<Self>, urgency: Urgency, now: Instant) -> Result<Call, Duration> {
        let mut call = self.take_own(urgency, now)?;
        if let Some(calls) = self.shared.get() {
            call.shared = self.take_shared(calls, urgency).await?;
        }
        call.is_made = true;
        Ok(call)
    }

    fn take_own(self: &Arc<Self>, urgency: Urgency, now: Instant) -> Result<Call, Duration> {
        let mut state = self.state.lock();
        self.check(&mut state, urgency, now)?;
        state.in_flight += 1;
        Ok(Call {
            purse: self.clone(),
            shared: None,
            is_made: false,
        })
    }

    /// Takes one of the calls of all replicas; `None` where nothing is counted.
    async fn take_shared(
        &self,
        calls: &Arc<Calls>,
        urgency: Urgency,
    ) -> Result<Option<SharedCall>, Duration> {
        let Some(limit) = self.per_minute() else {
            return Ok(None);
        };
        match calls.ask(limit - reserve(limit, urgency)).await {
            Ok(Grant::Granted(call)) => Ok(Some(call)),
            Ok(Grant::Refused(wait)) => {
                // What is kept back from it others may still have.
                if urgency != Urgency::Background {
                    self.state.lock().shared_until = Some(Instant::now() + wait);
                }
                Err(wait)
            }
            // It may have been lost just now: then what the others spent is not known.
            Err(Lost) => {
                self.check_shared(&self.state.lock(), Instant::now())?;
                Ok(Some(calls.alone()))
            }
        }
    }

    /// Whether one more call is allowed now; if not, how long until it may be.
    fn check(&self, state: &mut State, urgency: Urgency, now: Instant) -> Result<(), Duration> {
        if state.is_closed {
            return Err(MINUTE);
        }
        let held = state.held_for(now);
        match self.check_count(state, urgency, now) {
            Err(wait) => Err(wait.max(held)),
            Ok(()) if held.is_zero() => Ok(()),
            Ok(()) => Err(held),
        }
    }

    /// Whether what was spent leaves one more call; if not, how long until it may.
    fn check_count(
        &self,
        state: &mut State,
        urgency: Urgency,
        now: Instant,
    ) -> Result<(), Duration> {
        if let Some(limit) = self.limit(state) {
            self.check_shared(state, now)?;
            state.forget(now);
            let allowed = self.allowed(state, limit, now) - reserve(limit, urgency);
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

    /// Whether all replicas together have a call left, as far as this one knows without asking.
    fn check_shared(&self, state: &State, now: Instant) -> Result<(), Duration> {
        let Some(calls) = self.shared.get() else {
            return Ok(());
        };
        if let Some(hold) = calls.hold(now) {
            return Err(hold.min(LOOK_AGAIN));
        }
        match state.shared_until.filter(|until| *until > now) {
            Some(until) if calls.is_counted() => Err(until - now),
            Some(_) | None => Ok(()),
        }
    }

    /// What may be spent in the minute that ends now. In the process's first minute it is half: nobody knows what the process
    /// before it spent.
    fn allowed(&self, state: &State, limit: u32, now: Instant) -> u32 {
        let is_cautious = state.cautious_until.is_some_and(|until| until > now);
        if self.configured() > 0 && is_cautious {
            limit.div_ceil(2)
        } else {
            limit
        }
    }

    /// Corrects the count by what an answer's header says that was received at `now`.
    pub fn learn(&self, limits: &CallLimits, now: Instant) {
        let mut state = self.state.lock();
        if state.held_for(now).is_zero() {
            state.unexplained_throttles = 0;
        }
        let reset = limits.reset_in.unwrap_or(MINUTE).min(MINUTE);
        state.note_limits(limits, now + reset, now);
        if limits.is_spent() {
            self.hold(&mut state, reset, now);
        }
    }

    /// Makes no call for as long as the upstream asks that refused one at `now` for want of quota; returns how long that is.
    ///
    /// Where it names no time, or one that has passed, there is a pause all the same, and a longer one each time.
    pub fn throttled(&self, limits: &CallLimits, now: Instant) -> Duration {
        let mut state = self.state.lock();
        let asked = limits.pause();
        let until = now + asked.unwrap_or(MINUTE).min(MINUTE);
        state.note_limits(limits, until, now);
        let pause = match asked {
            Some(pause) => pause,
            // Calls that were under way together are refused together: that is one throttle.
            None if !state.held_for(now).is_zero() => Duration::ZERO,
            None => {
                let limit = self.limit(&state);
                state.unexplained_pause(limit)
            }
        };
        self.hold(&mut state, pause, now);
        // Who asks next is told the same.
        let next = self.check(&mut state, Urgency::Waiting, now);
        next.err().unwrap_or_default()
    }

    fn hold(&self, state: &mut State, hold: Duration, now: Instant) {
        let hold = hold.min(LONGEST_HOLD);
        let until = Some(now + hold);
        if until <= state.hold_until {
            return;
        }
        state.hold_until = until;
        if let Some(calls) = self.shared.get() {
            calls.hold_all(hold);
        }
    }
}

/// How many of `limit` calls are kept back from who is no more urgent.
fn reserve(limit: u32, urgency: Urgency) -> u32 {
    match urgency {
        Urgency::Background => limit / RESERVE,
        Urgency::Waiting | Urgency::Retry | Urgency::CanStandIn => 0,
    }
}

impl State {
    /// How long no call may be made because the upstream asked for it.
    fn held_for(&self, now: Instant) -> Duration {
        let until = self.hold_until.unwrap_or(now);
        until.saturating_duration_since(now)
    }

    /// Takes in what the upstream says of its count; what others spent counts until `until`.
    fn note_limits(&mut self, limits: &CallLimits, until: Instant, now: Instant) {
        if let Some(limit) = limits.limit.filter(|limit| *limit > 0) {
            self.learned = Some(limit);
        }
        let (Some(limit), Some(remaining)) = (limits.limit, limits.remaining) else {
            return;
        };
        self.forget(now);
        let spent = limit.saturating_sub(remaining);
        // This very call is still in flight, and in the upstream's count.
        let ours = self.in_flight + u32::try_from(self.ended.len()).unwrap_or(u32::MAX);
        let others = spent.saturating_sub(ours);
        self.others = (others > 0).then_some((others, until));
    }

    /// How long to pause after a throttle that does not say: a call's share of the minute, twice as long each time.
    fn unexplained_pause(&mut self, limit: Option<u32>) -> Duration {
        let share = limit.map_or(Duration::ZERO, |limit| MINUTE / limit.max(1));
        let doubled = 1 << self.unexplained_throttles.min(6);
        self.unexplained_throttles += 1;
        (share.max(SHORTEST_PAUSE) * doubled).min(MINUTE)
    }

    fn note_ended(&mut self, now: Instant) {
        self.forget(now);
        if self.ended.len() == MOST_REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(now);
    }

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
pub struct Call {
    purse: Arc<Purse>,
    /// The same as all replicas count it.
    shared: Option<SharedCall>,
    is_made: bool,
}

impl Call {
    /// Gives it back: it was never made.
    pub fn give_back(mut self) {
        self.is_made = false;
        if let Some(shared) = self.shared.take() {
            shared.give_back();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.purse.state.lock();
        state.in_flight -= 1;
        if self.is_made {
            // Without a limit, too: one may be set within the minute.
            state.note_ended(Instant::now());
        }
        drop(state);
        self.purse.line.wake();
    }
}

#[cfg(test)]
mod tests;
