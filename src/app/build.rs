//! Builds everything of a configuration that needs no listener and no network: `check`, `serve` and a reload share it, so that all accept
//! the same configurations.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::SystemTime};

use crate::{
    api::{Clients, Issuers},
    config::{Config, Draft, Problems, TelemetryConfig},
    server::Tls,
    telemetry::traces::Collector,
    upstream::{BuildError, Client, Credentials, Succession, interval_beyond_timeout},
};

/// Everything of a configuration whose building can fail.
pub(super) struct Built {
    pub(super) credentials: Credentials,
    /// Which pages of the previous credentials to drop.
    pub(super) succession: Succession,
    pub(super) client: Client,
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    pub(super) issuers: Issuers,
    /// When the certificates in each file end.
    pub(super) certificate_ends: BTreeMap<PathBuf, SystemTime>,
    /// Sends traces, where a collector is named.
    pub(super) collector: Option<Collector>,
}

/// Builds the parts of `config` as successors of `running`. Changes nothing in force. Blocking: reads files.
///
/// # Errors
///
/// Returns every problem, each by its key.
///
/// # Panics
///
/// Panics outside a runtime, which an identity provider's keys need.
pub(super) fn build(config: &Config, running: Option<&Clients>) -> Result<Built, Problems> {
    let mut problems = Problems::default();
    let credentials = match running {
        Some(clients) => clients.credentials().reload(&config.upstream),
        None => Credentials::load(&config.upstream).map(|read| (read, Succession::default())),
    };
    let credentials = noted(credentials, &mut problems);
    let client = Client::new(&config.upstream).map_err(|error| of_upstream(&error));
    let client = noted(client, &mut problems);
    let tls = config.server.tls.as_ref().map(Tls::read).transpose();
    let tls = noted(tls, &mut problems);
    let issuers = Issuers::load(&config.auth, running.map(Clients::issuers));
    let issuers = noted(issuers, &mut problems);
    let collector = noted(collector(&config.telemetry), &mut problems);
    match (credentials, client, tls, issuers, collector) {
        (
            Some((credentials, succession)),
            Some(client),
            Some(tls),
            Some(issuers),
            Some(collector),
        ) => Ok(Built {
            credentials,
            succession,
            client,
            tls,
            issuers,
            certificate_ends: config.certificate_ends(),
            collector,
        }),
        _ => Err(problems),
    }
}

fn noted<T>(built: Result<T, Problems>, problems: &mut Problems) -> Option<T> {
    built.map_err(|found| problems.append(found)).ok()
}

fn of_upstream(error: &BuildError) -> Problems {
    let key = match error {
        BuildError::CaFile(_) => "upstream.ca_file",
        BuildError::Client(_) | BuildError::Tls(_) => "upstream",
    };
    Problems::one(key, error.to_string())
}

fn collector(config: &TelemetryConfig) -> Result<Option<Collector>, Problems> {
    let Some(url) = config.traces_url() else {
        return Ok(None);
    };
    let headers = config
        .read_otlp_headers()
        .map_err(|text| Problems::one("telemetry.otlp_headers_file", text))?;
    Collector::new(url, headers)
        .map(Some)
        .map_err(|error| Problems::one("telemetry.otlp_endpoint", error.to_string()))
}

/// A configuration that is ready to be served: only binding the listeners can still fail.
pub struct Prepared {
    pub(super) config: Arc<Config>,
    pub(super) built: Built,
}

impl Prepared {
    /// Builds what `draft` says.
    ///
    /// # Errors
    ///
    /// Returns everything wrong with it.
    ///
    /// # Panics
    ///
    /// Panics outside a runtime.
    pub fn new(draft: Draft) -> Result<Self, Problems> {
        let (config, built) = draft.finish(|config| build(config, None))?;
        Ok(Self {
            config: Arc::new(config),
            built,
        })
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What of it works, and will hardly be meant, each under its key.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let upstream = &self.config.upstream;
        let beyond = interval_beyond_timeout(upstream).map(|interval| {
            format!(
                "upstream.timeout: shorter than the {} s between two calls of upstream.quota_per_minute = {}: a request for a page that is \
                 not stored may never live to see its call",
                interval.as_secs(),
                upstream.quota_per_minute
            )
        });
        let mut warnings = self.config.warnings(SystemTime::now());
        warnings.extend(beyond);
        warnings
    }
}
