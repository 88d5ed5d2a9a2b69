//! A feed among replicas: one of them watches the space, and stores what it learned; the others load that. `docs/changes.md` is the design.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{
    Changes,
    feed_state::FeedState,
    moment::{Clock, Moment},
    sharing::Duty,
    space::Space,
};
use crate::{
    off_runtime::by_size,
    service::{
        SharedCache,
        shared_cache::{FeedKeys, Lease},
    },
    shared::{Nonce, Unavailable},
};

/// How often Redis is asked again that did not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How often a lock is looked at: it may be lost without a word.
const CHECK: Duration = Duration::from_secs(1);

/// Shares what is known of `space` for as long as it is polled.
pub(super) async fn share(changes: &Arc<Changes>, space: &Arc<Space>) {
    let Some(shared_cache) = changes.pages.shared_cache() else {
        return std::future::pending().await;
    };
    let replica = Replica {
        changes,
        space,
        shared_cache,
    };
    loop {
        let Some(keys) = replica.keys() else {
            // The next listener comes with a credential in force.
            let wait = replica.note_outage();
            replica.wait(wait).await;
            continue;
        };
        let told = shared_cache.listen(&keys.feed);
        let news = told.notified();
        tokio::pin!(news);
        // Before Redis is asked: what it is told from now on is news.
        news.as_mut().enable();
        let wait = replica.act(&keys).await;
        tokio::select! {
            () = news => {}
            () = replica.wait(wait) => {}
        }
    }
}

/// One replica of a feed.
struct Replica<'a> {
    changes: &'a Arc<Changes>,
    space: &'a Arc<Space>,
    shared_cache: &'a SharedCache,
}

impl Replica<'_> {
    fn keys(&self) -> Option<FeedKeys> {
        let credential = self.space.lock().request.credential.clone();
        // What a replaced token sees is nothing to the others.
        let credential = credential.is_in_force().then_some(credential)?;
        self.shared_cache.feed_keys(&credential, &self.space.key)
    }

    async fn wait(&self, time: Duration) {
        tokio::select! {
            () = self.space.share.notified() => {}
            () = sleep(time) => {}
        }
    }

    /// Does what is to be done now; returns when to look again at the latest.
    async fn act(&self, keys: &FeedKeys) -> Duration {
        let linger = self.changes.settings.load().linger;
        let duty = self.space.lock().duty(linger, Instant::now());
        let done = match duty {
            Duty::Wait(time) => return time,
            Duty::Hold if self.shared_cache.redis.is_up() => return CHECK,
            Duty::Hold => Err(Unavailable),
            Duty::Look => self.look(keys).await,
            Duty::Store(token, state) => self.store(keys, token, *state).await,
        };
        done.unwrap_or_else(|Unavailable| self.note_outage())
    }

    fn note_outage(&self) -> Duration {
        if self.space.lock().note_outage(Instant::now()) {
            self.space.wake.notify_one();
            self.space.tell();
        }
        RETRY
    }

    fn clock(&self) -> Result<Clock, Unavailable> {
        let unix_ms = self.shared_cache.redis.unix_ms().ok_or(Unavailable)?;
        Ok(Clock {
            now: Instant::now(),
            unix_us: i64::try_from(unix_ms.saturating_mul(1000)).unwrap_or(i64::MAX),
        })
    }

    async fn look(&self, keys: &FeedKeys) -> Result<Duration, Unavailable> {
        let (space, pages) = (self.space, &self.changes.pages);
        let (version, epoch) = {
            let state = space.lock();
            (state.sharing.version, state.seen.feed.log.epoch())
        };
        let epoch = epoch.max(self.shared_cache.epoch_of(&keys.space, &space.key.space));
        let mut looked = self
            .shared_cache
            .look_feed(keys, space.key.credential, epoch, version)
            .await?;
        pages
            .store()
            .hear_drop(&space.key, looked.epoch, false, Instant::now());
        let clock = self.clock()?;
        let found = match looked.value.take() {
            Some(value) => {
                let length = value.len();
                let decode = move || FeedState::decode(&value, &clock);
                by_size(length, decode).await
            }
            None => None,
        };
        let wait = match &looked.lease {
            Lease::HeldElsewhere(time) => *time,
            // There is something to store.
            Lease::Acquired(_) => Duration::ZERO,
            Lease::NotWanted => CHECK,
        };
        let mut state = space.lock();
        let is_other = state.note_looked(looked, found, clock.unix_us);
        space.weigh(&mut state);
        drop(state);
        if is_other {
            space.wake.notify_one();
            space.tell();
        }
        Ok(wait)
    }

    async fn store(
        &self,
        keys: &FeedKeys,
        token: Nonce,
        state: FeedState,
    ) -> Result<Duration, Unavailable> {
        let settings = self.changes.settings.load_full();
        let clock = self.clock()?;
        let (weight, epoch) = (state.feed.weight(), state.feed.log.epoch());
        let (of, bounds) = (keys.clone(), settings.bounds);
        let credential = self.space.key.credential;
        let sealed = by_size(weight, move || {
            let mut state = state;
            loop {
                let value = of.seal_feed(credential, &state.encode(&clock)?)?;
                let (weight, now) = (state.feed.weight(), Moment(clock.now));
                if SharedCache::may_store(value.len()) || weight == 0 {
                    return Some((value, state));
                }
                // As where memory is short: half of it goes.
                state.feed.trim(bounds, weight / 2, now);
            }
        });
        let (value, state) = sealed.await.ok_or(Unavailable)?;
        let keep_for = settings.linger + settings.bounds.retention;
        let stored = self
            .shared_cache
            .store_feed(keys, epoch, token, &value, keep_for);
        let stored = stored.await?;
        if let Some((ranges, interval)) = self.settle(token, state, stored) {
            self.shared_cache.tell_stored(keys).await?;
            let all = self.shared_cache.watched_ranges(keys, ranges, 2 * interval);
            let all = all.await?;
            let known = std::mem::replace(&mut self.space.lock().sharing.all_ranges, all);
            if known != all {
                self.space.wake.notify_one();
            }
        }
        Ok(Duration::ZERO)
    }

    /// Shows what is stored under `version`; `None`: it was refused. Returns how many ranges are watched, and how often each is read.
    fn settle(
        &self,
        token: Nonce,
        state: FeedState,
        version: Option<Nonce>,
    ) -> Option<(usize, Duration)> {
        let mut ours = self.space.lock();
        if ours.sharing.token() != Some(token) {
            return None;
        }
        match version {
            Some(version) => ours.note_stored(state, version),
            None => {
                debug!(space = %self.space.key.space, "another replica watches the space");
                ours.sharing.follow();
            }
        }
        let watched = (ours.ranges, ours.current().interval);
        drop(ours);
        self.space.tell();
        version.map(|_| watched)
    }
}
