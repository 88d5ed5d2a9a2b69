//! The provider's keys as they are now: read again every few minutes, and when a token names one that is not known.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use jsonwebtoken::Algorithm;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tracing::{info, warn};

use super::{
    KeySet,
    source::{ReadError, Source},
};
use crate::config::{JwtConfig, Problems};

const REFRESH_EVERY: Duration = Duration::from_secs(10 * 60);
/// Between two readings that unknown keys ask for: anybody can make up a key's name.
const ASKED_AT_MOST_EVERY: Duration = Duration::from_secs(60);
/// After a failed reading, at first and at most: a provider that starts together with the gateway is met soon.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Keys that are kept up to date by a task of their own, which ends with them.
#[derive(Debug)]
pub(in crate::api::clients) struct LiveKeys {
    shared: Arc<Shared>,
    keeping: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    source: Source,
    algorithms: Vec<Algorithm>,
    /// The last good set; `None` until the first was read.
    current: ArcSwapOption<KeySet>,
    wanted: Notify,
    asked: Asked,
}

impl LiveKeys {
    /// Reads a file's keys now; those behind a URL are fetched in the background, and are not there until then.
    ///
    /// # Errors
    ///
    /// Returns the problem of a file that holds no key for the algorithms that are configured.
    ///
    /// # Panics
    ///
    /// Panics outside a runtime, which its task needs.
    pub(in crate::api::clients) fn start(config: &JwtConfig) -> Result<Self, Problems> {
        let source = Source::new(config)?;
        let algorithms: Vec<Algorithm> = config
            .algorithms
            .iter()
            .map(|name| (*name).into())
            .collect();
        let first = match &source {
            Source::Url { .. } => None,
            Source::File(file) => {
                let problem = |text| Problems::one("auth.jwt.jwks_file", text);
                let document = std::fs::read(file)
                    .map_err(|error| problem(format!("cannot be read: {error}")))?;
                let keys = KeySet::parse(&document, &algorithms)
                    .map_err(|_| problem("expected a JWKS: {\"keys\": […]}".to_owned()))?;
                if keys.len() == 0 {
                    return Err(problem("holds no key for auth.jwt.algorithms".to_owned()));
                }
                Some(Arc::new(keys))
            }
        };
        let shared = Arc::new(Shared {
            source,
            algorithms,
            current: ArcSwapOption::new(first),
            wanted: Notify::new(),
            asked: Asked::default(),
        });
        Ok(Self {
            keeping: tokio::spawn(shared.clone().keep_fresh()),
            shared,
        })
    }

    /// The last good set.
    pub(in crate::api::clients) fn current(&self) -> Option<Arc<KeySet>> {
        self.shared.current.load_full()
    }

    /// A token names a key that is not in the set: perhaps it is new.
    pub(in crate::api::clients) fn missed(&self) {
        if self.shared.asked.passes(Instant::now()) {
            self.reload();
        }
    }

    /// Reads the keys again, in the background.
    pub(in crate::api::clients) fn reload(&self) {
        self.shared.wanted.notify_one();
    }

    /// Whether these are the keys that `config` means.
    pub(in crate::api::clients) fn are_of(&self, config: &JwtConfig) -> bool {
        let algorithms = config.algorithms.iter().map(|name| Algorithm::from(*name));
        self.shared.source.is_of(config) && algorithms.eq(self.shared.algorithms.iter().copied())
    }
}

impl Drop for LiveKeys {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl Shared {
    async fn keep_fresh(self: Arc<Self>) {
        let has_keys = self.current.load().is_some();
        let mut wait = if has_keys {
            REFRESH_EVERY
        } else {
            Duration::ZERO
        };
        let mut failures = 0;
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wanted.notified() => {}
            }
            match self.refresh().await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    warn!(%error, error.cause = %error.cause(), "the identity provider's keys could not be read; the last ones stay in force");
                }
            }
            wait = next_refresh(failures);
        }
    }

    /// Reads the document and puts it in force if it says anything new.
    async fn refresh(&self) -> Result<(), ReadError> {
        let document = self.source.read().await?;
        let keys = KeySet::parse(&document, &self.algorithms)?;
        if self.current.load().as_deref() == Some(&keys) {
            return Ok(());
        }
        // What was published is in force, even where it is nothing: that is how a provider withdraws its keys.
        if keys.len() == 0 {
            warn!("the identity provider publishes no key that is of use here");
        } else {
            info!(
                jwks.keys = keys.len(),
                "the identity provider's keys are in force"
            );
        }
        self.current.store(Some(Arc::new(keys)));
        Ok(())
    }
}

/// How long after a reading the next is due; `failures` have come in a row.
fn next_refresh(failures: u32) -> Duration {
    let [first, most] = RETRY;
    match failures.checked_sub(1) {
        None => REFRESH_EVERY,
        Some(doublings) => first
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(most),
    }
}

/// When an unknown key last asked for a reading.
#[derive(Debug, Default)]
struct Asked(Mutex<Option<Instant>>);

impl Asked {
    fn passes(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passes = last.is_none_or(|last| now - last >= ASKED_AT_MOST_EVERY);
        if passes {
            *last = Some(now);
        }
        passes
    }
}

#[cfg(test)]
mod tests;
