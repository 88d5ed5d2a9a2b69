//! The provider's current keys: refreshed every few minutes, and when a token names an unknown one.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jsonwebtoken::Algorithm;
use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tracing::{info, warn};

use super::{
    KeySet,
    source::{ReadError, Source, read_file},
};
use crate::config::{JwtConfig, Problems};

const REFRESH_EVERY: Duration = Duration::from_secs(10 * 60);
/// The shortest time between refreshes for unknown keys: anybody can make up a key id.
const ASKED_AT_MOST_EVERY: Duration = Duration::from_secs(60);
/// The first pause after a failure: a provider that starts together with the gateway is found soon.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause, with keys and without any.
const RETRY_AT_MOST: Duration = Duration::from_secs(60);
const RETRY_AT_MOST_WITHOUT_KEYS: Duration = Duration::from_secs(10);

/// Keys that a background task refreshes; it ends when this is dropped.
#[derive(Debug)]
pub(in crate::api::clients) struct LiveKeys {
    shared: Arc<Shared>,
    keeping: JoinHandle<()>,
}

/// How current the keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysState {
    /// The last refresh succeeded.
    Current,
    /// Older keys are in force: the last refresh failed, or there was none yet.
    Stale,
    /// There are no keys yet.
    Missing,
}

impl KeysState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Stale => "stale",
            Self::Missing => "missing",
        }
    }
}

/// The state of an identity provider's keys, since when, and the next refresh.
#[derive(Clone, Copy, Debug)]
pub struct KeysHealth {
    pub state: KeysState,
    pub since: Instant,
    pub next_reading: Instant,
}

#[derive(Debug)]
struct Shared {
    source: Source,
    algorithms: Arc<[Algorithm]>,
    /// The last good set; `None` before the first.
    current: ArcSwapOption<KeySet>,
    health: Mutex<KeysHealth>,
    wanted: Notify,
    asked: Asked,
}

impl LiveKeys {
    /// Reads a file's keys now. Keys at a URL are fetched in the background; until then those of `before` are used.
    ///
    /// # Errors
    ///
    /// Returns the problem of a file that holds no key for the algorithms that are configured.
    ///
    /// # Panics
    ///
    /// Panics outside a runtime, which its task needs.
    pub(in crate::api::clients) fn start(
        config: &JwtConfig,
        before: Option<&Self>,
    ) -> Result<Self, Problems> {
        let source = Source::new(config)?;
        let algorithms = algorithms(config);
        let (first, state) = match &source {
            Source::File(file) => (Some(read_usable(file, &algorithms)?), KeysState::Current),
            Source::Url { .. } => {
                let before = before.and_then(Self::current);
                let before = before.and_then(|keys| keys.for_algorithms(&algorithms));
                let state = if before.is_some() {
                    KeysState::Stale
                } else {
                    KeysState::Missing
                };
                (before, state)
            }
        };
        let now = Instant::now();
        let health = KeysHealth {
            state,
            since: now,
            next_reading: now,
        };
        let shared = Arc::new(Shared {
            source,
            algorithms,
            current: ArcSwapOption::new(first.map(Arc::new)),
            health: Mutex::new(health),
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

    pub(in crate::api::clients) fn health(&self) -> KeysHealth {
        *self.shared.health.lock()
    }

    /// Reports that a token names an unknown key, which may be new.
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
        self.shared.source.is_of(config) && algorithms(config) == self.shared.algorithms
    }
}

fn algorithms(config: &JwtConfig) -> Arc<[Algorithm]> {
    let named = config.algorithms.iter();
    named.map(|name| Algorithm::from(*name)).collect()
}

/// The keys of `file`, at least one of them usable. Blocking.
fn read_usable(file: &Path, algorithms: &[Algorithm]) -> Result<KeySet, Problems> {
    let problem = |text| Err(Problems::one("auth.jwt.jwks_file", text));
    match read_file(file, algorithms) {
        Ok(keys) if keys.len() > 0 => Ok(keys),
        Ok(_) => problem("holds no key for auth.jwt.algorithms".to_owned()),
        Err(ReadError::File(error)) => problem(format!("cannot be read: {error}")),
        Err(ReadError::NotJwks(_)) => problem("expected a JWKS: {\"keys\": […]}".to_owned()),
        Err(error) => problem(error.to_string()),
    }
}

impl Drop for LiveKeys {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl Shared {
    async fn keep_fresh(self: Arc<Self>) {
        let mut wait = match self.health.lock().state {
            KeysState::Current => REFRESH_EVERY,
            KeysState::Stale | KeysState::Missing => Duration::ZERO,
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
            let has_keys = self.current.load().is_some();
            wait = next_refresh(failures, has_keys);
            let state = match (failures, has_keys) {
                (0, _) => KeysState::Current,
                (_, true) => KeysState::Stale,
                (_, false) => KeysState::Missing,
            };
            self.report(state, wait);
        }
    }

    /// Reads the document and puts its keys in force if they have changed.
    async fn refresh(&self) -> Result<(), ReadError> {
        let keys = self.source.read(&self.algorithms).await?;
        if self.current.load().as_deref() == Some(&keys) {
            return Ok(());
        }
        // An empty set counts too: that is how a provider withdraws its keys.
        if keys.len() == 0 {
            warn!("the identity provider publishes no usable key");
        } else {
            info!(
                jwks.keys = keys.len(),
                "the identity provider's keys are in force"
            );
        }
        self.current.store(Some(Arc::new(keys)));
        Ok(())
    }

    /// Records the result of a refresh and the time of the next.
    fn report(&self, state: KeysState, wait: Duration) {
        let now = Instant::now();
        let mut health = self.health.lock();
        if health.state != state {
            health.since = now;
        }
        health.state = state;
        health.next_reading = now + wait;
    }
}

/// The pause until the next refresh after so many failures in a row.
fn next_refresh(failures: u32, has_keys: bool) -> Duration {
    let most = if has_keys {
        RETRY_AT_MOST
    } else {
        RETRY_AT_MOST_WITHOUT_KEYS
    };
    match failures.checked_sub(1) {
        None => REFRESH_EVERY,
        Some(doublings) => FIRST_RETRY
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(most),
    }
}

/// When an unknown key last caused a refresh.
#[derive(Debug, Default)]
struct Asked(Mutex<Option<Instant>>);

impl Asked {
    fn passes(&self, now: Instant) -> bool {
        let mut last = self.0.lock();
        let passes = last.is_none_or(|last| now - last >= ASKED_AT_MOST_EVERY);
        if passes {
            *last = Some(now);
        }
        passes
    }
}

#[cfg(test)]
mod tests;
