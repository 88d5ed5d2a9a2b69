//! Reading the configuration anew: what may change while the gateway runs changes all at once, or not at all.
//!
//! One thread of its own does it, and looks whether files have changed: what it reads may hang (a file on a server that is gone), and then
//! nothing else does. No request, no other thread and no drain waits for it.

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
    parts,
    watch::Watch,
};
use crate::{
    api::{
        Clients, LivePolicy, Policy,
        admin::{Reload, Reloaded},
    },
    config::{Config, Problems, files},
    server::Tls,
    service::{Pages, Snapshot},
    shared::RedisConnection,
    telemetry::{
        Log,
        metrics::{Metrics, ReloadOutcome},
        traces::CollectorHeaders,
    },
    upstream::LimitLayer,
};

/// How often to look for changed files: soon enough for a rotation, and a few `stat` calls are nothing.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Reloads that may wait for the one under way.
const MOST_WAITING: usize = 16;
const BUG: &str = "reading it ended in a bug";

/// Keys that are read at start alone, as they stand or with everything below them.
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

/// Asks the thread that reloads. It ends when the last of these is dropped.
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

/// What a running gateway is made of, as far as it can be changed.
pub(super) struct Reloader {
    pub(super) policy: LivePolicy,
    pub(super) pages: Arc<Pages>,
    pub(super) snapshot: Option<Arc<Snapshot>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limit: LimitLayer,
    pub(super) redis: Option<Arc<RedisConnection>>,
    pub(super) tls: Option<Tls>,
    pub(super) collector_headers: Option<CollectorHeaders>,
    pub(super) log: Log,
    /// What operators are shown.
    pub(super) effective: Arc<ArcSwap<String>>,
    /// What the gateway began with.
    pub(super) started: Arc<Config>,
    pub(super) in_force: Config,
}

impl Reloader {
    /// Reloads on request, and when a file has changed since `files` were read, in a thread of its own.
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
                // Who asked may have given up meanwhile.
                Ok(request) if request.answer.is_closed() => {}
                Ok(request) => {
                    let outcome = self.reload(&request.who, &mut files);
                    let _ = request.answer.send(outcome);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let named = files.keys().cloned().collect();
                    // A touch that changes nothing is no news.
                    if watch.has_changed(named) && files != digests(self.in_force.files()) {
                        // It tells the log, whichever way it ends.
                        let _ = self.reload("a changed file", &mut files);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Reads the configuration and every file it names, and puts it in force as a whole. `files` are those it read.
    fn reload(&mut self, who: &str, files: &mut Digests) -> Result<Reloaded, Problems> {
        // Before they are read: what changes meanwhile is a change.
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

    /// Builds what `config` says, without changing anything.
    fn build(&self, config: &Config) -> Result<Built, Problems> {
        let mut problems = Problems::default();
        // The operators' listener stays where it is, whatever the file now says: its key may not go while others reach it.
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
        // Where the provider is the same its keys go on; their file may hold others now.
        clients.issuers().reload_keys();
        let credentials = clients.credentials().clone();
        if let Some(redis) = &self.redis {
            clients.share_limits(redis);
            parts::share_calls(redis, &credentials);
        }
        // What is known of the old tokens and of their pages ends first: no request under the new policy meets it. Calls under way
        // are heard no more, and what they bring is not kept.
        credentials.succeed(before.clients.credentials());
        let store = self.pages.store();
        store.reconfigure(&config.cache);
        for credential in next.succession.distrusted {
            store.distrust(credential, Instant::now());
        }
        // The text of its file of authorities may have changed, whatever its name.
        let is_rebuilt = reloaded.changed.iter().any(|key| is_of_the_stack(key))
            || config.upstream.ca_file.is_some();
        let upstream = if is_rebuilt {
            let limit = self.limit.clone();
            Arc::new(parts::upstream(next.client, &config, limit, &self.metrics))
        } else {
            before.upstream.clone()
        };
        let policy = Policy::new(&config, clients, upstream);
        // First: a purge meanwhile reaches what the first request under the new policy fills.
        self.pages.set_credentials(credentials.clone());
        self.policy.store(Arc::new(policy));
        // Last: who came in under the old policy may have filled another page of theirs.
        for credential in next.succession.dropped {
            store.forget(credential);
        }
        // Whether there is TLS at all is settled at start.
        if let Some((tls, setup)) = self.tls.as_ref().zip(next.tls) {
            tls.replace(setup);
        }
        // So is where the collector is; headers for another are not for this one.
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

/// What each file holds: tells a change from a mere touch.
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
