//! Problems of a configuration: each with its key, never with its value.

use std::fmt;

use figment::{
    error::Kind,
    value::{Dict, Value},
};
use serde::Deserialize;

use super::{paths, wording::describe};

/// A problem and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The dotted key, such as `cache.ttl` or `clients[0].spaces`.
    pub key: String,
    /// What is wrong with it; holds no configured value but the path of a file.
    pub text: String,
    /// Other keys: a problem of one of them may be the cause of this one.
    depends_on: Vec<String>,
}

/// All problems of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a problem of `key`.
    pub fn add(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.add_depending(key, text, &[]);
    }

    /// Adds a problem of `key` that may follow from an earlier one of `others`.
    pub(super) fn add_depending(
        &mut self,
        key: impl Into<String>,
        text: impl Into<String>,
        others: &[&str],
    ) {
        self.0.push(Problem {
            key: key.into(),
            text: text.into(),
            depends_on: others.iter().map(|key| (*key).to_owned()).collect(),
        });
    }

    /// Adds the problems that do not follow from known ones.
    pub(super) fn append_news(&mut self, found: Self) {
        let is_known = |key: &str| self.0.iter().any(|known| overlap(&known.key, key));
        let is_news = |problem: &Problem| {
            !is_known(&problem.key) && !problem.depends_on.iter().any(|key| is_known(key))
        };
        let news: Vec<_> = found.0.into_iter().filter(is_news).collect();
        self.0.extend(news);
    }

    /// Names the file, where the problem's key does so in `merged`: the message has only what is wrong with it.
    pub(super) fn name_files(&mut self, merged: &Dict) {
        for problem in &mut self.0 {
            if let Some(file) = paths::file_of(&problem.key, merged)
                && !problem.text.contains(file)
            {
                problem.text = format!("{}: {}", paths::shown(file), problem.text);
            }
        }
    }

    /// Adds all of `found`.
    pub fn append(&mut self, mut found: Self) {
        self.0.append(&mut found.0);
    }

    /// A single problem.
    #[must_use]
    pub fn one(key: impl Into<String>, text: impl Into<String>) -> Self {
        let mut problems = Self::default();
        problems.add(key, text);
        problems
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Problem) -> bool) {
        self.0.retain(keep);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

/// Whether the keys are equal, or one contains the other.
fn overlap(one: &str, other: &str) -> bool {
    let holds = |outer: &str, inner: &str| {
        let rest = inner.strip_prefix(outer);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    holds(one, other) || holds(other, one)
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, problem) in self.0.iter().enumerate() {
            if place > 0 {
                writeln!(f)?;
            }
            write!(f, "{}: {}", problem.key, problem.text)?;
        }
        Ok(())
    }
}

/// Reads a `T` from `value`. Each problem is added with its key under `prefix`, and reading continues with the value of `fallback`, or
/// without the key.
///
/// With problems, the result serves only to look for more. `None` if reading cannot continue.
pub(super) fn extract<T: for<'de> Deserialize<'de>>(
    prefix: &str,
    mut value: Value,
    fallback: Option<&Value>,
    problems: &mut Problems,
) -> Option<T> {
    if value.as_dict().is_none() {
        problems.add(prefix, "expected a table");
        value = fallback?.clone();
    }
    let mut mended = Vec::new();
    loop {
        let (path, kind) = match read::<T>(&value) {
            Ok(read) => return Some(read),
            Err(fault) => fault,
        };
        let is_mended = match path.iter().position(|part| is_place(part)) {
            _ if mended.contains(&path) => false,
            Some(end) => mend_list::<T>(prefix, &mut value, &path[..end], fallback, problems),
            None => {
                problems.add(format!("{prefix}{}", shown_path(&path)), describe(&kind));
                restore(&mut value, &path, fallback)
            }
        };
        if !is_mended {
            // At least one problem must be reported.
            problems.append_news(Problems::one(prefix, "cannot be read"));
            return None;
        }
        mended.push(path);
    }
}

/// Reads `value`, or returns the path and the kind of the first error.
fn read<T: for<'de> Deserialize<'de>>(value: &Value) -> Result<T, (Vec<String>, Kind)> {
    value.deserialize().map_err(|error| {
        let mut path = error.path;
        let named = match &error.kind {
            Kind::UnknownField(name, _) => Some(name.as_str()),
            Kind::MissingField(name) => Some(name.as_ref()),
            _ => None,
        };
        // Only some of figment's errors end their path with the field's name.
        if let Some(name) = named.filter(|name| path.last().map(String::as_str) != Some(*name)) {
            path.push(name.to_owned());
        }
        (path, error.kind)
    })
}

/// Reports every invalid item of the list at `path` and replaces it by a valid one; without a valid item the list goes.
fn mend_list<T: for<'de> Deserialize<'de>>(
    prefix: &str,
    value: &mut Value,
    path: &[String],
    fallback: Option<&Value>,
    problems: &mut Problems,
) -> bool {
    let items = at(value, path).and_then(Value::as_array).map(<[_]>::to_vec);
    let items = items.unwrap_or_default();
    let fault_of = |item: &Value| {
        let mut alone = value.clone();
        put(&mut alone, path, Some(vec![item.clone()].into()));
        // An error elsewhere is reported on its own.
        let (found, kind) = read::<T>(&alone).err()?;
        let within = found.strip_prefix(path)?.get(1..)?.to_vec();
        Some((within, kind))
    };
    let faults: Vec<_> = items.iter().map(fault_of).collect();
    for (place, (within, kind)) in faults
        .iter()
        .enumerate()
        .filter_map(|(place, fault)| Some((place, fault.as_ref()?)))
    {
        let key = format!(
            "{prefix}{}[{place}]{}",
            shown_path(path),
            shown_path(within)
        );
        problems.add(key, describe(kind));
    }
    let Some(good) = faults.iter().position(Option::is_none) else {
        return restore(value, path, fallback);
    };
    let is_mended = faults.iter().any(Option::is_some);
    let mended = items.iter().zip(&faults).map(|(item, fault)| match fault {
        None => item.clone(),
        Some(_) => items[good].clone(),
    });
    let mended: Vec<_> = mended.collect();
    put(value, path, Some(mended.into()));
    is_mended
}

fn at<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter()
        .try_fold(value, |value, part| value.as_dict()?.get(part))
}

fn is_place(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

fn shown_path(path: &[String]) -> String {
    path.iter().fold(String::new(), |mut shown, part| {
        if is_place(part) {
            shown.push_str(&format!("[{part}]"));
        } else {
            shown.push('.');
            shown.push_str(part);
        }
        shown
    })
}

/// Puts the value of `fallback` at `path`, or removes the key. `false` if nothing changed, so that reading again is pointless.
fn restore(value: &mut Value, path: &[String], fallback: Option<&Value>) -> bool {
    let in_place = fallback.and_then(|root| at(root, path)).cloned();
    if in_place.as_ref() == at(value, path) {
        return false;
    }
    put(value, path, in_place);
    true
}

/// Sets the value at `path` within existing tables; `None` removes it.
fn put(value: &mut Value, path: &[String], new: Option<Value>) {
    let (Some((last, parents)), mut at) = (path.split_last(), value) else {
        return;
    };
    for part in parents {
        at = match at {
            Value::Dict(_, dict) if dict.contains_key(part) => {
                dict.get_mut(part).expect("the guard found it")
            }
            _ => return,
        };
    }
    let Value::Dict(_, dict) = at else {
        return;
    };
    match new {
        Some(new) => dict.insert(last.clone(), new),
        None => dict.remove(last),
    };
}
