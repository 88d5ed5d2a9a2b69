//! Reads the merged values as types, section after section.

use std::collections::BTreeMap;

use figment::value::{Dict, Value};
use serde::Deserialize;

use super::{
    AdminConfig, AuthConfig, CacheConfig, ChangesConfig, ClientConfig, Config, Merged,
    NormalizeConfig, Problems, RoutesConfig, ServerConfig, Source, TelemetryConfig, UpstreamConfig,
    ViewsConfig, auth, problem, sources, views, wording,
};

pub(super) const SECTIONS: [&str; 12] = [
    "server",
    "admin",
    "auth",
    "cors",
    "routes",
    "upstream",
    "cache",
    "changes",
    "telemetry",
    "clients",
    "normalize",
    "views",
];

/// Reads each section on its own, so that a problem in one does not hide those in the next.
pub(super) struct Reader<'a> {
    pub(super) merged: &'a Dict,
    pub(super) problems: &'a mut Problems,
}

impl Reader<'_> {
    pub(super) fn unknown_sections(&mut self) {
        for name in self.merged.keys() {
            if !SECTIONS.contains(&name.as_str()) {
                self.problems
                    .add(name, wording::unknown("section", name, &SECTIONS));
            }
        }
    }

    pub(super) fn read(&mut self) -> Option<Config> {
        // All are read and checked before the first `?`, so that all problems are reported at once.
        let server = self.checked("server", ServerConfig::check);
        let admin = self.checked("admin", AdminConfig::check);
        self.check_listeners(server.as_ref(), admin.as_ref());
        let auth = self.checked("auth", AuthConfig::check);
        let cors = self.section("cors");
        let routes = self.checked("routes", RoutesConfig::check);
        let upstream = self.upstream();
        let cache = self.checked("cache", CacheConfig::check);
        let changes = self.checked("changes", ChangesConfig::check);
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
            changes: changes?,
            telemetry: telemetry?,
            clients,
            views,
            normalize,
            merged: Merged::default(),
            source: Source::Text,
        })
    }

    fn check_listeners(&mut self, server: Option<&ServerConfig>, admin: Option<&AdminConfig>) {
        let both = server.zip(admin);
        if both.is_some_and(|(server, admin)| server.listen.excludes(&admin.listen)) {
            let text = "an address that server.listen takes already";
            self.check_read(|problems| {
                problems.add_depending("admin.listen", text, &["server.listen"]);
            });
        }
    }

    pub(super) fn section<T: for<'de> Deserialize<'de>>(&mut self, name: &str) -> Option<T> {
        let value = self.merged.get(name).cloned()?;
        let fallback = sources::fallbacks().find_ref(name);
        problem::extract(name, value, fallback, self.problems)
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

    /// Checks what was read, and adds the problems that do not follow from known ones.
    fn check_read(&mut self, check: impl FnOnce(&mut Problems)) {
        let mut found = Problems::default();
        check(&mut found);
        self.problems.append_news(found);
    }

    /// `[[clients]]`; problems name a client by its index.
    fn clients(
        &mut self,
        server: Option<&ServerConfig>,
        admin: Option<&AdminConfig>,
        auth: Option<&AuthConfig>,
        upstream: Option<&UpstreamConfig>,
    ) -> Vec<ClientConfig> {
        let listed = self.merged.get("clients").cloned();
        let clients = self.list("clients", listed);
        let others = auth::Others {
            server,
            admin,
            auth,
            upstream,
            views: self.merged.get("views").and_then(Value::as_dict),
        };
        self.check_read(|problems| auth::check_clients(&clients, &others, problems));
        clients
    }

    fn views(&mut self) -> ViewsConfig {
        let given = self.merged.get("views").cloned();
        let fallback = sources::fallbacks().find_ref("views");
        let views = self.tables("views", "[views.public]", given, fallback);
        self.check_read(|problems| views::check(&views, problems));
        views
    }

    /// `[upstream]`, whose credentials are read one by one.
    fn upstream(&mut self) -> Option<UpstreamConfig> {
        let fallback = sources::fallbacks().find_ref("upstream");
        let mut section = self.merged.get("upstream")?.clone();
        let credentials = match &mut section {
            Value::Dict(_, section) => section.remove("credentials"),
            _ => None,
        };
        let mut upstream: UpstreamConfig =
            problem::extract("upstream", section, fallback, self.problems)?;
        let nothing = Value::from(Dict::new());
        upstream.credentials = self.tables(
            "upstream.credentials",
            "[upstream.credentials.default]",
            credentials,
            Some(&nothing),
        );
        self.check_read(|problems| upstream.check(problems));
        Some(upstream.readable())
    }

    /// Tables by their names, each read on its own.
    fn tables<T: for<'de> Deserialize<'de>>(
        &mut self,
        key: &str,
        example: &str,
        given: Option<Value>,
        fallback: Option<&Value>,
    ) -> BTreeMap<String, T> {
        let mut named = BTreeMap::new();
        let given = given.unwrap_or_else(|| Dict::new().into());
        let Some(tables) = given.as_dict() else {
            self.problems
                .add(key, format!("expected tables such as {example}"));
            return named;
        };
        for (name, value) in tables {
            let key = format!("{key}.{name}");
            let read = problem::extract(&key, value.clone(), fallback, self.problems);
            named.extend(read.map(|read| (name.clone(), read)));
        }
        named
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
            let text = wording::unknown("key", name, &["rules"]);
            self.problems.add(format!("normalize.{name}"), text);
        }
        let rules = dict.get("rules").cloned();
        let normalize = NormalizeConfig {
            rules: self.list("normalize.rules", rules),
        };
        self.check_read(|problems| normalize.check(problems));
        normalize
    }

    /// A list of tables, each read on its own; problems name its index.
    fn list<T: for<'de> Deserialize<'de>>(&mut self, key: &str, value: Option<Value>) -> Vec<T> {
        let Some(value) = value else {
            return Vec::new();
        };
        let Some(items) = value.as_array() else {
            self.problems
                .add(key, format!("expected a list of tables: [[{key}]]"));
            return Vec::new();
        };
        let fallback = sources::fallbacks().find_ref(key);
        let mut read = Vec::with_capacity(items.len());
        for (place, item) in items.iter().enumerate() {
            let key = format!("{key}[{place}]");
            let item = problem::extract(&key, item.clone(), fallback, self.problems);
            read.extend(item);
        }
        read
    }
}
