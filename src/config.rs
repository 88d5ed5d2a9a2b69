//! Where settings come from: the compiled-in `config/default.toml`, then the operator's file, then `UNPOD_GATEWAY__SECTION__KEY`.
//!
//! Types carry no defaults and do most of the checking; each section's `check` compares its keys. All problems are collected and named
//! by key, never by value, which may be a secret.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use figment::value::Dict;

pub mod admin;
pub mod auth;
pub mod cache;
mod certificates;
pub mod changes;
pub mod cors;
pub mod files;
mod known;
pub mod normalize;
mod paths;
mod problem;
mod reader;
pub mod routes;
pub mod server;
mod sources;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod value;
pub mod views;
mod warnings;
mod wording;

pub use self::{
    admin::AdminConfig,
    auth::{AuthConfig, BrowserTokensConfig, ClientConfig, JwtConfig, RateLimitConfig},
    cache::{CacheConfig, RedisConfig},
    changes::ChangesConfig,
    cors::CorsConfig,
    normalize::NormalizeConfig,
    problem::{Problem, Problems},
    routes::RoutesConfig,
    server::{ForwardedHeader, ServerConfig},
    sources::{journal_stream, notify_socket},
    telemetry::TelemetryConfig,
    tls::TlsConfig,
    upstream::{CircuitConfig, CredentialConfig, UpstreamConfig},
    views::{Field, RunViewConfig, ViewConfig, ViewsConfig},
};
use self::{
    reader::Reader,
    sources::{FILE_KEY, Text},
};

/// The defaults, and the documentation of every key.
pub const DEFAULTS: &str = include_str!("../config/default.toml");

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: ServerConfig,
    pub admin: AdminConfig,
    pub auth: AuthConfig,
    pub cors: CorsConfig,
    pub routes: RoutesConfig,
    pub upstream: UpstreamConfig,
    pub cache: CacheConfig,
    pub changes: ChangesConfig,
    pub telemetry: TelemetryConfig,
    pub clients: Vec<ClientConfig>,
    pub views: ViewsConfig,
    pub normalize: NormalizeConfig,
    /// The merged values as given, for [`Config::effective`].
    merged: Merged,
    source: Source,
}

/// Where a configuration was read from, for a reload.
#[derive(Clone, Debug)]
enum Source {
    /// The process's environment and, if there is one, a file.
    Process(Option<PathBuf>),
    /// Text that does not change.
    Text,
}

impl Config {
    /// Reads the defaults, then `file` if one is given, then the process's environment.
    ///
    /// # Errors
    ///
    /// Returns every problem found, each with the key it belongs to.
    pub fn load(file: Option<&Path>) -> Result<Self, Problems> {
        Self::draft(file)
            .finish(|_| Ok(()))
            .map(|(config, ())| config)
    }

    /// As [`Config::load`], for callers that look for further problems.
    #[must_use]
    pub fn draft(file: Option<&Path>) -> Draft {
        let source = Source::Process(file.map(Path::to_owned));
        match file.map(Text::read).transpose() {
            Ok(text) => Draft::read(text.as_ref(), sources::environment(), source),
            Err(problems) => Draft {
                config: None,
                problems,
            },
        }
    }

    /// Reads the same sources again; a configuration from text stays the same, except for the files it names.
    #[must_use]
    pub fn redraft(&self) -> Draft {
        match &self.source {
            Source::Process(file) => Self::draft(file.as_deref()),
            Source::Text => self.clone().into(),
        }
    }

    /// The files to watch: the configuration's own, and those of secrets and certificates that it names, existing or not.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let Source::Process(own) = &self.source else {
            return paths::named_files(&self.merged.0);
        };
        let text = own.as_deref().and_then(|own| Text::read(own).ok());
        let unheard = &mut Problems::default();
        let merged = sources::merge(text.as_ref(), sources::environment(), unheard);
        let named = paths::named_files(&merged.unwrap_or_default());
        own.iter().cloned().chain(named).collect()
    }

    /// The dotted keys whose values differ from those of `before`, such as `cache.ttl`; a list counts as one.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        sources::changed_keys(&before.merged.0, &self.merged.0)
    }

    /// What of it works at `now`, and will hardly be meant, each under its key.
    #[must_use]
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        warnings::warnings(self, now)
    }

    /// Reads only `[admin]`, for the health check, whatever problems the rest has.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn load_admin(file: Option<&Path>) -> Result<AdminConfig, Problems> {
        let text = file.map(Text::read).transpose()?;
        let mut problems = Problems::default();
        let merged = sources::merge(text.as_ref(), sources::environment(), &mut problems);
        // Problems of other sections do not matter here.
        problems.retain(|problem| problem.key == FILE_KEY || problem.key.starts_with("admin"));
        let admin = merged.and_then(|merged| {
            let mut reader = Reader {
                merged: &merged,
                problems: &mut problems,
            };
            reader.section("admin")
        });
        match admin {
            Some(admin) if problems.is_empty() => Ok(admin),
            _ => Err(problems),
        }
    }

    /// Reads the defaults and `text` (TOML), without an environment.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn from_toml(text: &str) -> Result<Self, Problems> {
        Self::from_sources(Some(text), sources::Variables::new())
    }

    /// Merges the given sources and checks the outcome.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn from_sources(
        text: Option<&str>,
        environment: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>,
    ) -> Result<Self, Problems> {
        let environment = environment.into_iter();
        let environment = environment.map(|(name, value)| (name.into(), value.into()));
        let text = text.map(Text::of);
        Draft::read(text.as_ref(), environment.collect(), Source::Text)
            .finish(|_| Ok(()))
            .map(|(config, ())| config)
    }

    /// The configuration as TOML, with every secret hidden.
    #[must_use]
    pub fn effective(&self) -> String {
        show(self.merged.0.clone())
    }

    /// As [`Config::effective`], for a gateway started with `started`: the keys in `needs_restart` are listed, and shown with the values
    /// in force.
    #[must_use]
    pub fn effective_since(&self, started: &Self, needs_restart: &[String]) -> String {
        if needs_restart.is_empty() {
            return self.effective();
        }
        let mut shown = self.merged.0.clone();
        for key in needs_restart {
            sources::copy(key, &started.merged.0, &mut shown);
        }
        let keys = needs_restart.join(", ");
        format!(
            "# The file has other values for these, which take effect after a restart: {keys}\n{}",
            show(shown)
        )
    }
}

fn show(mut shown: Dict) -> String {
    sources::hide_secrets(&mut shown);
    toml::to_string(&shown).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
}

/// A configuration as far as it could be read, and its problems so far.
#[derive(Debug)]
pub struct Draft {
    /// With problems, invalid values are left out or at their defaults: it serves only to look for more.
    config: Option<Config>,
    problems: Problems,
}

impl Draft {
    fn read(text: Option<&Text>, environment: sources::Variables, source: Source) -> Self {
        let mut problems = Problems::default();
        let merged = sources::merge(text, environment, &mut problems);
        let config = merged.and_then(|merged| {
            let mut reader = Reader {
                merged: &merged,
                problems: &mut problems,
            };
            reader.unknown_sections();
            let config = reader.read();
            problems.name_files(&merged);
            let config = config?;
            Some(Config {
                merged: Merged(merged),
                source,
                ..config
            })
        });
        Self { config, problems }
    }

    /// The configured number of threads; 0 is one per core.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.config
            .as_ref()
            .map_or(1, |config| config.server.workers)
    }

    /// The configuration with what `build` makes of it.
    ///
    /// # Errors
    ///
    /// Returns all problems: those of the configuration, and those that `build` finds in what could be read.
    pub fn finish<T>(
        self,
        build: impl FnOnce(&Config) -> Result<T, Problems>,
    ) -> Result<(Config, T), Problems> {
        let Self {
            config,
            mut problems,
        } = self;
        let Some(config) = config else {
            return Err(problems);
        };
        match build(&config) {
            Ok(built) if problems.is_empty() => return Ok((config, built)),
            Ok(_) => {}
            Err(found) => problems.append_news(found),
        }
        problems.name_files(&config.merged.0);
        Err(problems)
    }
}

impl From<Config> for Draft {
    fn from(config: Config) -> Self {
        Self {
            config: Some(config),
            problems: Problems::default(),
        }
    }
}

/// The merged values as given. They include secrets and are never printed.
#[derive(Clone, Default)]
struct Merged(Dict);

impl fmt::Debug for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Merged")
    }
}

#[cfg(test)]
mod tests;
