//! `[views.NAME]`: what clients see of a task, and of a run.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use super::Problems;
use crate::domain::{FieldPath, View};

/// Every view by its name.
pub type ViewsConfig = BTreeMap<String, ViewConfig>;

/// `[views.NAME]`: an allow-list of a task's members.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewConfig {
    pub fields: Vec<Field>,
    /// Absent: clients with this view may read no runs.
    pub runs: Option<RunViewConfig>,
}

/// `[views.NAME.runs]`: an allow-list of a run's members.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunViewConfig {
    pub fields: Vec<Field>,
}

/// One member: `"output.call_id"`, or the names one by one where one is empty or holds a dot: `["output", "a.b"]`.
#[derive(Clone, Debug)]
pub struct Field(pub FieldPath);

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a member such as \"output.call_id\", or its names such as [\"output\", \"a.b\"]",
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Field, E> {
        FieldPath::dotted(text).map(Field).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Field, A::Error> {
        let mut path = Vec::new();
        while let Some(name) = names.next_element()? {
            path.push(name);
        }
        FieldPath::new(path).map(Field).map_err(de::Error::custom)
    }
}

pub(super) fn check(views: &ViewsConfig, problems: &mut Problems) {
    if views.len() > View::MOST {
        problems.add("views", format!("expected at most {}", View::MOST));
    }
    for (name, view) in views {
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(fit) {
            let text = "expected a name of 1 to 64 of A-Z a-z 0-9 _ -";
            problems.add(format!("views.{name}"), text);
        }
        let text = "expected at least one member";
        if view.fields.is_empty() {
            problems.add(format!("views.{name}.fields"), text);
        }
        if view
            .runs
            .as_ref()
            .is_some_and(|runs| runs.fields.is_empty())
        {
            problems.add(format!("views.{name}.runs.fields"), text);
        }
    }
}
