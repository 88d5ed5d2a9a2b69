//! The decisions behind the checks, apart from all I/O.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::call::{Call, Key};

/// How long an invalidation may take to a replica that is connected to Redis. It takes milliseconds; the rest is for a busy machine.
pub(crate) const CONNECTED: Duration = Duration::from_secs(1);
/// How long a replica may take to connect again once Redis is back: `cache.redis.recheck` (5 s), by which it notices a dead connection, and 2 s.
pub(crate) const RECONNECTS: Duration = Duration::from_secs(7);
/// What a quota counts over.
const MINUTE: Duration = Duration::from_secs(60);

/// A time in which a gateway was not at its best.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage {
    pub(crate) kind: OutageKind,
    pub(crate) from: Instant,
    /// `None` while it lasts.
    pub(crate) to: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum OutageKind {
    /// Redis could not be reached, or failed; until the gateway says that it is connected.
    Redis,
    /// Killed, until it is ready again.
    Killed,
    /// Told to end, until it is ready again. It has to answer what was asked before.
    Stopped,
}

impl Outage {
    fn overlaps(&self, from: Instant, to: Instant) -> bool {
        self.from <= to && self.to.is_none_or(|end| end >= from)
    }

    fn is_restart(&self) -> bool {
        self.kind != OutageKind::Redis
    }

    /// Whether a request may have found no gateway there.
    pub(crate) fn excuses_no_answer(&self, sent: Instant, failed: Instant) -> bool {
        match self.kind {
            OutageKind::Redis => false,
            OutageKind::Killed => self.overlaps(sent, failed),
            OutageKind::Stopped => self.overlaps(sent, failed) && sent >= self.from,
        }
    }
}

/// Pages whose calls started before `cause` are void: by a purge, or because the upstream refused the space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Invalidation {
    /// `None`: all spaces.
    pub(crate) space: Option<&'static str>,
    /// When the purge was sent, or the space revoked.
    pub(crate) cause: Instant,
    /// When the purge was answered, or the refusal.
    pub(crate) known: Instant,
    /// The gateway that was told, if it is known.
    pub(crate) by: Option<usize>,
    /// A purge answered 202: it is not in Redis yet.
    pub(crate) is_pending: bool,
}

/// Whether `gateway` must have heard of an invalidation when a request is sent at `sent`. `outages` are those of each gateway.
///
/// A gateway that is cut off hears of it within [`CONNECTED`] after its outage. Where the gateway that was told died before the others could
/// hear of it, nobody has to know.
pub(crate) fn must_be_heard(
    invalidation: &Invalidation,
    gateway: usize,
    sent: Instant,
    outages: &[Vec<Outage>],
) -> bool {
    let Invalidation {
        cause,
        known,
        by,
        is_pending,
        ..
    } = *invalidation;
    let has_restarted = outages[gateway]
        .iter()
        .any(|outage| outage.is_restart() && outage.overlaps(cause, sent));
    if by == Some(gateway) && !has_restarted {
        return sent > known;
    }
    let sources: Vec<_> = by.map_or_else(|| (0..outages.len()).collect(), |by| vec![by]);
    let concerned = || {
        sources
            .iter()
            .chain([&gateway])
            .flat_map(|number| &outages[*number])
    };
    let mut until = known + CONNECTED;
    let mut met_an_outage = is_pending || by.is_none();
    loop {
        let met = concerned().filter(|outage| outage.overlaps(cause, until));
        let mut last = until;
        for outage in met {
            met_an_outage |= !outage.is_restart();
            let Some(end) = outage.to else { return false };
            last = last.max(end + CONNECTED);
        }
        if last == until {
            break;
        }
        until = last;
    }
    let mut lost = sources.iter().flat_map(|source| &outages[*source]);
    if met_an_outage && lost.any(|outage| outage.is_restart() && outage.overlaps(cause, until)) {
        return false;
    }
    // Redis may have lost it, and the others tell it again as they connect; a gateway that has forgotten cannot know before.
    if has_restarted {
        let ends = outages[gateway]
            .iter()
            .filter(|outage| outage.overlaps(cause, sent));
        for end in ends.map(|outage| outage.to) {
            let Some(end) = end else { return false };
            until = until.max(end + CONNECTED);
        }
    }
    sent > until
}

/// The most calls that started within one minute, and when that minute ended. `starts` are in order.
pub(crate) fn busiest_minute(starts: impl Iterator<Item = Instant>) -> (usize, Option<Instant>) {
    let mut window = VecDeque::new();
    let mut busiest = (0, None);
    for start in starts {
        window.push_back(start);
        while window
            .front()
            .is_some_and(|first| start.duration_since(*first) >= MINUTE)
        {
            window.pop_front();
        }
        if window.len() > busiest.0 {
            busiest = (window.len(), Some(start));
        }
    }
    busiest
}

/// A moment from which pages of a space, or of all, may be fetched again before their lifetime is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) space: Option<&'static str>,
    pub(crate) at: Instant,
}

/// How long after a call for a page the next one for it started, where nothing excuses another before the page's lifetime is over. `calls`
/// are in the order of their starts.
pub(crate) fn times_between_fills<'a>(
    calls: &'a [Call],
    changes: &[Change],
    outages: &[Vec<Outage>],
) -> Vec<(Duration, &'a Call)> {
    let mut last: HashMap<Key, &Call> = HashMap::new();
    let mut times = Vec::new();
    for second in calls {
        let Some(first) = last.insert(second.key, second) else {
            continue;
        };
        let (from, to) = (first.started - CONNECTED, second.started);
        let mut disturbed = outages.iter().flatten();
        let mut changed = changes
            .iter()
            .filter(|change| change.space.is_none_or(|space| space == second.key.space));
        let is_excused = first.page.is_none()
            || disturbed.any(|outage| outage.overlaps(from, to))
            || changed.any(|change| (from..=to).contains(&change.at));
        if is_excused {
            continue;
        }
        times.push((second.started - first.started, second));
    }
    times
}

/// What was seen of each state of a list, by its name: the count, and which task stands where.
#[derive(Debug, Default)]
pub(crate) struct Generations(HashMap<(&'static str, String), Seen>);

#[derive(Debug)]
struct Seen {
    count: u64,
    by_place: HashMap<u64, String>,
    places: HashMap<String, u64>,
}

impl Generations {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Notes a page of a generation: pages of one must make up one list, whoever sent them.
    ///
    /// # Errors
    ///
    /// Says what contradicts an earlier page.
    pub(crate) fn note(
        &mut self,
        name: &str,
        key: Key,
        count: u64,
        ids: &[String],
    ) -> Result<(), String> {
        let new = || Seen {
            count,
            by_place: HashMap::new(),
            places: HashMap::new(),
        };
        let seen = self
            .0
            .entry((key.space, name.to_owned()))
            .or_insert_with(new);
        if seen.count != count {
            return Err(format!("count is {count} and {}", seen.count));
        }
        let first = (key.page - 1) * key.size;
        let rows = ids.len() as u64;
        if rows != key.size.min(count.saturating_sub(first)) {
            return Err(format!("{rows} rows from place {first} of {count}"));
        }
        for (place, id) in (first..).zip(ids) {
            let known = seen.by_place.entry(place).or_insert_with(|| id.clone());
            if known != id {
                return Err(format!("{known} and {id} are at place {place} of {count}"));
            }
            let known = seen.places.entry(id.clone()).or_insert(place);
            if *known != place {
                return Err(format!("{id} is at places {known} and {place} of {count}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
