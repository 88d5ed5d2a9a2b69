//! `[cache]`: how long a page lives and how much is kept.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{Problems, value};

mod redis;

pub use self::redis::{HostPort, RedisAddress, RedisConfig, RedisCredentials, RedisServers};

/// `[cache]`: lifetimes, stale fallbacks and capacity.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    #[serde(deserialize_with = "value::bytes")]
    pub max_bytes: usize,
    /// How long a page is fresh if the upstream states no lifetime.
    #[serde(deserialize_with = "value::duration")]
    pub ttl: Duration,
    /// How short that may become where the quota has calls left; `None`: no shorter.
    #[serde(default, deserialize_with = "value::some_duration")]
    pub ttl_min: Option<Duration>,
    #[serde(deserialize_with = "value::ratio")]
    pub jitter: f64,
    #[serde(deserialize_with = "value::duration")]
    pub negative_ttl: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub rejected_ttl: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub stale_while_revalidate: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub stale_if_error: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub stale_if_quota: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub stale_if_slow: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub client_max_age: Duration,
    pub coherent_pages: bool,
    #[serde(deserialize_with = "value::duration")]
    pub settled_ttl: Duration,
    /// How long a finished task must have been the same for that.
    #[serde(deserialize_with = "value::duration")]
    pub settled_after: Duration,
    pub final_states: Vec<String>,
    pub assemble_pages: bool,
    pub stretch_to_quota: bool,
    #[serde(deserialize_with = "value::duration")]
    pub stretch_max: Duration,
    pub obey_upstream: bool,
    /// Where pages are kept over a restart.
    pub snapshot_file: Option<PathBuf>,
    pub redis: RedisConfig,
}

impl CacheConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        // Sums of an instant and a few of these must not overflow.
        const LONGEST: Duration = Duration::from_secs(10 * 31_557_600);
        for (key, time) in [
            ("cache.ttl", self.ttl),
            ("cache.ttl_min", self.ttl_min.unwrap_or_default()),
            ("cache.negative_ttl", self.negative_ttl),
            ("cache.rejected_ttl", self.rejected_ttl),
            ("cache.stale_while_revalidate", self.stale_while_revalidate),
            ("cache.stale_if_error", self.stale_if_error),
            ("cache.stale_if_quota", self.stale_if_quota),
            ("cache.stale_if_slow", self.stale_if_slow),
            ("cache.client_max_age", self.client_max_age),
            ("cache.settled_ttl", self.settled_ttl),
            ("cache.settled_after", self.settled_after),
            ("cache.stretch_max", self.stretch_max),
        ] {
            if time > LONGEST {
                problems.add(key, "expected 10years or less");
            }
        }
        self.redis.check(problems);
        if self.max_bytes < 64 * 1024 {
            problems.add("cache.max_bytes", "expected 64KiB or more");
        }
        if let Some(Err(text)) = self.snapshot_file.as_deref().map(check_replaceable) {
            problems.add("cache.snapshot_file", text);
        }
    }
}

/// Whether `file` can be replaced, tried with a file beside it: permissions alone do not tell.
fn check_replaceable(file: &Path) -> Result<(), String> {
    let name = file.file_name().filter(|_| !file.is_dir());
    let name = name.ok_or("expected the path of a file")?;
    // A bare file name has an empty parent: the current folder.
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err("expected the path of a file in a folder that exists".to_owned());
    }
    let beside = format!(".{}.check-{}", name.display(), std::process::id());
    let beside = folder.join(beside);
    std::fs::write(&beside, "")
        .and_then(|()| std::fs::remove_file(&beside))
        .map_err(|error| format!("its folder cannot be written in: {error}"))
}
