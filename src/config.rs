//! Where settings come from: the compiled-in `config/default.toml`, then the operator's file, then `UNPOD_GATEWAY__SECTION__KEY`.
//!
//! Types carry no defaults and do most of the checking; what one key says against another is each section's `check`. Every
//! problem is collected and named by its key, never by its value, since a misplaced value may be a secret.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use figment::value::{Dict, Value};
use serde::Deserialize;

pub mod admin;
pub mod auth;
pub mod cache;
pub mod cors;
pub mod normalize;
mod problem;
pub mod routes;
pub mod server;
mod sources;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod value;
pub mod views;

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
    upstream::{CircuitConfig, UpstreamConfig},
    views::{ViewConfig, ViewsConfig},
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
    merged: Dict,
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

const SECTIONS: [&str; 11] = [
    "server",
    "admin",
    "auth",
    "cors",
    "routes",
    "upstream",
    "cache",
    "telemetry",
    "clients",
    "normalize",
    "views",
];

impl Config {
    /// Reads the defaults, then `file` if one is given, then the process's environment.
    ///
    /// # Errors
    ///
    /// Returns every problem found, each with the key it belongs to.
    pub fn load(file: Option<&Path>) -> Result<Self, Problems> {
        let text = file.map(sources::read_file).transpose()?;
        let config = Self::from_sources(text.as_deref(), sources::environment())?;
        Ok(Self {
            source: Source::Process(file.map(Path::to_owned)),
            ..config
        })
    }

    /// Reads the same sources anew; a configuration of text alone stays as it is, but for the files it names.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn reread(&self) -> Result<Self, Problems> {
        match &self.source {
            Source::Process(file) => Self::load(file.as_deref()),
            Source::Text => Ok(self.clone()),
        }
    }

    /// The files whose change may change the configuration: its own, and those that hold secrets and certificates, as it names them
    /// now, valid or not: what is missing today may come tomorrow.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let Source::Process(own) = &self.source else {
            return sources::named_files(&self.merged);
        };
        let text = own.as_deref().and_then(|own| sources::read_file(own).ok());
        let merged = sources::merge(text.as_deref(), sources::environment());
        let named = sources::named_files(&merged.unwrap_or_default());
        own.iter().cloned().chain(named).collect()
    }

    /// The dotted keys whose values differ from those of `before`, such as `cache.ttl`; a list counts as one.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        sources::changed_keys(&before.merged, &self.merged)
    }

    /// Reads `[admin]` alone, whatever the rest holds: what a health check needs to know.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn load_admin(file: Option<&Path>) -> Result<AdminConfig, Problems> {
        let text = file.map(sources::read_file).transpose()?;
        let merged = sources::merge(text.as_deref(), sources::environment())?;
        let mut reader = Reader {
            defaults: sources::defaults(),
            merged: &merged,
            problems: Problems::default(),
        };
        match reader.section("admin") {
            Some(admin) if reader.problems.is_empty() => Ok(admin),
            _ => Err(reader.problems),
        }
    }

    /// Reads the defaults and `text` (TOML), without an environment.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn from_toml(text: &str) -> Result<Self, Problems> {
        Self::from_sources(Some(text), Vec::new())
    }

    /// Merges the given sources and checks the outcome.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn from_sources(
        text: Option<&str>,
        environment: Vec<(String, String)>,
    ) -> Result<Self, Problems> {
        let merged = sources::merge(text, environment)?;
        let mut reader = Reader {
            defaults: sources::defaults(),
            merged: &merged,
            problems: Problems::default(),
        };
        reader.unknown_sections();
        let config = reader.read();
        match config {
            Some(config) if reader.problems.is_empty() => Ok(Self { merged, ..config }),
            _ => Err(reader.problems),
        }
    }

    /// The configuration in force as TOML, with every secret hidden.
    #[must_use]
    pub fn effective(&self) -> String {
        let mut shown = self.merged.clone();
        sources::hide_secrets(&mut shown);
        toml::to_string(&shown).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
    }
}

/// Reads section after section, so that a fault in one does not hide those in the next.
struct Reader<'a> {
    defaults: &'a Dict,
    merged: &'a Dict,
    problems: Problems,
}

impl Reader<'_> {
    fn unknown_sections(&mut self) {
        for name in self.merged.keys() {
            if !SECTIONS.contains(&name.as_str()) {
                self.problems.add(name, "unknown section");
            }
        }
    }

    fn read(&mut self) -> Option<Config> {
        // Each is read and checked before any `?`: all problems at once.
        let server = self.checked("server", ServerConfig::check);
        let admin = self.checked("admin", AdminConfig::check);
        let auth = self.checked("auth", AuthConfig::check);
        let cors = self.section("cors");
        let routes = self.checked("routes", RoutesConfig::check);
        let upstream = self.upstream();
        let cache = self.checked("cache", CacheConfig::check);
        let telemetry = self.checked("telemetry", TelemetryConfig::check);
        let clients = self.clients(
            server.as_ref(),
            admin.as_ref(),
            auth.as_ref(),
            upstream.as_ref(),
        );
        let views = self.views();
        let normalize = self.normalize();
        Some(Config {
            server: server?,
            admin: admin?,
            auth: auth?,
            cors: cors?,
            routes: routes?,
            upstream: upstream?,
            cache: cache?,
            telemetry: telemetry?,
            clients,
            views,
            normalize,
            merged: Dict::new(),
            source: Source::Text,
        })
    }

    fn section<T: for<'de> Deserialize<'de>>(&mut self, name: &str) -> Option<T> {
        let value = self.merged.get(name).cloned()?;
        let defaults = self.defaults.get(name).cloned();
        problem::extract(name, value, defaults.as_ref(), &mut self.problems)
    }

    fn checked<T: for<'de> Deserialize<'de>>(
        &mut self,
        name: &str,
        check: impl FnOnce(&T, &mut Problems),
    ) -> Option<T> {
        let read = self.section(name)?;
        self.check_read(|problems| check(&read, problems));
        Some(read)
    }

    /// Looks for more problems in what was read in spite of those that are told.
    fn check_read(&mut self, check: impl FnOnce(&mut Problems)) {
        let mut found = Problems::default();
        check(&mut found);
        let defaults = self.defaults;
        let told = self.problems.iter().map(|problem| problem.key.as_str());
        let told: Vec<_> = told.collect();
        // What was wrong had to be left out, unless it has a default: what it leaves missing is no problem of its own.
        let is_consequence = |key: &str| {
            told.iter().any(|told| {
                let table = told.rsplit_once('.').map_or(*told, |(table, _)| table);
                let is_in_table = key
                    .strip_prefix(table)
                    .is_some_and(|rest| rest.starts_with('.'));
                key == *told || (is_in_table && !has(defaults, told))
            })
        };
        found.retain(|problem| !is_consequence(&problem.key));
        self.problems.append(found);
    }

    /// `[[clients]]`, checked where all are read: a problem names a client by its place.
    fn clients(
        &mut self,
        server: Option<&ServerConfig>,
        admin: Option<&AdminConfig>,
        auth: Option<&AuthConfig>,
        upstream: Option<&UpstreamConfig>,
    ) -> Vec<ClientConfig> {
        let listed = self.merged.get("clients").cloned();
        let given = listed.as_ref().and_then(Value::as_array).map(<[_]>::len);
        let clients = self.list("clients", listed);
        if given == Some(clients.len()) {
            let others = auth::Others {
                server,
                admin,
                auth,
                upstream,
                views: self.merged.get("views").and_then(Value::as_dict),
            };
            self.check_read(|problems| {
                auth::check_clients(&clients, &others, problems);
            });
        }
        clients
    }

    /// `[views]`, read one by one.
    fn views(&mut self) -> ViewsConfig {
        let mut views = ViewsConfig::new();
        let Some(section) = self.merged.get("views") else {
            return views;
        };
        let Some(dict) = section.as_dict() else {
            let text = "expected tables such as [views.public]";
            self.problems.add("views", text);
            return views;
        };
        for (name, value) in dict {
            let key = format!("views.{name}");
            let view = problem::extract(&key, value.clone(), None, &mut self.problems);
            views.extend(view.map(|view| (name.clone(), view)));
        }
        self.check_read(|problems| views::check(&views, problems));
        views
    }

    /// `[upstream]`, whose credentials are read one by one.
    fn upstream(&mut self) -> Option<UpstreamConfig> {
        let Some(mut section) = self.merged.get("upstream")?.as_dict().cloned() else {
            self.problems.add("upstream", "expected a table");
            return None;
        };
        let credentials = section.remove("credentials");
        let defaults = self.defaults.get("upstream").cloned();
        let upstream: Option<UpstreamConfig> = problem::extract(
            "upstream",
            Value::from(section),
            defaults.as_ref(),
            &mut self.problems,
        );
        let mut named = BTreeMap::new();
        match credentials.as_ref().map(|value| (value, value.as_dict())) {
            None => {}
            Some((_, Some(dict))) => {
                for (name, value) in dict {
                    let key = format!("upstream.credentials.{name}");
                    if let Some(credential) =
                        problem::extract(&key, value.clone(), None, &mut self.problems)
                    {
                        named.insert(name.clone(), credential);
                    }
                }
            }
            Some((_, None)) => self.problems.add(
                "upstream.credentials",
                "expected tables such as [upstream.credentials.default]",
            ),
        }
        let credentials_read = named.len();
        let credentials_given = credentials
            .as_ref()
            .and_then(Value::as_dict)
            .map_or(0, Dict::len);
        if credentials_given == 0 {
            self.problems.add(
                "upstream.credentials.default",
                "required: at least one credential with `token` or `token_file`",
            );
        }
        let mut upstream = upstream?;
        upstream.credentials = named;
        self.check_read(|problems| upstream.check(problems));
        (credentials_read == credentials_given && credentials_read > 0).then_some(upstream)
    }

    fn normalize(&mut self) -> NormalizeConfig {
        let Some(section) = self.merged.get("normalize") else {
            return NormalizeConfig::default();
        };
        let Some(dict) = section.as_dict() else {
            self.problems.add("normalize", "expected a table");
            return NormalizeConfig::default();
        };
        for name in dict.keys().filter(|name| *name != "rules") {
            self.problems
                .add(format!("normalize.{name}"), "unknown key");
        }
        let rules = dict.get("rules").cloned();
        let normalize = NormalizeConfig {
            rules: self.list("normalize.rules", rules),
        };
        normalize.check(&mut self.problems);
        normalize
    }

    /// A list of tables, each read on its own and named by its place, counted from 0.
    fn list<T: for<'de> Deserialize<'de>>(&mut self, key: &str, value: Option<Value>) -> Vec<T> {
        let Some(value) = value else {
            return Vec::new();
        };
        let Some(items) = value.as_array() else {
            self.problems
                .add(key, format!("expected a list of tables: [[{key}]]"));
            return Vec::new();
        };
        let mut read = Vec::with_capacity(items.len());
        for (place, item) in items.iter().enumerate() {
            let key = format!("{key}[{place}]");
            read.extend(problem::extract(
                &key,
                item.clone(),
                None,
                &mut self.problems,
            ));
        }
        read
    }
}

/// Whether there is a value of the dotted `key`.
fn has(dict: &Dict, key: &str) -> bool {
    let Some((section, rest)) = key.split_once('.') else {
        return dict.contains_key(key);
    };
    dict.get(section)
        .is_some_and(|section| section.find_ref(rest).is_some())
}

#[cfg(test)]
mod tests;
