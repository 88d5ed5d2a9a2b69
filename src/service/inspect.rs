//! What is stored and what a request would get now: for operators, without changing anything.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use super::{
    Pages,
    pages::{remembered, stale_fallback},
};
use crate::{
    cache::{
        StoredPage, Verdict, assemble::Cuts, freshness::FillReason,
        http_semantics::RequestDirectives, judge_page,
    },
    domain::{PageKey, PageQuery, SpaceKey, SpaceToken},
    upstream::{Credential, Credentials, UpstreamError},
};

/// A stored page as an operator sees it. Times in seconds.
#[derive(Debug, Serialize)]
pub struct PageReport {
    pub collection: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    pub page: u32,
    pub page_size: u32,
    pub age: u64,
    /// Negative where it is stale.
    pub ttl: i64,
    pub bytes: usize,
    /// The state of the list it was cut from.
    pub generation: String,
    /// Whether its list has moved on, or it comes from a snapshot.
    pub overtaken: bool,
}

/// What is stored of a space, as one credential sees it, by its fingerprint. Times in seconds.
#[derive(Debug, Serialize)]
pub struct SpaceReport {
    pub space: String,
    pub credential: String,
    pub pages: usize,
    /// Of those, how many would be shown as they are.
    pub fresh: usize,
    pub bytes: usize,
    pub youngest_age: u64,
    pub oldest_age: u64,
}

/// What a plain request would get now, and why.
#[derive(Debug, Serialize)]
pub struct Explanation {
    pub verdict: &'static str,
    pub why: &'static str,
    pub credential: String,
    /// Whether the upstream refused the credential lately: then nothing stale is shown.
    pub credential_refused: bool,
    /// Whether it refused it so lately that no call is made with it.
    pub credential_held: bool,
    /// Whether the upstream is asked for this space: a fill fails at once while the circuit is open.
    pub circuit: &'static str,
    /// In how many seconds an open circuit lets a call through; `None`: now.
    pub circuit_wait: Option<u64>,
    /// In how many seconds the quota allows a call; `None`: now.
    pub quota_wait: Option<u64>,
    /// What the upstream refuses about this page, and for how many seconds that is still remembered.
    pub refusal: Option<(&'static str, u64)>,
    pub stored: Option<PageReport>,
    /// The range that the page is cut from, or fetched with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<RangeReport>,
}

/// A range of rows that one call fetches.
#[derive(Debug, Serialize)]
pub struct RangeReport {
    pub page: u32,
    pub page_size: u32,
    /// What is stored of it.
    pub stored: Option<PageReport>,
}

impl Pages {
    /// Every stored page of a space.
    #[must_use]
    pub fn stored_pages(&self, space: &SpaceKey, now: Instant) -> Vec<PageReport> {
        let stored = self.store().pages_of(space);
        stored.iter().map(|part| report(&part.page, now)).collect()
    }

    /// The `most` spaces of which most pages are stored.
    #[must_use]
    pub fn largest_spaces(
        &self,
        most: usize,
        credentials: &Credentials,
        now: Instant,
    ) -> Vec<SpaceReport> {
        let spaces = self.store().largest_spaces(most).into_iter();
        spaces
            .filter_map(|key| {
                let mut known = credentials.all();
                let credential = known.find(|known| known.id == key.credential)?;
                self.space_report(&key, credential, now)
            })
            .collect()
    }

    /// None where its last page has gone meanwhile.
    fn space_report(
        &self,
        key: &SpaceKey,
        credential: &Credential,
        now: Instant,
    ) -> Option<SpaceReport> {
        let stored = self.store().pages_of(key);
        let ages = || stored.iter().map(|part| part.page.age(now).as_secs());
        Some(SpaceReport {
            space: key.space.to_string(),
            credential: credential.name.clone(),
            pages: stored.len(),
            fresh: stored
                .iter()
                .filter(|part| !part.page.fresh_for(now).is_zero())
                .count(),
            bytes: stored.iter().map(|part| part.page.weight()).sum(),
            youngest_age: ages().min()?,
            oldest_age: ages().max()?,
        })
    }

    /// Why no request on `credential` could be answered now, by a call or by a stored page; `None`: some could.
    ///
    /// Looks at stored pages only where no call could be made, and ends at the first that may be shown.
    #[must_use]
    pub fn could_answer_nothing(
        &self,
        credential: &Credential,
        now: Instant,
    ) -> Option<UpstreamError> {
        let error = no_call(credential, None, now).filter(|error| match error {
            // A request may wait as long.
            UpstreamError::QuotaExhausted { retry_after } => *retry_after > Some(self.patience()),
            _ => true,
        })?;
        let may_be_shown = |page: &Arc<StoredPage>| {
            !page.fresh_for(now).is_zero()
                || stale_fallback(&error, page, credential, now).is_some()
        };
        let has_pages = self.store().any_page(credential.id, may_be_shown);
        (!has_pages).then_some(error)
    }

    /// What a request without directives would get for `key` now.
    #[must_use]
    pub fn explain(&self, key: &PageKey, credential: &Credential, now: Instant) -> Explanation {
        let only_fresh = credential.is_refused();
        let request = RequestDirectives::default();
        let judged = |stored: &Option<Arc<StoredPage>>| {
            judge_page(stored.as_deref(), only_fresh, &request, now)
        };
        let (mut shown, mut range) = (self.store().get(key), None);
        let mut verdict = judged(&shown);
        if let (Verdict::Fill(_), Some(query)) = (verdict, self.range_for(key, credential, now)) {
            let stored = self.store().get(&key.at(query));
            if let Some(whole) = stored.as_ref().filter(|whole| holds(whole, key.query)) {
                verdict = judged(&stored);
                shown = Some(whole.clone());
            }
            range = Some(RangeReport {
                page: query.page,
                page_size: query.page_size,
                stored: stored.map(|page| report(&page, now)),
            });
        }
        let stored = self.store().get(key);
        let overtaken = shown.as_ref().is_some_and(|page| page.moved_at().is_some());
        let refusal = self.store().refusal(key, now);
        let quota_wait = credential.budget().wait_expected(now);
        let space = Some(&key.list.space.space);
        let has_fallback =
            |error: &UpstreamError| self.fallback(error, key, credential, now).is_some();
        let (verdict, why) = match (&verdict, &refusal, no_call(credential, space, now)) {
            (Verdict::Fill(_), Some(known), _) => {
                words_of_a_refusal(has_fallback(&remembered(known.refusal)))
            }
            (Verdict::Fill(_), None, _) if self.store().cuts(key, now).is_some() => {
                ("assembled", "cut from fresh pages of other sizes")
            }
            (Verdict::Fill(_), None, Some(error)) => words_of_no_call(&error, has_fallback(&error)),
            (Verdict::Fill(FillReason::UriMiss), ..) if range.is_some() => (
                "fill",
                "not stored: fetched with the rows around it by one call",
            ),
            (Verdict::Hit { .. }, ..) if range.is_some() => {
                ("assembled", "cut from the fresh range that holds it")
            }
            _ => words(verdict, overtaken),
        };
        Explanation {
            verdict,
            why,
            credential: credential.name.clone(),
            credential_refused: only_fresh,
            credential_held: credential.is_blocked(now),
            circuit: credential
                .circuit()
                .state_for(&key.list.space.space)
                .as_str(),
            circuit_wait: credential
                .circuit()
                .refuses(space)
                .map(|wait| wait.as_secs()),
            quota_wait: quota_wait.map(|wait| wait.as_secs()),
            refusal: refusal.map(|known| {
                let error = remembered(known.refusal);
                (error.as_str(), (known.until - now).as_secs())
            }),
            stored: stored.map(|page| report(&page, now)),
            range,
        }
    }
}

/// Whether the page of `query` can be cut from `whole`.
fn holds(whole: &Arc<StoredPage>, query: PageQuery) -> bool {
    Cuts::of_one(query, whole).is_some()
}

fn report(page: &StoredPage, now: Instant) -> PageReport {
    let (list, query) = (&page.key().list.id, page.key().query);
    let age = page.age(now);
    let lifetime = page.freshness(now).lifetime();
    PageReport {
        collection: list.collection().name,
        run_id: list.run().map(ToString::to_string),
        page: query.page,
        page_size: query.page_size,
        age: age.as_secs(),
        ttl: seconds(lifetime) - seconds(age),
        bytes: page.weight(),
        generation: page.list_generation.as_ref().map_or_else(
            || format!("{:016x}", page.generation()),
            |name| name.to_str().unwrap_or_default().to_owned(),
        ),
        overtaken: page.moved_at().is_some(),
    }
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// What a fill of `space`, or of any, with `credential` would end in now, without a call.
fn no_call(
    credential: &Credential,
    space: Option<&SpaceToken>,
    now: Instant,
) -> Option<UpstreamError> {
    if credential.is_blocked(now) {
        return Some(UpstreamError::AuthFailed);
    }
    if let Some(retry_after) = credential.circuit().refuses(space) {
        return Some(UpstreamError::Unavailable { retry_after });
    }
    let wait = credential.budget().wait_expected(now)?;
    Some(UpstreamError::QuotaExhausted {
        retry_after: Some(wait),
    })
}

fn words_of_no_call(error: &UpstreamError, has_fallback: bool) -> (&'static str, &'static str) {
    match (error, has_fallback) {
        (UpstreamError::QuotaExhausted { .. }, _) => words_of_a_spent_quota(has_fallback),
        (UpstreamError::Unavailable { .. }, true) => (
            "stale-if-error",
            "the circuit is open: the old page is served until the upstream is asked again",
        ),
        (UpstreamError::Unavailable { .. }, false) => (
            "circuit-open",
            "the circuit is open: refused until the upstream is asked again",
        ),
        _ => (
            "refused",
            "the upstream refused the credential a moment ago: refused without a call for some seconds",
        ),
    }
}

fn words_of_a_refusal(has_fallback: bool) -> (&'static str, &'static str) {
    if has_fallback {
        (
            "stale-if-error",
            "the upstream failed a moment ago: the old page is served until it is asked again",
        )
    } else {
        (
            "refused",
            "the upstream refused it a moment ago: the same error until that is forgotten",
        )
    }
}

fn words_of_a_spent_quota(has_fallback: bool) -> (&'static str, &'static str) {
    if has_fallback {
        (
            "quota",
            "the quota is spent: the old page is served until there is a call for it",
        )
    } else {
        (
            "fill",
            "the quota is spent: waits for a call, or refused where none is to be had in time",
        )
    }
}

fn words(verdict: Verdict, overtaken: bool) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Hit { .. } => ("hit", "stored and fresh"),
        Verdict::HitWhileRevalidate { .. } => (
            "stale-while-revalidate",
            "stale for a short while: served at once, refreshed in the background",
        ),
        Verdict::Fill(FillReason::UriMiss | FillReason::Bypass) => ("fill", "not stored: fetched"),
        Verdict::Fill(FillReason::Stale) if overtaken => (
            "fill",
            "its list has moved on, or it comes from a snapshot: fetched before it is shown",
        ),
        Verdict::Fill(FillReason::Stale) => ("fill", "stale: fetched before it is shown"),
        Verdict::Fill(FillReason::Request) => ("fill", "the request asks for it"),
        Verdict::NotCached => ("not-cached", "the request wants nothing but what is stored"),
    }
}
