//! How many streams and waiting requests there may be at once: in all, of one client, and of one browser token.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::{
    api::{ApiError, Client, rate_limit::RateLimit},
    config::ChangesConfig,
    telemetry::metrics::{ChangesMetrics, GaugeGuard},
};

/// What one who may open no more is told to wait: one of its own has to end.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Who holds streams.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Client(Arc<str>),
    Token([u8; 32]),
}

/// The streams that are open.
#[derive(Debug, Default)]
pub struct Streams {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_holder: HashMap<Holder, usize>,
}

/// The right to one stream, while this lives.
#[derive(Debug)]
pub(super) struct Slot {
    streams: Arc<Streams>,
    holders: Vec<Holder>,
    _counted: GaugeGuard,
}

impl Streams {
    /// Takes a slot for `client`, whose browser token this is the digest of, if it uses one.
    ///
    /// # Errors
    ///
    /// Returns whose limit is reached.
    pub(super) fn take(
        self: &Arc<Self>,
        client: &Client,
        token: Option<[u8; 32]>,
        limits: &ChangesConfig,
        metrics: &ChangesMetrics,
    ) -> Result<Slot, ApiError> {
        let client = Holder::Client(client.name().clone());
        let token = token.map(Holder::Token);
        let holders = [
            Some((client, limits.max_streams_per_client)),
            token.map(|token| (token, limits.max_streams_per_token)),
        ];
        let holders: Vec<_> = holders.into_iter().flatten().collect();
        let mut open = self.open.lock();
        for (holder, most) in &holders {
            if open.by_holder.get(holder).is_some_and(|held| held >= most) {
                return Err(spent(*most));
            }
        }
        if open.all >= limits.max_streams {
            return Err(ApiError::Overloaded);
        }
        open.all += 1;
        let holders: Vec<_> = holders.into_iter().map(|(holder, _)| holder).collect();
        for holder in &holders {
            *open.by_holder.entry(holder.clone()).or_default() += 1;
        }
        drop(open);
        Ok(Slot {
            streams: self.clone(),
            holders,
            _counted: metrics.stream(),
        })
    }
}

fn spent(most: usize) -> ApiError {
    ApiError::RateLimited(RateLimit {
        policy: "streams",
        quota: u32::try_from(most).unwrap_or(u32::MAX),
        window: RETRY_AFTER,
        remaining: 0,
        reset_after: RETRY_AFTER,
    })
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock();
        open.all -= 1;
        for holder in &self.holders {
            if let Some(held) = open.by_holder.get_mut(holder) {
                *held -= 1;
                if *held == 0 {
                    open.by_holder.remove(holder);
                }
            }
        }
    }
}
