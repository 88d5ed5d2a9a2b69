//! Who else is told of what fills bring, and fills that nobody but that one waits for.

use std::{fmt, sync::Arc};

use tokio::time::Instant;

use super::{ClientRequest, Pages, PagesErrorKind, Sources, single_flight::FillContext};
use crate::{
    cache::{StoredPage, space::Remembered},
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
