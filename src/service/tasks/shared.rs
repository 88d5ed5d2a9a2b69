//! A fill among replicas: it looks for what another has filled, waits where another is filling, and tells the others what it brought.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tracing::debug;

use super::{Ask, Errand, Fill, Filled, Look, Served, Source, Tasks, hit, may_refresh};
use crate::{
    cache::{
        CacheStatus, PageStore, StoredPage, Verdict, flight::Wanted, judge_page, status::Detail,
        store::Kept,
    },
    domain::{PageKey, SpaceKey, SpaceToken},
    off_runtime::{by_size, on_a_thread},
    service::{
        SecondTier,
        second_tier::{FoundPage, Lock, Names, News, Turn},
        snapshot::unix_ms,
    },
    shared::{Follower, Lost, Nonce, Session},
    upstream::{Claims, Credential, Credentials, UpstreamError, Urgency},
};

/// A lock that ended a moment ago may not have ended there yet.
const SLACK: Duration = Duration::from_millis(5);

/// What looking among the replicas came to.
enum Found {
    /// A page another replica filled, which this client may be shown.
    Page(Kept),
    /// None: this replica fills, and holds the right to where Redis is there to give it.
    Ours(Option<Lock>),
    /// None, and no call to spare for one.
    NoCall,
    /// Another replica was filling for as long as this one may wait.
    NotInTime(Duration),
}

impl Tasks {
    /// Shares pages with other replicas from now on.
    pub fn share_pages(&self, second_tier: SecondTier) {
        // The gateway is built once.
        let _ = self.second_tier.set(second_tier);
    }

    /// Shares the pages of `credentials` from now on.
    pub fn set_credentials(&self, credentials: Arc<Credentials>) {
        if let Some(second_tier) = self.second_tier.get() {
            second_tier.set_credentials(credentials);
        }
    }

    /// Whether other replicas may have pages that this one has not.
    pub(super) fn shares_pages(&self) -> bool {
        self.second_tier.get().is_some_and(SecondTier::is_up)
    }

    /// Drops all pages of `space`, of every credential, on every replica. For a task that nobody ends before it.
    pub async fn purge_space(self: &Arc<Self>, space: &SpaceToken) {
        let of_space = || {
            let space = space.clone();
            move |store: &PageStore| store.purge_space(&space)
        };
        self.drop_here(of_space()).await;
        if let Some(second_tier) = self.second_tier.get() {
            second_tier.drop_space(space).await;
            // A look in between may have brought back what nobody knew to be dropped.
            self.drop_here(of_space()).await;
        }
    }

    /// Drops all pages of the space that prints as `fingerprint`, on every replica. `false` where nobody knows of one. As
    /// [`Self::purge_space`].
    pub async fn purge_fingerprint(self: &Arc<Self>, fingerprint: &str) -> bool {
        let is_known = self.purge_spaces_called(fingerprint).await;
        let Some(second_tier) = self.second_tier.get().filter(|_| !is_known) else {
            return is_known;
        };
        second_tier.drop_fingerprint(fingerprint).await
    }

    /// Drops everything, on every replica. As [`Self::purge_space`].
    pub async fn purge(self: &Arc<Self>) {
        self.drop_here(PageStore::purge).await;
        if let Some(second_tier) = self.second_tier.get() {
            second_tier.drop_everything().await;
            // As above.
            self.drop_here(PageStore::purge).await;
        }
    }

    /// Whether there was any.
    async fn purge_spaces_called(self: &Arc<Self>, fingerprint: &str) -> bool {
        let (tasks, fingerprint) = (self.clone(), fingerprint.to_owned());
        let called = move || {
            let is_meant = |space: &SpaceToken| space.to_string() == fingerprint;
            tasks.store.spaces_where(is_meant)
        };
        let known = on_a_thread(called).await;
        for space in &known {
            self.purge_space(space).await;
        }
        !known.is_empty()
    }

    /// Drops pages of this replica and frees what they take: there may be many.
    async fn drop_here(self: &Arc<Self>, drop_pages: impl FnOnce(&PageStore) + Send + 'static) {
        let tasks = self.clone();
        on_a_thread(move || {
            drop_pages(&tasks.store);
            tasks.store.free_dropped();
        })
        .await;
    }

    /// Brings the page of `ask`: from another replica if one has it, else from the upstream. Run in a task of its own.
    pub(super) async fn fetch(
        self: Arc<Self>,
        ask: Ask,
        look: Look,
        errand: Errand,
        stored: Option<Arc<StoredPage>>,
        wanted: Wanted,
    ) -> Filled {
        let key = ask.key();
        if let Some(second_tier) = self.second_tier.get() {
            // Whether Redis is there or not: it may be back before the page is.
            let knows = |key: &SpaceKey| self.store.knows(key);
            second_tier.remember_space(&ask.credential, &ask.space, knows);
        }
        let names = self
            .second_tier
            .get()
            // What a replaced token sees is nothing to the others.
            .filter(|second_tier| second_tier.is_up() && ask.credential.is_in_force())
            .and_then(|second_tier| second_tier.names(&ask.credential, &key));
        let Some((second_tier, names)) = self.second_tier.get().zip(names) else {
            let credential = ask.credential.clone();
            let filled = self.clone().fill(ask, errand, stored, wanted).await;
            self.spread_refusal(&key, &credential, &filled).await;
            return filled;
        };
        let found = self.find(second_tier, &names, &ask, look, &errand.shared.claims);
        let turn = match found.await {
            Found::Page(kept) => {
                return Ok(Fill {
                    kept,
                    status: 200,
                    source: Source::SecondTier,
                });
            }
            Found::Ours(turn) => turn,
            Found::NoCall => return Err(UpstreamError::QuotaExhausted { retry_after: None }),
            Found::NotInTime(patience) => return Err(UpstreamError::Timeout(patience)),
        };
        // Another replica's page is as good to ask by, or to show in place of an error.
        let stored = self.store.get(&key).or(stored);
        let credential = ask.credential.clone();
        let filled = self.clone().fill(ask, errand, stored, wanted).await;
        self.spread_refusal(&key, &credential, &filled).await;
        if let Ok(fill) = &filled
            && fill.kept.may_be_kept
        {
            let page = fill.kept.page.clone();
            // Whoever waits here need not wait for that.
            tokio::spawn(async move { self.publish(&key, page, &names, turn).await });
        }
        filled
    }

    async fn find(
        self: &Arc<Self>,
        second_tier: &SecondTier,
        names: &Names,
        ask: &Ask,
        look: Look,
        claims: &Claims,
    ) -> Found {
        let deadline = Instant::now() + self.patience;
        let told = second_tier.listen(names);
        loop {
            // From before the look on: nothing that is told after it goes unheard.
            let news = told.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            match self.look_among(second_tier, names, ask).await {
                Err(Lost) => return Found::Ours(None),
                Ok(kept) => {
                    let wanted = kept.filter(|kept| {
                        look == Look::Anywhere
                            && is_found(&kept.page, ask, claims.urgency(), Instant::now())
                    });
                    self.metrics.shared.looked_up(wanted.is_some());
                    if let Some(kept) = wanted {
                        return Found::Page(kept);
                    }
                }
            }
            if claims.urgency() == Urgency::Background && !may_refresh(ask, Instant::now()) {
                return Found::NoCall;
            }
            if look == Look::Upstream || ask.directives.no_cache {
                return Found::Ours(None);
            }
            match second_tier.take_turn(names).await {
                Err(Lost) => return Found::Ours(None),
                Ok(Turn::Ours(turn)) => {
                    // Who filled it may have ended between the look and this.
                    let found = self.look_among(second_tier, names, ask).await;
                    return match found.ok().flatten() {
                        Some(kept)
                            if is_found(&kept.page, ask, claims.urgency(), Instant::now()) =>
                        {
                            Found::Page(kept)
                        }
                        Some(_) | None => Found::Ours(Some(turn)),
                    };
                }
                Ok(Turn::Theirs(held_for)) => {
                    let now = Instant::now();
                    if now >= deadline {
                        return Found::NotInTime(self.patience);
                    }
                    let until = deadline.min(now + held_for + SLACK);
                    tokio::select! {
                        () = news.as_mut() => {}
                        () = second_tier.until_lost() => return Found::Ours(None),
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    /// Takes up what Redis says of a page and its space; the page where there is one.
    async fn look_among(
        self: &Arc<Self>,
        second_tier: &SecondTier,
        names: &Names,
        ask: &Ask,
    ) -> Result<Option<Kept>, Lost> {
        let key = &ask.key();
        let (began, looked) = loop {
            let asked = self.store.begin(key.clone(), Instant::now());
            let looked = second_tier.look(names, key, asked.generation()).await?;
            if !ask.credential.is_in_force() {
                return Ok(None);
            }
            let (mark, list) = (looked.mark, &looked.list);
            // What was told in between is newer.
            if let Some(began) = self.store.adopt(&asked, mark, list, Instant::now()) {
                break (began, looked);
            }
        };
        let Some(found) = looked.page else {
            return Ok(None);
        };
        let bytes = found.saved.body.len();
        let tasks = self.clone();
        let take = move || {
            let now_unix = i64::try_from(unix_ms() / 1000).unwrap_or(i64::MAX);
            let FoundPage { saved, page, age } = found;
            let (store, now) = (&tasks.store, Instant::now());
            store.take_shared(&began, &saved, page, age, now, now_unix)
        };
        Ok(by_size(bytes, take).await)
    }

    /// Answers with a page that another replica filled, as with one of its own; `None` where this client wants another.
    pub(super) fn serve_shared(
        self: &Arc<Self>,
        page: Arc<StoredPage>,
        ask: &Ask,
    ) -> Option<Served> {
        let now = Instant::now();
        match judge_page(
            Some(&page),
            ask.credential.is_refused(),
            &ask.directives,
            now,
        ) {
            Verdict::Hit { ttl, detail } => Some(hit(page, ttl, detail, now)),
            Verdict::HitWhileRevalidate { ttl } => {
                self.refresh(&ask.key(), ask);
                Some(Served {
                    page,
                    status: CacheStatus::Hit {
                        ttl,
                        detail: Some(Detail::StaleWhileRevalidate),
                    },
                    at: now,
                    calls: 0,
                })
            }
            Verdict::Fill(_) | Verdict::NotCached => None,
        }
    }

    /// What is stored since the request began, where other replicas fill too.
    pub(super) fn found_meanwhile(&self, ask: &Ask) -> Option<Arc<StoredPage>> {
        self.second_tier.get()?;
        self.store.get(&ask.key())
    }

    /// A right revoked here is revoked everywhere.
    async fn spread_refusal(&self, key: &PageKey, credential: &Arc<Credential>, filled: &Filled) {
        if let Some(second_tier) = self.second_tier.get()
            && credential.is_in_force()
            && let Err(UpstreamError::SpaceNotFound { .. } | UpstreamError::SpaceAccessDenied) =
                filled
        {
            second_tier.drop_refused(credential, &key.space.space).await;
            // As above.
            self.store.drop_refused(&key.space, Instant::now());
        }
    }

    /// Tells the others of a page, and takes up what they have told meanwhile.
    async fn publish(
        self: Arc<Self>,
        key: &PageKey,
        page: Arc<StoredPage>,
        names: &Names,
        turn: Option<Lock>,
    ) {
        let Some(second_tier) = self.second_tier.get() else {
            return;
        };
        let Some(now_unix_ms) = second_tier.link().unix_ms() else {
            return;
        };
        let (now, bytes) = (Instant::now(), page.content.length());
        let asked = self.store.begin(key.clone(), now);
        let (tasks, of) = (self.clone(), key.clone());
        let share = move || tasks.store.share(&of, &page, now, now_unix_ms);
        let Some(shared) = by_size(bytes, share).await else {
            return;
        };
        match second_tier.publish(names, shared, turn).await {
            // As this replica says, or dropped, or moved on as another saw it. What was told in between is newer.
            Ok(Some((mark, list))) => {
                let _ = self.store.adopt(&asked, mark, &list, Instant::now());
            }
            Ok(None) => {}
            Err(Lost) => debug!(space = %key.space.space, "page is not shared"),
        }
    }
}

/// Whether `page` is what is looked for: one that the client of `ask` may be shown, or a fresh one to refresh with.
fn is_found(page: &StoredPage, ask: &Ask, urgency: Urgency, now: Instant) -> bool {
    let only_fresh = ask.credential.is_refused();
    match judge_page(Some(page), only_fresh, &ask.directives, now) {
        Verdict::Hit { .. } => true,
        // It is what is to be refreshed.
        Verdict::HitWhileRevalidate { .. } => urgency != Urgency::Background,
        Verdict::Fill(_) | Verdict::NotCached => false,
    }
}

impl Follower for Arc<Tasks> {
    fn heard(&self, message: &[u8]) {
        let Some(second_tier) = self.second_tier.get() else {
            return;
        };
        let Some(news) = second_tier.news(message) else {
            return;
        };
        match news {
            News::Filled { page } => second_tier.filled(&page),
            News::Purged { purge } => {
                self.store.purge();
                second_tier.link().purged(purge);
            }
            News::Dropped {
                space,
                epoch,
                refused,
            } => {
                if let Some(key) = second_tier.space(&space) {
                    let now = Instant::now();
                    self.store.drop_other_epochs(&key, epoch.0, refused, now);
                }
            }
            News::Moved { space, generation } => {
                if let Some(key) = second_tier.space(&space) {
                    self.store.move_to(&key, generation.0, Instant::now());
                }
            }
            News::Unwanted { fingerprint } => {
                let tasks = self.clone();
                tokio::spawn(async move { tasks.purge_spaces_called(&fingerprint).await });
            }
        }
    }

    fn beat(&self) {
        let tasks = self.clone();
        let has_unsent = self.second_tier.get().is_some_and(SecondTier::has_unsent);
        if has_unsent {
            tokio::spawn(async move {
                if let Some(second_tier) = tasks.second_tier.get() {
                    second_tier.send_late().await;
                }
            });
        }
    }

    fn catch_up<'a>(&'a self, session: &'a Session) -> BoxFuture<'a, Result<Option<Nonce>, Lost>> {
        Box::pin(async move {
            let Some(second_tier) = self.second_tier.get() else {
                return Ok(None);
            };
            let purge = second_tier.send_unsent(session).await?;
            second_tier.report_calls(session).await?;
            let is_purged = session
                .before
                .is_some_and(|before| before.purge != session.era.purge);
            if purge.is_some() || is_purged {
                self.store.purge();
                return Ok(purge);
            }
            let stored = self.store.marks();
            for (key, mark) in second_tier.still(session, stored).await? {
                match mark {
                    Some(mark) => self.store.confirm(&key, mark, Instant::now()),
                    None => self.store.drop_space(&key),
                }
            }
            Ok(None)
        })
    }
}
