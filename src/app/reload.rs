//! Reloads the configuration: changes are applied atomically, or not at all.
//!
//! A thread of its own reloads and watches the files: if reading hangs (a file on a dead network mount), nothing else does. No request, no
//! other thread and no drain waits for it.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::{runtime::Handle, sync::oneshot, time::Instant};
use tracing::{error, info, warn};

use super::{
    build::{Built, build},
    parts::{self, Parts},
    watch::Watch,
};
use crate::{
    api::{
        Clients, LivePolicy, Policy,
        admin::{Reload, Reloaded},
    },
    config::{Config, Problems, files},
    server::Tls,
    service::{Changes, Pages, Snapshot},
    shared::RedisConnection,
    telemetry::{
        Log,
        metrics::{Metrics, ReloadOutcome},
        traces::CollectorHeaders,
    },
};

/// How often to check the files: soon enough for a rotation, and cheap.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Reload requests that may queue.
const MOST_WAITING: usize = 16;
const BUG: &str = "reading it ended in a bug";

/// Keys that need a restart, including everything below them.
const AT_START: &[&str] = &[
    "server.listen",
    "server.workers",
    "server.header_read_timeout",
    "server.idle_timeout",
    "server.request_timeout",
    "server.send_timeout",
    "server.max_connections",
    "server.max_in_flight",
    "server.max_header_bytes",
    "server.max_unsent_bytes",
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

/// Requests reloads from the thread, which ends when the last of these is dropped.
#[derive(Clone, Debug)]
pub(super) struct Reloads(SyncSender<Request>);

#[derive(Debug)]
struct Request {
    who: String,
    answer: oneshot::Sender<Result<Reloaded, Problems>>,
}

impl Reload for Reloads {
    fn reload(&self, who: String) -> BoxFuture<'static, Result<Reloaded, Problems>> {
        let (answer, outcome) = oneshot::channel();
        let asked = self.0.try_send(Request { who, answer });
        Box::pin(async move {
            let problem = |text: &str| Problems::one("configuration", text);
            asked.map_err(|_| {
                problem("too many reloads wait: one reads a file that does not answer")
            })?;
            outcome.await.unwrap_or_else(|_| Err(problem(BUG)))
        })
    }
}

/// The parts of a running gateway that a reload changes.
pub(super) struct Reloader {
    policy: LivePolicy,
    pages: Arc<Pages>,
    changes: Arc<Changes>,
    snapshot: Option<Arc<Snapshot>>,
    metrics: Arc<Metrics>,
    redis: Option<Arc<RedisConnection>>,
    tls: Option<Tls>,
    collector_headers: Option<CollectorHeaders>,
    log: Log,
    /// What operators are shown.
    effective: Arc<ArcSwap<String>>,
    /// The configuration at start.
    started: Arc<Config>,
    in_force: Config,
}

impl Reloader {
    /// What reloads `parts`, started with `config`.
    pub(super) fn new(
        parts: &Parts,
        config: &Arc<Config>,
        log: Log,
        effective: Arc<ArcSwap<String>>,
        snapshot: Option<Arc<Snapshot>>,
    ) -> Self {
        Self {
            policy: parts.policy.clone(),
            pages: parts.pages.clone(),
            changes: parts.changes.clone(),
            snapshot,
            metrics: parts.metrics.clone(),
            redis: parts.redis.clone(),
            tls: parts.tls.clone(),
            collector_headers: parts.collector_headers.clone(),
            log,
            effective,
            started: config.clone(),
            in_force: Config::clone(config),
        }
    }

    /// Starts the thread, which reloads on request and when a file differs from `files`.
    ///
    /// # Panics
    ///
    /// Panics outside a runtime, or where no thread can be had.
    pub(super) fn start(self, files: Digests) -> Reloads {
        let (requests, asked) = sync_channel(MOST_WAITING);
        let runtime = Handle::current();
        std::thread::Builder::new()
            .name("reload".to_owned())
            .spawn(move || {
                let _entered = runtime.enter();
                self.keep_reloading(files, &asked);
            })
            .expect("a thread can be had at start");
        Reloads(requests)
    }

    fn keep_reloading(mut self, mut files: Digests, requests: &Receiver<Request>) {
        let mut watch = Watch::default();
        loop {
            match requests.recv_timeout(LOOK_EVERY) {
                // The requester may have gone.
                Ok(request) if request.answer.is_closed() => {}
                Ok(request) => {
                    let outcome = self.reload(&request.who, &mut files);
                    let _ = request.answer.send(outcome);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let named = files.keys().cloned().collect();
                    // Touched but unchanged.
                    if watch.has_changed(named) && files != digests(self.in_force.files()) {
                        // It logs the outcome itself.
                        let _ = self.reload("a changed file", &mut files);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Reads the configuration and all its files, and puts it in force atomically. `files` is updated to what was read.
    fn reload(&mut self, who: &str, files: &mut Digests) -> Result<Reloaded, Problems> {
        // Before reading, so that later changes are noticed.
        *files = digests(self.in_force.files());
        let draft = self.in_force.redraft();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let (config, built) = draft.finish(|config| self.build(config))?;
            Ok(self.put_in_force(config, built))
        }));
        let outcome = outcome.unwrap_or_else(|_| Err(Problems::one("configuration", BUG)));
        self.tell(who, &outcome);
        outcome
    }

    fn tell(&self, who: &str, outcome: &Result<Reloaded, Problems>) {
        match outcome {
            Ok(reloaded) => {
                self.metrics.process.reloaded(ReloadOutcome::Applied);
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
            }
            Err(problems) => {
                self.metrics.process.reloaded(ReloadOutcome::Refused);
                let text = problems.to_string().replace('\n', "; ");
                error!(
                    reload.by = who,
                    reload.problems = text,
                    "the new configuration is refused, the old one stays"
                );
            }
        }
    }

    /// Builds the parts of `config` without changing anything in force.
    fn build(&self, config: &Config) -> Result<Built, Problems> {
        let mut problems = Problems::default();
        // The operators' listener does not move on a reload, so its key must not be removed while others can reach it.
        let listens_at = &self.started.admin.listen;
        config.admin.check_reachable_at(listens_at, &mut problems);
        match build(config, Some(&self.policy.load().clients)) {
            Ok(built) if problems.is_empty() => return Ok(built),
            Ok(_) => {}
            Err(found) => problems.append(found),
        }
        Err(problems)
    }

    fn put_in_force(&mut self, config: Config, next: Built) -> Reloaded {
        let reloaded = Reloaded {
            changed: config.changed_since(&self.in_force),
            needs_restart: config
                .changed_since(&self.started)
                .into_iter()
                .filter(|key| is_read_at_start(key))
                .collect(),
        };
        let before = self.policy.load();
        let clients = Clients::new(
            &config.clients,
            &config.views,
            next.credentials,
            next.issuers,
            Some(&before.clients),
        );
        // The same provider keeps its keys, but their file may have changed.
        clients.issuers().reload_keys();
        let credentials = clients.credentials().clone();
        if let Some(redis) = &self.redis {
            clients.share_limits(redis);
            parts::share_calls(redis, &credentials);
        }
        // The old tokens' state and pages go first, so that no request under the new policy meets them. Calls under way with old tokens
        // are ignored.
        credentials.succeed(before.clients.credentials());
        let store = self.pages.store();
        store.reconfigure(&config.cache);
        self.changes.reconfigure(&config.changes, &config.cache);
        for credential in next.succession.distrusted {
            store.distrust(credential, Instant::now());
        }
        // The CA file's content may have changed.
        let is_rebuilt = reloaded.changed.iter().any(|key| is_of_the_stack(key))
            || config.upstream.ca_file.is_some();
        let upstream = if is_rebuilt {
            Arc::new(parts::upstream(next.client, &config, &self.metrics))
        } else {
            before.upstream.clone()
        };
        let policy = Policy::new(&config, clients, upstream, next.certificate_ends);
        // First, so that a purge reaches pages filled under the new policy.
        self.pages.set_credentials(credentials.clone());
        self.policy.store(Arc::new(policy));
        // Last: requests under the old policy may have filled more pages.
        for credential in next.succession.dropped {
            store.invalidate_credential(credential);
        }
        // Turning TLS on or off needs a restart.
        if let Some((tls, setup)) = self.tls.as_ref().zip(next.tls) {
            tls.replace(setup);
        }
        // So does another collector; its headers are not for this one.
        let is_same = config.telemetry.traces_url() == self.started.telemetry.traces_url();
        let collector = next.collector.filter(|_| is_same);
        if let Some((headers, read)) = self.collector_headers.as_ref().zip(collector) {
            headers.store(read.headers().load_full());
        }
        if let Some(snapshot) = &self.snapshot {
            snapshot.set_credentials(credentials);
        }
        self.log.set_filter(&config.telemetry);
        let shown = config.effective_since(&self.started, &reloaded.needs_restart);
        self.effective.store(Arc::new(shown));
        self.in_force = config;
        reloaded
    }
}

/// The digest of each file, to tell a change from a touch.
pub(super) type Digests = BTreeMap<PathBuf, blake3::Hash>;

pub(super) fn digests(files: Vec<PathBuf>) -> Digests {
    let with_digest = |file: PathBuf| {
        let digest = digest(&file);
        (file, digest)
    };
    files.into_iter().map(with_digest).collect()
}

fn digest(file: &Path) -> blake3::Hash {
    blake3::hash(&files::read(file).unwrap_or_default())
}

fn is_read_at_start(key: &str) -> bool {
    // Its files may change, but not whether TLS is on.
    key == "server.tls" || AT_START.iter().any(|read| is_within(key, read))
}

/// Whether a change of `key` rebuilds the upstream stack.
fn is_of_the_stack(key: &str) -> bool {
    is_within(key, "normalize")
        || is_within(key, "upstream") && !is_within(key, "upstream.credentials")
}

/// Whether `key` is `section`, within it, or contains it.
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
