//! Reading the configuration anew: what may change while the gateway runs changes all at once, or not at all.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::parts;
use crate::{
    api::{
        Clients, Issuers, LivePolicy, Policy,
        admin::{Reload, Reloaded},
    },
    config::{Config, Problems},
    server::Tls,
    service::{Snapshot, Tasks},
    shared::Link,
    telemetry::{
        Log,
        metrics::{Metrics, ReloadOutcome},
    },
    upstream::{Credentials, LimitLayer, Succession, Upstream},
};

/// Keys that are read at start alone, as they stand or with everything below them.
const AT_START: &[&str] = &[
    "server.listen",
    "server.workers",
    "server.header_read_timeout",
    "server.idle_timeout",
    "server.request_timeout",
    "server.max_connections",
    "server.max_in_flight",
    "server.max_header_bytes",
    "server.drain_delay",
    "server.drain_timeout",
    "server.proxy_protocol",
    "server.trusted_proxies",
    "server.forwarded_header",
    "admin.listen",
    "auth.max_failures",
    "upstream.max_concurrency",
    "upstream.max_queue",
    "cache.max_bytes",
    "cache.snapshot_file",
    "cache.redis",
    "telemetry.format",
    "telemetry.access_log",
    "telemetry.otlp_endpoint",
];

/// What a running gateway is made of, as far as it can be changed.
#[derive(Debug)]
pub(super) struct Reloader {
    pub(super) policy: LivePolicy,
    pub(super) tasks: Arc<Tasks>,
    pub(super) snapshot: Option<Arc<Snapshot>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limit: LimitLayer,
    pub(super) redis: Option<Arc<Link>>,
    pub(super) tls: Option<Tls>,
    pub(super) log: Log,
    /// What operators are shown.
    pub(super) effective: Arc<ArcSwap<String>>,
    pub(super) configs: Mutex<Configs>,
}

/// What the gateway began with, and what is in force: one reload at a time compares with both.
#[derive(Debug)]
pub(super) struct Configs {
    started: Arc<Config>,
    in_force: Arc<Config>,
    /// Of the files as they were read last, whether that was put in force or not.
    files: Digests,
}

/// What each file holds: tells a change from a mere touch.
type Digests = BTreeMap<PathBuf, blake3::Hash>;

fn digests(files: Vec<PathBuf>) -> Digests {
    let with_digest = |file: PathBuf| {
        let digest = digest(&file);
        (file, digest)
    };
    files.into_iter().map(with_digest).collect()
}

fn digest(file: &Path) -> blake3::Hash {
    blake3::hash(&std::fs::read(file).unwrap_or_default())
}

impl Configs {
    pub(super) fn new(started: Arc<Config>) -> Mutex<Self> {
        Mutex::new(Self {
            files: digests(started.files()),
            in_force: started.clone(),
            started,
        })
    }

    fn read_anew(&mut self) -> Result<Config, Problems> {
        // Before they are read: what changes meanwhile is a change.
        self.files = digests(self.in_force.files());
        self.in_force.reread()
    }

    fn have_files_changed(&self) -> bool {
        self.files != digests(self.in_force.files())
    }
}

/// Everything a new configuration brings that can fail to be built.
struct Next {
    config: Arc<Config>,
    credentials: Credentials,
    succession: Succession,
    upstream: Arc<Upstream>,
    tls: Option<Arc<rustls::ServerConfig>>,
    issuers: Issuers,
}

impl Reload for Reloader {
    /// Reads the configuration and every file it names, and puts it in force as a whole.
    ///
    /// Blocks on the file system.
    fn reload(&self, who: &str) -> Result<Reloaded, Problems> {
        let mut configs = self.configs();
        let next = configs
            .read_anew()
            .and_then(|config| self.prepare(Arc::new(config), &configs));
        match next {
            Ok(next) => {
                let reloaded = self.put_in_force(next, &mut configs);
                self.metrics.reloaded(ReloadOutcome::Applied);
                info!(
                    reload.by = who,
                    reload.changed = reloaded.changed.join(" "),
                    "configuration is reloaded"
                );
                if !reloaded.needs_restart.is_empty() {
                    warn!(
                        reload.keys = reloaded.needs_restart.join(" "),
                        "changed keys take effect after a restart"
                    );
                }
                Ok(reloaded)
            }
            Err(problems) => {
                self.metrics.reloaded(ReloadOutcome::Refused);
                let text = problems.to_string().replace('\n', "; ");
                error!(
                    reload.by = who,
                    reload.problems = text,
                    "the new configuration is refused, the old one stays"
                );
                Err(problems)
            }
        }
    }
}

impl Reloader {
    /// Builds what `config` says, without changing anything.
    fn prepare(&self, config: Arc<Config>, configs: &Configs) -> Result<Next, Problems> {
        check_reachable(&config, configs)?;
        let changed = config.changed_since(&configs.in_force);
        let policy = self.policy.load();
        let (credentials, succession) = policy.clients.credentials().reload(&config.upstream)?;
        let rebuilt = changed.iter().any(|key| is_of_the_stack(key));
        // Its text may have changed, whatever its name.
        let upstream = if rebuilt || config.upstream.ca_file.is_some() {
            let built = parts::upstream(&config, self.limit.clone(), &self.metrics);
            Arc::new(built.map_err(|error| Problems::one("upstream", error.to_string()))?)
        } else {
            policy.upstream.clone()
        };
        // Whether there is TLS at all is settled at start.
        let tls = config.server.tls.as_ref().filter(|_| self.tls.is_some());
        Ok(Next {
            tls: tls.map(Tls::read).transpose()?,
            issuers: Issuers::load(&config.auth, Some(policy.clients.issuers()))?,
            config,
            credentials,
            succession,
            upstream,
        })
    }

    fn put_in_force(&self, next: Next, configs: &mut Configs) -> Reloaded {
        let config = next.config;
        let reloaded = Reloaded {
            changed: config.changed_since(&configs.in_force),
            needs_restart: config
                .changed_since(&configs.started)
                .into_iter()
                .filter(|key| is_read_at_start(key))
                .collect(),
        };
        self.metrics
            .add_credentials(next.credentials.all().map(|known| known.name.as_str()));
        let before = self.policy.load();
        let clients = Clients::new(
            &config.clients,
            &config.views,
            next.credentials,
            next.issuers,
            Some(&before.clients),
        );
        // Where the provider is the same its keys go on; their file may hold others now.
        clients.issuers().reload_keys();
        let credentials = clients.credentials().clone();
        if let Some(link) = &self.redis {
            clients.share_limits(link);
            parts::share_calls(link, &credentials);
        }
        // What is known of the old tokens and of their pages ends first: no request under the new policy meets it. Calls under way
        // are heard no more, and what they bring is not kept.
        credentials.succeed(before.clients.credentials());
        let store = self.tasks.store();
        store.reconfigure(&config.cache);
        for credential in next.succession.distrusted {
            store.distrust(credential, Instant::now());
        }
        let policy = Policy::new(&config, clients, next.upstream);
        self.policy.store(Arc::new(policy));
        // Last: who came in under the old policy may have filled another page of theirs.
        for credential in next.succession.dropped {
            store.forget(credential);
        }
        if let Some((tls, setup)) = self.tls.as_ref().zip(next.tls) {
            tls.replace(setup);
        }
        self.tasks.set_credentials(credentials.clone());
        if let Some(snapshot) = &self.snapshot {
            snapshot.set_credentials(credentials);
        }
        self.log.set_filter(&config.telemetry);
        self.effective.store(Arc::new(config.effective()));
        configs.in_force = config;
        reloaded
    }

    /// The files whose change may change the configuration.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.configs().files.keys().cloned().collect()
    }

    /// Reads anew after a file has changed; a touch that changes nothing is no news.
    pub(super) fn files_changed(&self) {
        let changed = self.configs().have_files_changed();
        if changed {
            // It tells the log, whichever way it ends.
            let _ = self.reload("a changed file");
        }
    }

    fn configs(&self) -> std::sync::MutexGuard<'_, Configs> {
        self.configs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The operators' listener stays where it is, whatever the file now says: its key may not go while others reach it.
fn check_reachable(config: &Config, configs: &Configs) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let listens_at = &configs.started.admin.listen;
    config.admin.check_reachable_at(listens_at, &mut problems);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

fn is_read_at_start(key: &str) -> bool {
    // Its files may change, but not whether there are any.
    key == "server.tls" || AT_START.iter().any(|read| is_within(key, read))
}

/// Whether the upstream stack is built anew for a change of `key`.
fn is_of_the_stack(key: &str) -> bool {
    is_within(key, "normalize")
        || is_within(key, "upstream") && !is_within(key, "upstream.credentials")
}

/// Whether `key` is `section` or stands within it, or holds it: a whole section may come or go.
fn is_within(key: &str, section: &str) -> bool {
    let below = |outer: &str, inner: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    below(section, key) || below(key, section)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_at_start_alone_is_told_apart() {
        for (key, at_start, of_the_stack) in [
            ("server.listen", true, false),
            ("server.tls", true, false),
            ("server.tls.cert_file", false, false),
            ("admin.listen", true, false),
            ("admin.key_sha256", false, false),
            ("cache.ttl", false, false),
            ("cache.max_bytes", true, false),
            ("cache.redis.timeout", true, false),
            ("clients", false, false),
            ("upstream.timeout", false, true),
            ("upstream.max_concurrency", true, true),
            ("upstream.credentials.default.token", false, false),
            ("upstream.circuit.window", false, true),
            ("normalize.rules", false, true),
            ("normalize", false, true),
            ("telemetry.filter", false, false),
        ] {
            assert_eq!(is_read_at_start(key), at_start, "{key}");
            assert_eq!(is_of_the_stack(key), of_the_stack, "{key}");
        }
    }
}
