//! What may be served in place of an error: the stored page, else one cut from stored pages of other sizes.
//!
//! [`Pages::fallback`] is the one question. Whoever has an error to answer with asks it, and so does what only needs to know: the queue for
//! the quota, and operators.

use std::sync::Arc;

use tokio::time::Instant;

use super::{ClientRequest, Pages, PagesError, Served, decision::hit};
use crate::{
    cache::{
        StoredPage,
        assemble::Cuts,
        freshness::{FillReason, StaleIf},
        status::Detail,
    },
    domain::PageKey,
    upstream::{Credential, Need, UpstreamError, Waiter},
};

/// What may be served in place of an error.
#[derive(Debug)]
pub(in crate::service) enum Fallback {
    Stored(Served),
    /// Stored pages of other sizes that hold all of it.
    Cuts(Cuts),
}

impl Pages {
    /// What may be served for `key` in place of `error`; `None`: nothing.
    pub(in crate::service) fn fallback(
        &self,
        error: &UpstreamError,
        key: &PageKey,
        credential: &Credential,
        now: Instant,
    ) -> Option<Fallback> {
        if !may_be_hidden(error, credential) {
            return None;
        }
        let stored = self.store.get(key);
        match stored.and_then(|page| stale_fallback(error, &page, credential, now)) {
            Some(served) => Some(Fallback::Stored(served)),
            None => {
                let cuts = self.store.stale_cuts(key, stale_if(error), now);
                cuts.map(Fallback::Cuts)
            }
        }
    }

    /// The fallback for `error` where there is one, else `error`.
    pub(super) async fn in_place_of(
        self: &Arc<Self>,
        error: PagesError,
        key: &PageKey,
        request: &ClientRequest,
    ) -> Result<Served, PagesError> {
        let Some(upstream) = error.kind.upstream() else {
            return Err(error);
        };
        let (credential, now) = (&request.credential, Instant::now());
        let served = match self.fallback(upstream, key, credential, now) {
            None => None,
            Some(Fallback::Stored(served)) => Some(served),
            Some(Fallback::Cuts(cuts)) => {
                cuts.note_asked(now);
                match self.cut(cuts, now).await {
                    Some(page) => stale_fallback(upstream, &page.into(), credential, now),
                    None => None,
                }
            }
        };
        let Some(served) = served else {
            return Err(error);
        };
        served.page.note_asked(now);
        Ok(Served {
            calls: error.calls,
            ..served
        })
    }

    /// The stale page for who has waited too long for the fill of `key`, which goes on; `None`: it waits on.
    pub(super) async fn while_slow(
        self: &Arc<Self>,
        key: &PageKey,
        request: &ClientRequest,
        now: Instant,
    ) -> Option<Served> {
        // An old list, or a right that was revoked meanwhile, must not show.
        let may_show = |page: &Arc<StoredPage>| page.moved_at().is_none();
        let page = match self.store.get(key).filter(may_show) {
            Some(page) => page,
            None => {
                let cuts = self.store.stale_cuts(key, StaleIf::Error, now)?;
                let page = Arc::new(self.cut(cuts, now).await?);
                Some(page).filter(may_show)?
            }
        };
        let ttl = page.stale_if(StaleIf::Error, now)?;
        if request.credential.is_refused() {
            return None;
        }
        page.note_asked(now);
        Some(hit(page, ttl, Some(Detail::StaleIfSlow), now))
    }

    /// The client of `request` as a waiter for a fill that is made for `reason`: how much it needs the fill shows by what it would get
    /// without a call.
    pub(super) fn waiter(
        &self,
        key: &PageKey,
        request: &ClientRequest,
        reason: FillReason,
    ) -> Waiter {
        let now = Instant::now();
        let spent = UpstreamError::QuotaExhausted { retry_after: None };
        let need = match self.fallback(&spent, key, &request.credential, now) {
            _ if reason == FillReason::Request => Need::Forced,
            None => Need::Nothing,
            Some(Fallback::Stored(served)) => match served.page.stale_if(StaleIf::Error, now) {
                Some(_) => Need::Refresh(served.page.freshness(now).overdue_at(now)),
                None => Need::Oldest,
            },
            Some(Fallback::Cuts(_)) => match self.store.stale_cuts(key, StaleIf::Error, now) {
                Some(cuts) => Need::Refresh(cuts.overdue_at(now)),
                None => Need::Oldest,
            },
        };
        Waiter {
            need,
            client: request.account.client().clone(),
        }
    }
}

fn may_be_hidden(error: &UpstreamError, credential: &Credential) -> bool {
    error.allows_stale() && !credential.is_refused()
}

fn stale_if(error: &UpstreamError) -> StaleIf {
    match error {
        UpstreamError::QuotaExhausted { .. } => StaleIf::Quota,
        _ => StaleIf::Error,
    }
}

/// `page` in place of `error`, where both allow it.
pub(in crate::service) fn stale_fallback(
    error: &UpstreamError,
    page: &Arc<StoredPage>,
    credential: &Credential,
    now: Instant,
) -> Option<Served> {
    // A right that was revoked meanwhile must not show.
    if !may_be_hidden(error, credential) || page.is_invalidated() {
        return None;
    }
    let reason = stale_if(error);
    let ttl = page.stale_if(reason, now)?;
    let detail = match reason {
        StaleIf::Quota => Detail::Quota,
        StaleIf::Error => Detail::StaleIfError,
    };
    Some(hit(page.clone(), ttl, Some(detail), now))
}
