//! The change feed: what became of the tasks of a space, watched once for all who listen. `docs/changes.md` is the design.
//!
//! Pages go in from wherever fills bring them, and from the task that reads what nobody else does (`poll`). What they say anew is judged
//! by pure functions (`watched`, `order`) and kept in a log, from which each listener reads at its own pace.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak, atomic::AtomicUsize},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

mod cursor;
mod event;
mod feed;
mod feed_state;
mod listener;
mod log;
mod moment;
mod order;
mod plan;
mod poll;
mod reading;
mod report;
mod settings;
mod shared;
mod sharing;
mod space;
mod watched;

use self::{cursor::CursorKey, settings::Settings, space::Space};
pub use self::{
    cursor::{BadCursor, Position},
    event::{Projection, TaskEvent},
    feed::{Batch, Event, TaskEvents, Wanted},
    feed_state::{Delayed, Synced},
    listener::{After, Listener, Lost},
    log::Gone,
    report::{WatchReport, WatchState},
    space::Status,
};
use super::{ClientRequest, FillObserver, Pages, pages::CallTimes};
use crate::{
    cache::StoredPage,
    config::{CacheConfig, ChangesConfig},
    domain::{CredentialId, ListId, PageKey, SpaceKey},
    telemetry::metrics::Metrics,
    upstream::Credential,
};

/// The spaces that are watched.
pub struct Changes {
    pages: Arc<Pages>,
    spaces: Mutex<HashMap<SpaceKey, Arc<Space>>>,
    settings: ArcSwap<Settings>,
    metrics: Arc<Metrics>,
    /// Bytes of all feeds.
    bytes: Arc<AtomicUsize>,
    process: u32,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Changes {
    /// Watches what `pages` reads.
    #[must_use]
    pub fn new(
        pages: &Arc<Pages>,
        changes: &ChangesConfig,
        cache: &CacheConfig,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let settings = Settings::new(changes, cache);
        let new = Arc::new(Self {
            pages: pages.clone(),
            spaces: Mutex::default(),
            settings: ArcSwap::from_pointee(settings),
            metrics,
            bytes: Arc::default(),
            process: fastrand::u32(..),
        });
        pages.observe_fills(Arc::new(Observer(Arc::downgrade(&new))));
        new
    }

    /// Goes by this configuration from now on.
    pub fn reconfigure(&self, changes: &ChangesConfig, cache: &CacheConfig) {
        self.settings.store(Arc::new(Settings::new(changes, cache)));
    }

    /// Begins to listen to the space that `request` names; its pages are asked for as `request` does from now on.
    #[must_use]
    pub fn listen(self: &Arc<Self>, request: &ClientRequest) -> Listener {
        let key = request.key().list.space;
        let mut spaces = self.spaces.lock();
        let space = match spaces.get(&key) {
            Some(space) => space.clone(),
            None => {
                let space = Arc::new(Space::new(self, key.clone(), request));
                spaces.insert(key, space.clone());
                tokio::spawn(watch(self.clone(), space.clone()));
                space
            }
        };
        Listener::new(self.clone(), space, request)
    }

    fn space(&self, key: &SpaceKey) -> Option<Arc<Space>> {
        self.spaces.lock().get(key).cloned()
    }

    /// All that are watched, to be locked one by one.
    fn all_spaces(&self) -> Vec<Arc<Space>> {
        self.spaces.lock().values().cloned().collect()
    }

    /// How many ranges of a credential are watched.
    fn ranges_of(&self, credential: CredentialId) -> usize {
        let mut spaces = self.all_spaces();
        spaces.retain(|space| space.key.credential == credential);
        spaces.iter().map(|space| space.lock().ranges).sum()
    }

    fn take(&self, space: &Space, key: &PageKey, page: &StoredPage, call: CallTimes) {
        self.note_standing(space);
        let feeds = self.spaces.lock().len();
        space.take(key.query, page, call, &self.settings.load(), feeds);
    }

    fn note_standing(&self, space: &Space) {
        let (epoch, refused) = self.pages.standing(&space.key, Instant::now());
        let refused = refused.map(|known| known.refusal);
        space.note_standing(epoch, refused);
    }

    /// Forgets a space that nobody listens to.
    fn forget(&self, space: &Arc<Space>) -> bool {
        let mut spaces = self.spaces.lock();
        let is_unused = space.lock().listeners == 0;
        if is_unused {
            spaces.remove(&space.key);
        }
        is_unused
    }
}

/// Reads what nobody else does, and shares what is known with other replicas, until the space is of use to nobody.
async fn watch(changes: Arc<Changes>, space: Arc<Space>) {
    tokio::select! {
        () = poll::watch(changes.clone(), space.clone()) => {}
        () = shared::share(&changes, &space) => {}
    }
}

/// By names that a restart does not change, and a new token neither.
fn cursor_key(request: &ClientRequest) -> CursorKey {
    let credential: &Credential = &request.credential;
    CursorKey::new(credential.name.as_bytes(), &request.space)
}

/// Weak: pages would keep what keeps them.
#[derive(Debug)]
struct Observer(Weak<Changes>);

impl FillObserver for Observer {
    fn filled(&self, key: &PageKey, page: &StoredPage, call: CallTimes) {
        let Some(changes) = self.0.upgrade() else {
            return;
        };
        if key.list.id != ListId::TASKS {
            return;
        }
        if let Some(space) = changes.space(&key.list.space) {
            changes.take(&space, key, page, call);
        }
    }

    fn invalidated(&self) {
        let Some(changes) = self.0.upgrade() else {
            return;
        };
        for space in changes.all_spaces() {
            changes.note_standing(&space);
        }
    }
}

#[cfg(test)]
mod tests;
