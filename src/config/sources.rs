//! The three sources of settings and how they merge.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use figment::{
    Figment,
    providers::Serialized,
    value::{Dict, Value},
};

use super::{DEFAULTS, Problems, files, paths, value};

mod environment;

pub(super) use self::environment::{Variables, environment};
pub use self::environment::{journal_stream, notify_socket};

/// What problems of the operator's file as a whole are told under.
pub(super) const FILE_KEY: &str = "--config";
const SECRET_KEYS: [&str; 2] = ["token", "next_token"];
/// Shown without the parts that may be secret.
const URL_KEYS: [&str; 5] = ["base_url", "jwks_url", "otlp_endpoint", "proxy", "url"];

/// Parsed once: each parse cost a megabyte of memory that the allocator kept for its thread.
pub(super) fn defaults() -> &'static Dict {
    static READ: LazyLock<Dict> = LazyLock::new(|| {
        toml::from_str(DEFAULTS).expect("the compiled-in defaults are TOML: a test reads them")
    });
    &READ
}

/// Placeholders for required values that are missing or invalid, so that reading can continue and find more problems.
const PLACEHOLDERS: &str = r#"
[auth.jwt]
issuer = "-"
audience = "-"
[auth.browser_tokens]
signing_key_file = "-"
[clients]
name = "-"
spaces = ["*"]
rate_limit = { per_second = 1.0, burst = 1 }
[views]
fields = ["-"]
[normalize.rules]
contains = "-"
code = "upstream_failed"
"#;

/// For each dotted key, the value to continue with if the given one is invalid.
pub(super) fn fallbacks() -> &'static Value {
    static READ: LazyLock<Value> = LazyLock::new(|| {
        let placeholders: Dict = toml::from_str(PLACEHOLDERS).expect("a test reads it");
        Figment::from(Serialized::defaults(defaults()))
            .merge(Serialized::defaults(placeholders))
            .extract::<Dict>()
            .expect("both are tables")
            .into()
    });
    &READ
}

/// The operator's settings as TOML.
#[derive(Clone, Debug)]
pub(super) struct Text {
    text: String,
    /// The file they are from.
    file: Option<PathBuf>,
}

impl Text {
    pub(super) fn of(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            file: None,
        }
    }

    pub(super) fn read(file: &Path) -> Result<Self, Problems> {
        let text = files::read_text(file).map_err(|error| {
            let text = format!("{}: cannot be read: {error}", file.display());
            Problems::one(FILE_KEY, text)
        })?;
        Ok(Self {
            text,
            file: Some(file.to_owned()),
        })
    }

    fn table(&self) -> Result<Dict, Problems> {
        let mut table = toml::from_str(&self.text).map_err(|error| self.not_toml(&error))?;
        if let Some(folder) = self.file.as_deref().and_then(Path::parent) {
            paths::resolve(&mut table, folder);
        }
        Ok(table)
    }

    /// Reports where the error is, without quoting the line: it may hold a token.
    fn not_toml(&self, error: &toml::de::Error) -> Problems {
        let place = error.span().map_or(0, |span| span.start);
        let before = self.text.get(..place).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let cause = error.message();
        let text = match &self.file {
            Some(file) => format!("{}:{line}:{column}: {cause}", file.display()),
            None => format!("line {line}, column {column}: {cause}"),
        };
        Problems::one(FILE_KEY, text)
    }
}

/// Merges the defaults, `text` and `environment`, later ones over earlier ones. An invalid variable is reported and left out. `None` if
/// `text` is not TOML.
pub(super) fn merge(
    text: Option<&Text>,
    environment: Variables,
    problems: &mut Problems,
) -> Option<Dict> {
    let mut figment = Figment::from(Serialized::defaults(defaults()));
    let table = text.map_or(Ok(Dict::new()), Text::table);
    let is_readable = table.is_ok();
    match table {
        Ok(table) => figment = figment.merge(Serialized::defaults(table)),
        Err(found) => problems.append(found),
    }
    let known = Value::from(defaults().clone());
    for variable in environment {
        if let Some((key, value)) = environment::setting(variable, &known, problems) {
            figment = figment.merge(Serialized::default(&key, value));
        }
    }
    let merged = figment.extract().expect("each source is a table");
    is_readable.then_some(merged)
}

/// Replaces every secret by `<hidden>`.
pub(super) fn hide_secrets(dict: &mut Dict) {
    for (key, value) in dict.iter_mut() {
        match value {
            Value::Dict(_, inner) => hide_secrets(inner),
            Value::Array(_, items) => {
                for item in items {
                    if let Value::Dict(_, inner) = item {
                        hide_secrets(inner);
                    }
                }
            }
            other if SECRET_KEYS.contains(&key.as_str()) => *other = Value::from("<hidden>"),
            other if URL_KEYS.contains(&key.as_str()) => *other = shown_url(other).into(),
            _ => {}
        }
    }
}

/// The URL as given, without the parts that may be secret.
fn shown_url(value: &Value) -> String {
    let given = value.as_str().unwrap_or_default().trim();
    let Ok(url) = given.parse::<url::Url>() else {
        return "<hidden>".to_owned();
    };
    let without = value::without_secrets(&url);
    if without == url.as_str() {
        given.to_owned()
    } else {
        without
    }
}

/// Copies the value of the dotted `key` from `from` to `to`, or removes it.
pub(super) fn copy(key: &str, from: &Dict, to: &mut Dict) {
    let Some((section, rest)) = key.split_once('.') else {
        match from.get(key) {
            Some(value) => to.insert(key.to_owned(), value.clone()),
            None => to.remove(key),
        };
        return;
    };
    if let (Some(Value::Dict(_, from)), Some(Value::Dict(_, to))) =
        (from.get(section), to.get_mut(section))
    {
        copy(rest, from, to);
    }
}

/// The dotted keys whose values differ, sorted.
pub(super) fn changed_keys(before: &Dict, after: &Dict) -> Vec<String> {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut changed = Vec::new();
    for name in names {
        match (before.get(name), after.get(name)) {
            (Some(Value::Dict(_, before)), Some(Value::Dict(_, after))) => {
                let inner = changed_keys(before, after);
                changed.extend(inner.into_iter().map(|key| format!("{name}.{key}")));
            }
            (before, after) if before == after => {}
            _ => changed.push(name.clone()),
        }
    }
    changed
}
