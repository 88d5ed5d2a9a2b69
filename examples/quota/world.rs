//! The gateway's own parts over a model upstream, and what its clients see of them.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use tokio::time::Instant;
use unpod_gateway::{
    cache::{PageStore, http_semantics::RequestDirectives},
    config::Config,
    domain::{ListId, PageQuery, SpaceToken},
    service::{Changes, ClientRequest, Pages, PagesErrorKind, changes::Listener},
    telemetry::{
        metrics::{Account, Metrics},
        traces::TraceContext,
    },
    upstream::{Credential, Credentials, Upstream, UpstreamError, stack},
};

use crate::model::{Behavior, Model, Name, ROWS};

/// What a client got.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) name: Name,
    pub(crate) asked: Instant,
    pub(crate) waited: Duration,
    pub(crate) outcome: Result<Page, Failure>,
}

/// What is known of a page that was served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) age: Duration,
    pub(crate) lifetime: Duration,
}

/// An error, and the `Retry-After` that goes with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) retry_after: Option<Duration>,
}

/// A gateway and its upstream; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) model: Model,
    pages: Arc<Pages>,
    changes: Arc<Changes>,
    credential: Arc<Credential>,
    upstream: Arc<Upstream>,
    pub(crate) began: Instant,
}

impl World {
    /// A gateway that has just started, with `[upstream] quota_per_minute` and `[cache]` settings, before an upstream of that quota.
    pub(crate) fn with_cache(quota: u32, cache: &str, behavior: Behavior, seed: u64) -> Self {
        Self::with((quota, "", cache), behavior, seed)
    }

    /// The same with rows of `fill_size` a call where several pages of a list are wanted.
    pub(crate) fn filling(fill_size: u32, quota: u32, seed: u64) -> Self {
        let behavior = Behavior {
            quota: usize::try_from(quota).expect("a quota is a small number"),
            ..Behavior::default()
        };
        let upstream = format!("fill_size = {fill_size}");
        Self::with((quota, &upstream, ""), behavior, seed)
    }

    fn with((quota, upstream, cache): (u32, &str, &str), behavior: Behavior, seed: u64) -> Self {
        let config = Config::from_toml(&format!(
            "[upstream]\nbase_url = 'https://upstream.test'\nquota_per_minute = {quota}\n{upstream}\n\
             [upstream.credentials.default]\ntoken = 't'\n[cache]\n{cache}\n"
        ));
        let config = config.expect("the settings are good");
        let model = Model::new(behavior, seed);
        let metrics = Metrics::new();
        let upstream = stack(model.clone(), &config.upstream, &config.normalize, &metrics);
        let credentials = Credentials::load(&config.upstream).expect("its token is given");
        let credential = credentials
            .named("default")
            .expect("it is the one there is");
        let pages = Pages::new(
            PageStore::new(&config.cache),
            metrics.clone(),
            config.server.request_timeout,
            config.server.max_waiting(),
        );
        Self {
            model,
            changes: Changes::new(&pages, &config.changes, &config.cache, metrics),
            pages,
            credential: credential.clone(),
            upstream: Arc::new(upstream),
            began: Instant::now(),
        }
    }

    /// As [`Self::with_cache`], with the defaults; the upstream has the quota that is configured.
    pub(crate) fn new(quota: u32, seed: u64) -> Self {
        let behavior = Behavior {
            quota: usize::try_from(quota).expect("a quota is a small number"),
            ..Behavior::default()
        };
        Self::behaving(quota, behavior, seed)
    }

    /// As [`Self::with_cache`], with the defaults.
    pub(crate) fn behaving(quota: u32, behavior: Behavior, seed: u64) -> Self {
        Self::with_cache(quota, "", behavior, seed)
    }

    /// One request of `client`.
    pub(crate) async fn read(&self, client: &str, name: Name) -> Read {
        self.read_with(client, name, RequestDirectives::default())
            .await
    }

    pub(crate) async fn read_with(
        &self,
        client: &str,
        name: Name,
        directives: RequestDirectives,
    ) -> Read {
        let request = self.request(client, name, directives);
        let asked = Instant::now();
        let outcome = match self.pages.page(&request).await {
            Ok(served) => Ok(Page {
                age: served.age(),
                lifetime: served.page.freshness(served.at).lifetime(),
            }),
            Err(error) => Err(Failure::new(&error.kind)),
        };
        Read {
            name,
            asked,
            waited: asked.elapsed(),
            outcome,
        }
    }

    fn request(&self, client: &str, name: Name, directives: RequestDirectives) -> ClientRequest {
        ClientRequest {
            credential: self.credential.clone(),
            upstream: self.upstream.clone(),
            space: SpaceToken::new(&format!("SPACE{}", name.space)).expect("it is short"),
            list: ListId::TASKS,
            query: PageQuery {
                page: name.page,
                page_size: ROWS,
            },
            directives,
            account: Account::new(client.into()),
            request_id: HeaderValue::from_static("id"),
            trace: TraceContext::default(),
        }
    }

    /// Begins to listen to the changes of a space.
    pub(crate) async fn listen(&self, space: usize) -> Listener {
        let first = Name { space, page: 1 };
        let request = self.request("listener", first, RequestDirectives::default());
        let listener = self.changes.listen(&request);
        // Where there is no call now, the watch reads it later.
        let _ = listener.ready(&request).await;
        listener
    }

    /// The calls of the upstream's busiest minute, against those it allows.
    pub(crate) fn busiest_minute(&self) -> f64 {
        self.model.most_in_a_minute() as f64
    }
}

impl Failure {
    /// As `api` answers it: in whole seconds, rounded up.
    fn new(kind: &PagesErrorKind) -> Self {
        let wait = match kind {
            PagesErrorKind::Upstream(UpstreamError::QuotaExhausted { retry_after }) => *retry_after,
            PagesErrorKind::Upstream(UpstreamError::Unavailable { retry_after }) => {
                Some(*retry_after)
            }
            _ => None,
        };
        let whole = |wait: Duration| Duration::from_secs(wait.as_millis().div_ceil(1000) as u64);
        Self {
            retry_after: wait.map(whole),
        }
    }
}
