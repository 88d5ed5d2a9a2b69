//! Who else is told of what fills bring, and fills that nobody but that one waits for.

use std::{fmt, sync::Arc};

use tokio::time::Instant;

use super::{ClientRequest, Pages, PagesErrorKind, Sources, single_flight::FillContext};
use crate::{
    cache::{StoredPage, space::Remembered, store::Began},
    domain::{PageKey, SpaceKey},
    telemetry::metrics::BACKGROUND,
    upstream::{Need, Waiter},
};

/// When the call was made that brought a page.
#[derive(Clone, Copy, Debug)]
pub struct CallTimes {
    pub sent: Instant,
    pub received: Instant,
}

/// Is told of fills, whoever caused them.
pub trait FillObserver: fmt::Debug + Send + Sync {
    /// A fill brought `page`, or said that it still holds.
    fn filled(&self, key: &PageKey, page: &StoredPage, call: CallTimes);

    /// Some spaces were purged, or refused.
    fn invalidated(&self);
}

impl Pages {
    /// Tells `observer` of all fills from now on.
    pub fn observe_fills(&self, observer: Arc<dyn FillObserver>) {
        // The gateway is built once.
        let _ = self.observer.set(observer);
    }

    /// Tells the observer of a page that another replica fetched, nobody knows when between the time its age says and now.
    pub(super) fn tell_shared(&self, key: &PageKey, page: &StoredPage) {
        if let Some(observer) = self.observer() {
            let received = Instant::now();
            let sent = received.checked_sub(page.age(received)).unwrap_or(received);
            observer.filled(key, page, CallTimes { sent, received });
        }
    }

    /// Tells the observer that spaces were dropped.
    pub(super) fn tell_invalidated(&self) {
        if let Some(observer) = self.observer() {
            observer.invalidated();
        }
    }

    pub(super) fn observer(&self) -> Option<&Arc<dyn FillObserver>> {
        self.observer.get()
    }

    /// Fetches the page that `request` names whatever is stored, behind the fills that clients wait for; it counts as a refresh that is due
    /// by `due`.
    ///
    /// # Errors
    ///
    /// Returns why there is none.
    pub(in crate::service) async fn renew(
        self: &Arc<Self>,
        request: &ClientRequest,
        due: Instant,
    ) -> Result<(), PagesErrorKind> {
        let key = request.key();
        let begun = self
            .flights
            .join(&self.flight(&key, request), true, |wanted| {
                let waiter = Waiter {
                    need: Need::Refresh(due),
                    client: BACKGROUND.into(),
                };
                let context = FillContext::new(BACKGROUND.into(), waiter);
                let stored = self.store.get(&key);
                Some(self.begin(request, Sources::All, context, stored, wanted))
            });
        let outcome = match begun {
            Some(pending) => pending.outcome().await,
            None => None,
        };
        match outcome {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
            None => Err(PagesErrorKind::Lost),
        }
    }

    /// Has the store know the space that `request` names for as long as the result lives, and so hear of its drops.
    pub(in crate::service) fn hold(&self, request: &ClientRequest) -> Began {
        let began = self.store.begin(request.key(), Instant::now());
        if let Some(shared_cache) = self.shared_cache() {
            let knows = |key: &SpaceKey| self.store.knows(key);
            shared_cache.remember_space(&request.credential, &request.space, knows);
        }
        began
    }

    /// How often the pages of a space were dropped, and what the upstream refuses about all of it.
    pub(in crate::service) fn standing(
        &self,
        space: &SpaceKey,
        now: Instant,
    ) -> (u64, Option<Remembered>) {
        let refused = self.store.space_refusal(space, now);
        (self.store.epoch(space), refused)
    }
}
