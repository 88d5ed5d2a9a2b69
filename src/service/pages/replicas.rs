//! A fill among replicas: it looks for what another has filled, waits where another is filling, and tells the others what it brought.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::debug;

use super::{ClientRequest, Fill, Filled, Pages, Source, Sources, single_flight::FillContext};
use crate::{
    cache::{
        StoredPage, Verdict, judge_page,
        list::StateNames,
        single_flight::StoreRequested,
        store::{Extent, StoreOutcome},
    },
    domain::{PageKey, SpaceKey},
    off_runtime::by_size,
    service::{
        SharedCache,
        shared_cache::{FillLock, Known, Lease, RedisKeys, SharedPage, Wanted},
        snapshot::owners,
    },
    shared::{Unavailable, unix_ms},
    upstream::{Call, Credential, Credentials, UpstreamError, Waiters, acquire},
};

/// A lock that ended a moment ago may not have ended there yet.
const SLACK: Duration = Duration::from_millis(5);

/// What looking among the replicas came to.
enum Found {
    /// A page another replica filled, which this client may be shown.
    Page(StoreOutcome),
    /// None: this replica fills, and holds the right to where Redis is there to give it.
    Ours(Option<FillLock>),
    /// Another replica was filling for as long as this one may wait.
    NotInTime(Duration),
}

/// What becomes of a fill among replicas.
enum Turn {
    Served(StoreOutcome),
    /// This replica fills, or has no call to fill with.
    Fill(Option<FillLock>, Result<Call, UpstreamError>),
}

impl Pages {
    /// Shares pages with other replicas from now on.
    pub fn share_pages(&self, shared_cache: SharedCache) {
        self.store.share_epochs();
        // What a snapshot brought may have been dropped since.
        shared_cache.remember_restored(self.store.known_spaces());
        // The gateway is built once.
        let _ = self.shared_cache.set(shared_cache);
    }

    /// Shares the pages of `credentials` from now on, and names the states of their lists by their secrets.
    pub fn set_credentials(&self, credentials: Arc<Credentials>) {
        let owners = owners(credentials.all());
        let names = credentials.all().filter_map(|credential| {
            let (_, secret) = owners.known(credential.id).next()?;
            Some((credential.id, StateNames::new(secret)))
        });
        self.store.set_names(names.collect());
        if let Some(shared_cache) = self.shared_cache.get() {
            shared_cache.set_credentials(credentials);
            // They may be called otherwise now.
            shared_cache.remember_restored(self.store.known_spaces());
        }
    }

    /// What replicas share, where they do.
    pub(in crate::service) fn shared_cache(&self) -> Option<&SharedCache> {
        self.shared_cache.get()
    }

    /// Whether other replicas may have pages that this one has not.
    pub(super) fn shares_pages(&self) -> bool {
        let shared_cache = self.shared_cache.get();
        shared_cache.is_some_and(|shared_cache| shared_cache.redis.is_up())
    }

    /// Brings the page that `request` names: from another replica if one has it, else from the upstream. Run in a task of its own.
    pub(super) async fn fetch(
        self: Arc<Self>,
        request: ClientRequest,
        sources: Sources,
        context: FillContext,
        stored: Option<Arc<StoredPage>>,
        wanted: StoreRequested,
    ) -> Filled {
        let key = request.key();
        // What is known of a list is forgotten once nobody holds it: this does, from the look-up to the fill's end.
        let _list = self.store.begin(key.clone(), Instant::now());
        if let Some(shared_cache) = self.shared_cache.get() {
            // Whether Redis is there or not: it may be back before the page is.
            let knows = |key: &SpaceKey| self.store.knows(key);
            shared_cache.remember_space(&request.credential, &request.space, knows);
        }
        // What a replaced token sees is nothing to the others.
        let shares = self.shares_pages() && request.credential.is_in_force();
        let shared_cache = self.shared_cache.get().filter(|_| shares);
        let keys = shared_cache.and_then(|shared| shared.keys(&request.credential, &key));
        let turn = match shared_cache.zip(keys.as_ref()) {
            Some((shared_cache, keys)) => {
                let is_forced = sources == Sources::UpstreamAlone || request.directives.no_cache;
                self.take_turn(shared_cache, keys, &request, is_forced, &context)
                    .await?
            }
            None => Turn::Fill(None, self.acquire(&request, &context).await),
        };
        let (lock, call) = match turn {
            Turn::Served(kept) => {
                self.tell_shared(&key, &kept.page);
                let filled = Ok(Fill {
                    kept,
                    status: 200,
                    source: Source::SharedCache,
                });
                self.note_range(&request, &filled, 0);
                return filled;
            }
            Turn::Fill(lock, call) => (lock, call),
        };
        // Another replica's page is as good to ask by, or to show in place of an error.
        let newer = keys.as_ref().and_then(|_| self.store.get(&key));
        let stored = newer.or(stored);
        let credential = request.credential.clone();
        let filled = self
            .clone()
            .fill(request, context, call, stored, wanted)
            .await;
        self.spread_refusal(&key, &credential, &filled).await;
        if let (Some(keys), Ok(fill)) = (keys, &filled)
            && fill.kept.extent == Extent::Whole
        {
            let kept = fill.kept.clone();
            // Whoever waits here need not wait for that.
            tokio::spawn(async move { self.publish(&key, kept, &keys, lock).await });
        }
        filled
    }

    /// Finds the page among the replicas, or waits until this one may fill it.
    async fn take_turn(
        self: &Arc<Self>,
        shared_cache: &SharedCache,
        keys: &RedisKeys,
        request: &ClientRequest,
        is_forced: bool,
        context: &FillContext,
    ) -> Result<Turn, UpstreamError> {
        if !is_forced
            && let Some(kept) = self
                .cut_from_shared_range(shared_cache, request, context)
                .await
        {
            return Ok(Turn::Served(kept));
        }
        let mut call = None;
        loop {
            // Who would wait for a call keeps no other replica from filling.
            let may_fill = call.is_some() || self.may_call_now(request);
            let wanted = match (is_forced, may_fill) {
                (true, true) => Some(Wanted::Newest),
                (false, true) => Some(Wanted::Missing),
                (false, false) => Some(Wanted::Page),
                (true, false) => None,
            };
            let found = match wanted {
                Some(wanted) => {
                    let found = self.find(shared_cache, keys, request, wanted, &context.waiters);
                    found.await
                }
                None => Found::Ours(None),
            };
            let lock = match found {
                Found::Page(kept) => return Ok(Turn::Served(kept)),
                Found::NotInTime(patience) => return Err(UpstreamError::Timeout(patience)),
                Found::Ours(lock) => lock,
            };
            if let Some(call) = call {
                return Ok(Turn::Fill(lock, Ok(call)));
            }
            if may_fill && let Ok(call) = request.credential.budget().acquire_now().await {
                return Ok(Turn::Fill(lock, Ok(call)));
            }
            // It looks again once it has one.
            drop(lock);
            call = match self.acquire(request, context).await {
                Ok(acquired) => Some(acquired),
                Err(error) => return Ok(Turn::Fill(None, Err(error))),
            };
        }
    }

    /// Whether a fill need not wait for its call, as far as this replica knows.
    fn may_call_now(&self, request: &ClientRequest) -> bool {
        let (now, budget) = (Instant::now(), request.credential.budget());
        !self.store.is_failing(&request.key(), now) && budget.wait_expected(now).is_none()
    }

    /// Waits for the call of a fill.
    async fn acquire(
        &self,
        request: &ClientRequest,
        context: &FillContext,
    ) -> Result<Call, UpstreamError> {
        let is_failing = self.store.is_failing(&request.key(), Instant::now());
        let (credential, waiters) = (&request.credential, &context.waiters);
        acquire(credential, &request.space, waiters, is_failing).await
    }

    async fn find(
        self: &Arc<Self>,
        shared_cache: &SharedCache,
        keys: &RedisKeys,
        request: &ClientRequest,
        mut wanted: Wanted,
        waiters: &Waiters,
    ) -> Found {
        let deadline = Instant::now() + self.patience;
        let told = shared_cache.listen(&keys.page);
        loop {
            // From before the look on: nothing that is told after it goes unheard.
            let notified = told.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let looked = self.look_up_shared(shared_cache, keys, request, wanted);
            let Ok((kept, lease)) = looked.await else {
                return Found::Ours(None);
            };
            let kept = kept.filter(|kept| {
                let shown = is_found(&kept.page, request, waiters, Instant::now());
                shown && wanted != Wanted::Newest
            });
            self.metrics.shared.looked_up(kept.is_some());
            if let Some(kept) = kept {
                return Found::Page(kept);
            }
            let held_for = match lease {
                Lease::Acquired(lock) => return Found::Ours(Some(lock)),
                Lease::NotWanted if wanted == Wanted::Page => return Found::Ours(None),
                // It is fresh by Redis' clock, but not for this client.
                Lease::NotWanted => {
                    wanted = Wanted::Other;
                    continue;
                }
                Lease::HeldElsewhere(held_for) => held_for,
            };
            let now = Instant::now();
            if now >= deadline {
                return Found::NotInTime(self.patience);
            }
            let until = deadline.min(now + held_for + SLACK);
            tokio::select! {
                () = notified.as_mut() => {}
                // Then nobody is waited for.
                () = shared_cache.redis.until_lost() => return Found::Ours(None),
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Goes by what Redis says of a page's space and list; the page where there is one, and the right to fill it.
    pub(super) async fn look_up_shared(
        self: &Arc<Self>,
        shared_cache: &SharedCache,
        keys: &RedisKeys,
        request: &ClientRequest,
        wanted: Wanted,
    ) -> Result<(Option<StoreOutcome>, Lease), Unavailable> {
        let key = &request.key();
        let (epoch, generation) = self.store.known_numbers(key);
        // This replica may have heard of a drop before it knew the space.
        let epoch = epoch.max(shared_cache.epoch_of(&keys.space, &request.space));
        let known = Known { epoch, generation };
        let looked = shared_cache.look_up(keys, key, known, wanted).await?;
        if !request.credential.is_in_force() {
            return Ok((None, looked.lease));
        }
        let (space, now) = (&key.list.space, Instant::now());
        self.store.hear_drop(space, looked.epoch, false, now);
        if let Some(list) = &looked.list {
            self.store.hear_list(&key.list, looked.epoch, list, now);
        }
        let Some((found, list)) = looked.page.zip(looked.list) else {
            return Ok((None, looked.lease));
        };
        let began = self.store.begin_shared(key.clone(), list.name, now);
        let Some(began) = began.filter(|began| began.epoch() == looked.epoch) else {
            return Ok((None, looked.lease));
        };
        let bytes = found.saved.body.len();
        let pages = self.clone();
        let take = move || {
            let now_unix = i64::try_from(unix_ms() / 1000).unwrap_or(i64::MAX);
            let SharedPage { saved, page, age } = found;
            let (store, now) = (&pages.store, Instant::now());
            store.take_shared(&began, &saved, page, age, now, now_unix)
        };
        Ok((Some(by_size(bytes, take).await), looked.lease))
    }

    /// A right revoked here is revoked everywhere.
    async fn spread_refusal(
        self: &Arc<Self>,
        key: &PageKey,
        credential: &Arc<Credential>,
        filled: &Filled,
    ) {
        if let Some(shared_cache) = self.shared_cache.get()
            && credential.is_in_force()
            && filled.as_ref().is_err_and(UpstreamError::refuses_space)
        {
            let dropped = shared_cache.drop_refused(credential, &key.list.space.space);
            self.hear_all(shared_cache, dropped.await);
        }
    }

    /// Tells the others of a page, and takes up what they have told meanwhile.
    async fn publish(
        self: Arc<Self>,
        key: &PageKey,
        fill: StoreOutcome,
        keys: &RedisKeys,
        lock: Option<FillLock>,
    ) {
        let Some(shared_cache) = self.shared_cache.get() else {
            return;
        };
        let Some(now_unix_ms) = shared_cache.redis.unix_ms() else {
            return;
        };
        let (now, bytes) = (Instant::now(), fill.page.content.length());
        let (pages, of) = (self.clone(), key.clone());
        let share = move || pages.store.share(&of, &fill.page, now, now_unix_ms);
        let Some(shared) = by_size(bytes, share).await else {
            return;
        };
        match shared_cache
            .publish(keys, shared, fill.is_storable, lock)
            .await
        {
            // As this replica says, or dropped, or moved on as another saw it.
            Ok((epoch, list)) => {
                let now = Instant::now();
                self.store.hear_drop(&key.list.space, epoch, false, now);
                if let Some(list) = list {
                    self.store.hear_list(&key.list, epoch, &list, now);
                }
            }
            Err(Unavailable) => debug!(space = %key.list.space.space, "page is not shared"),
        }
    }
}

/// Whether `page` is what is shared for: one that the client of `request` may be shown, or a fresh one to refresh with.
pub(super) fn is_found(
    page: &StoredPage,
    request: &ClientRequest,
    waiters: &Waiters,
    now: Instant,
) -> bool {
    let only_fresh = request.credential.is_refused();
    match judge_page(Some(page), only_fresh, &request.directives, now) {
        Verdict::Hit { .. } => true,
        // It is what is to be refreshed.
        Verdict::HitWhileRevalidate { .. } => !waiters.have_stale_pages(),
        Verdict::Fill(_) | Verdict::NotCached => false,
    }
}
