//! Where settings come from: the compiled-in `config/default.toml`, then the operator's file, then `UNPOD_GATEWAY__SECTION__KEY`.
//!
//! Types carry no defaults and do most of the checking; what one key says against another is each section's `check`. Every
//! problem is collected and named by its key, never by its value, since a misplaced value may be a secret.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use figment::value::Dict;

pub mod admin;
pub mod auth;
pub mod cache;
pub mod cors;
pub mod files;
pub mod normalize;
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

use self::reader::Reader;
pub use self::{
    admin::AdminConfig,
    auth::{AuthConfig, BrowserTokensConfig, ClientConfig, JwtConfig, RateLimitConfig},
    cache::{CacheConfig, RedisConfig},
    cors::CorsConfig,
    normalize::NormalizeConfig,
    problem::{Problem, Problems},
    routes::RoutesConfig,
    server::{ForwardedHeader, ServerConfig},
    sources::notify_socket,
    telemetry::TelemetryConfig,
    tls::TlsConfig,
    upstream::{CircuitConfig, CredentialConfig, UpstreamConfig},
    views::{Field, RunViewConfig, ViewConfig, ViewsConfig},
};

/// What runs when nothing is configured, and what every key means.
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
    pub telemetry: TelemetryConfig,
    pub clients: Vec<ClientConfig>,
    pub views: ViewsConfig,
    pub normalize: NormalizeConfig,
    /// The merged values as given, for [`Config::effective`].
    merged: Merged,
    source: Source,
}

/// Where a configuration was read from, to be read from again.
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

    /// As [`Config::load`], for whoever looks for more problems than a configuration knows of.
    #[must_use]
    pub fn draft(file: Option<&Path>) -> Draft {
        let source = Source::Process(file.map(Path::to_owned));
        match file.map(sources::read_file).transpose() {
            Ok(text) => Draft::read(text.as_deref(), sources::environment(), source),
            Err(problems) => Draft {
                config: None,
                problems,
            },
        }
    }

    /// Reads the same sources anew; a configuration of text alone stays as it is, but for the files it names.
    #[must_use]
    pub fn redraft(&self) -> Draft {
        match &self.source {
            Source::Process(file) => Self::draft(file.as_deref()),
            Source::Text => self.clone().into(),
        }
    }

    /// The files whose change may change the configuration: its own, and those that hold secrets and certificates, as it names them
    /// now, valid or not: what is missing today may come tomorrow.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let Source::Process(own) = &self.source else {
            return sources::named_files(&self.merged.0);
        };
        let text = own.as_deref().and_then(|own| sources::read_file(own).ok());
        let unheard = &mut Problems::default();
        let merged = sources::merge(text.as_deref(), sources::environment(), unheard);
        let named = sources::named_files(&merged.unwrap_or_default());
        own.iter().cloned().chain(named).collect()
    }

    /// The dotted keys whose values differ from those of `before`, such as `cache.ttl`; a list counts as one.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        sources::changed_keys(&before.merged.0, &self.merged.0)
    }

    /// Reads `[admin]` alone, whatever the rest holds: what a health check needs to know.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn load_admin(file: Option<&Path>) -> Result<AdminConfig, Problems> {
        let text = file.map(sources::read_file).transpose()?;
        let mut problems = Problems::default();
        let merged = sources::merge(text.as_deref(), sources::environment(), &mut problems);
        // Another section's variable is of no concern here.
        problems.retain(|problem| problem.key == "--config" || problem.key.starts_with("admin"));
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
        Draft::read(text, environment.collect(), Source::Text)
            .finish(|_| Ok(()))
            .map(|(config, ())| config)
    }

    /// The configuration as TOML, with every secret hidden.
    #[must_use]
    pub fn effective(&self) -> String {
        show(self.merged.0.clone())
    }

    /// As [`Config::effective`], for a gateway that started with `started` and still goes by it in `needs_restart`: those keys are shown
    /// as they are in force, and named.
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

/// A configuration as far as it could be read, and everything found wrong with it so far.
#[derive(Debug)]
pub struct Draft {
    /// In spite of problems: what was wrong has been left out or stands at its default. Good for nothing but looking for more.
    config: Option<Config>,
    problems: Problems,
}

impl Draft {
    fn read(text: Option<&str>, environment: sources::Variables, source: Source) -> Self {
        let mut problems = Problems::default();
        let merged = sources::merge(text, environment, &mut problems);
        let config = merged.and_then(|merged| {
            let mut reader = Reader {
                merged: &merged,
                problems: &mut problems,
            };
            reader.unknown_sections();
            let config = reader.read()?;
            Some(Config {
                merged: Merged(merged),
                source,
                ..config
            })
        });
        Self { config, problems }
    }

    /// Threads that the configuration asks for; 0 is one per core.
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
    /// Returns every problem: those of the configuration, and those that `build` meets in what could be read of it.
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

/// The merged values as given, secrets among them: never printed.
#[derive(Clone, Default)]
struct Merged(Dict);

impl fmt::Debug for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Merged")
    }
}

#[cfg(test)]
mod tests;
