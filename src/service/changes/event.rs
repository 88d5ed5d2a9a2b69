//! A change as a client sees it: cut to what its view shows, and to nothing where that did not change.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::reading::{Change, State};
use crate::domain::{
    View, ViewId,
    json::{member, members, text},
};

/// Events that are kept with an entry, so that a thousand readers cost what one does.
const MOST_SHOWN: usize = 4;
/// A longer one is made for each reader.
const LARGEST_SHOWN: usize = 4096;
/// What an entry takes besides its bytes.
const ENTRY_WEIGHT: usize = 512;

/// What a client is shown of a task.
#[derive(Clone, Debug, Default)]
pub struct Projection {
    /// What it may see; `None`: all of it.
    view: Option<Arc<View>>,
    /// What it asks for as `task`, of what it may see.
    fields: Option<View>,
}

/// Names a projection.
type ProjectionId = (Option<ViewId>, Option<ViewId>);

impl Projection {
    /// Shows what `view` does, and with each event of it what `fields` lead to.
    #[must_use]
    pub fn new(view: Option<Arc<View>>, fields: Option<View>) -> Self {
        let fields = fields.map(|fields| match &view {
            Some(view) => view.intersection(&fields),
            None => fields,
        });
        Self { view, fields }
    }

    fn id(&self) -> ProjectionId {
        let of = |view: &View| view.id();
        (self.view.as_deref().map(of), self.fields.as_ref().map(of))
    }

    fn show(&self, state: &State, id: &str) -> Option<Bytes> {
        let task = match &state.bytes {
            Some(bytes) => bytes.clone(),
            None => outline(state, id),
        };
        match &self.view {
            Some(view) => cut(view, &task),
            None => Some(task),
        }
    }
}

/// What stands for a task whose bytes are not kept.
fn outline(state: &State, id: &str) -> Bytes {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let status = state.status.as_deref().map(text);
    let status = status.map_or_else(String::new, |status| format!(r#","status":{status}"#));
    format!(r#"{{"task_id":{}{status}}}"#, text(id)).into()
}

/// What `view` shows of one task: as of a page whose rows are this one.
fn cut(view: &View, task: &[u8]) -> Option<Bytes> {
    const BEFORE: &[u8] = br#"{"data":"#;
    let page = [BEFORE, task, b"}"].concat();
    let shown = view.apply(&page)?;
    let task = shown.strip_prefix(BEFORE)?.strip_suffix(b"}")?;
    Some(shown.slice_ref(task))
}

/// The type of an event that tells of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEvent {
    Created,
    Updated,
}

impl TaskEvent {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "task.created",
            Self::Updated => "task.updated",
        }
    }
}

/// A change in the log.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) change: Change,
    seen_at: Box<str>,
    /// `None`: nothing that this projection shows changed.
    #[serde(skip)]
    shown: Mutex<Vec<(ProjectionId, Option<Bytes>)>>,
}

impl Entry {
    pub(super) fn new(change: Change, seen_at: &str) -> Self {
        Self {
            change,
            seen_at: seen_at.into(),
            shown: Mutex::default(),
        }
    }

    pub(super) fn weight(&self) -> usize {
        let before = self.change.before.as_ref().map_or(0, State::weight);
        ENTRY_WEIGHT + before + self.change.after.weight()
    }

    /// The event as JSON; `None` where nothing that `projection` shows changed.
    pub(super) fn event(&self, projection: &Projection) -> Option<Bytes> {
        let id = projection.id();
        let mut shown = self.shown.lock();
        if let Some((_, event)) = shown.iter().find(|(known, _)| *known == id) {
            return event.clone();
        }
        let event = event(&self.change, &self.seen_at, projection);
        let is_small = event
            .as_ref()
            .is_none_or(|event| event.len() <= LARGEST_SHOWN);
        if is_small && shown.len() < MOST_SHOWN {
            shown.push((id, event.clone()));
        }
        event
    }
}

/// The event that tells `projection` of `change`; `None` where nothing that it shows changed.
pub(super) fn event(change: &Change, seen_at: &str, projection: &Projection) -> Option<Bytes> {
    let show = |state: &State| projection.show(state, &change.id);
    let after = show(&change.after)?;
    let before = change.before.as_ref();
    // What was there before cannot be compared where its bytes are gone: then whatever is shown may have changed.
    let is_compared =
        before.is_some_and(|before| before.bytes.is_some()) && change.after.bytes.is_some();
    let before = before.map(|before| show(before).unwrap_or_default());
    if is_compared && before.as_ref() == Some(&after) {
        return None;
    }
    // Names the bytes of what is shown: the same on every replica and after a restart.
    let digest = xxh3_128(&after);
    let after = str::from_utf8(&after).ok()?;
    let before = before.as_deref().map(str::from_utf8).transpose().ok()?;
    let mut json = format!(r#"{{"type":"{}""#, change.kind().as_str());
    push_member(&mut json, "task_id", member(after, "task_id"));
    push_member(&mut json, "status", text_member(after, "status"));
    if let Some(before) = before {
        push_member(&mut json, "was", text_member(before, "status"));
        let compared = if is_compared { before } else { "{}" };
        let changed = changed(compared, after).join(",");
        json.push_str(&format!(r#","changed":[{changed}]"#));
    }
    json.push_str(&format!(
        r#","digest":"{digest:032x}","seen_at":"{seen_at}""#
    ));
    if let (Some(fields), Some(bytes)) = (&projection.fields, &change.after.bytes) {
        let task = cut(fields, bytes)?;
        push_member(&mut json, "task", str::from_utf8(&task).ok());
    }
    json.push('}');
    Some(json.into())
}

fn push_member(json: &mut String, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        json.push_str(&format!(r#","{name}":{value}"#));
    }
}

/// A member as it stands, if it is a string.
fn text_member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    member(object, name).filter(|value| text(value).is_some())
}

/// The names, as they stand, of the members that are not the same in both.
fn changed<'a>(before: &'a str, after: &'a str) -> Vec<&'a str> {
    let (before, after) = (
        members(before).unwrap_or_default(),
        members(after).unwrap_or_default(),
    );
    let added = after.iter().filter(|member| !before.contains(member));
    let is_in_after = |name: &str| after.iter().any(|(other, _)| *other == name);
    let removed = before.iter().filter(|(name, _)| !is_in_after(name));
    added.chain(removed).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::FieldPath;

    fn state(bytes: &'static str) -> State {
        State {
            digest: xxh3_128(bytes.as_bytes()),
            status: member(bytes, "status").and_then(text).map(Into::into),
            bytes: Some(bytes.into()),
        }
    }

    fn view(fields: &[&str]) -> View {
        let fields: Vec<_> = (fields.iter())
            .map(|field| FieldPath::dotted(field).unwrap())
            .collect();
        View::new(&fields)
    }

    fn change(before: Option<&'static str>, after: &'static str) -> Change {
        Change {
            id: "t1".into(),
            before: before.map(state),
            after: state(after),
        }
    }

    fn shown(change: &Change, projection: &Projection) -> Option<serde_json::Value> {
        let event = event(change, "2026-12-01T00:00:00Z", projection)?;
        let mut event: serde_json::Value = serde_json::from_slice(&event).unwrap();
        let digest = event.as_object_mut().unwrap().remove("digest").unwrap();
        assert_eq!(digest.as_str().unwrap().len(), 32);
        assert_eq!(event["seen_at"], "2026-12-01T00:00:00Z");
        event.as_object_mut().unwrap().remove("seen_at");
        Some(event)
    }

    const BEFORE: &str =
        r#"{"task_id":"t1","status":"pending","n":1e+22,"output":{"a":1,"b":2},"old":0}"#;
    const AFTER: &str =
        r#"{"task_id":"t1","status":"completed","n":1e+22,"output":{"a":1,"b":3},"new":[]}"#;

    #[test]
    fn an_event_tells_what_changed_of_what_is_shown_and_nothing_else() {
        use serde_json::json;
        let updated = change(Some(BEFORE), AFTER);
        let view_of = view;
        let see = |fields: &[&str], more: Option<&[&str]>| {
            let view = (!fields.is_empty()).then(|| Arc::new(view_of(fields)));
            shown(&updated, &Projection::new(view, more.map(view_of)))
        };
        let of = |members: serde_json::Value| {
            let mut event = json!({"type": "task.updated"});
            let more = members.as_object().unwrap().clone();
            event.as_object_mut().unwrap().extend(more);
            Some(event)
        };
        assert_eq!(
            see(&[], None),
            of(
                json!({"task_id": "t1", "status": "completed", "was": "pending",
                      "changed": ["status", "output", "new", "old"]})
            )
        );
        assert_eq!(
            see(&["task_id", "output.a"], None),
            None,
            "nothing that it sees"
        );
        assert_eq!(
            see(&["task_id", "output.b"], None),
            of(json!({"task_id": "t1", "changed": ["output"]})),
            "the status is hidden"
        );
        assert_eq!(
            see(&["task_id", "status"], Some(&["output.b", "status"])),
            of(
                json!({"task_id": "t1", "status": "completed", "was": "pending",
                      "changed": ["status"], "task": {"status": "completed"}})
            ),
            "fields show no more than the view"
        );
        assert_eq!(
            see(&["status"], None),
            of(json!({"status": "completed", "was": "pending", "changed": ["status"]}))
        );
    }

    #[test]
    fn what_is_new_has_no_before() {
        let created = change(None, AFTER);
        let event = shown(&created, &Projection::default()).unwrap();
        let expected =
            serde_json::json!({"type": "task.created", "task_id": "t1", "status": "completed"});
        assert_eq!(event, expected);
    }

    #[test]
    fn digests_are_of_what_is_shown_and_of_nothing_else() {
        let digest_of = |change: &Change, view_of: Option<&[&str]>| {
            let projection = Projection::new(view_of.map(|of| Arc::new(view(of))), None);
            let event = event(change, "", &projection).unwrap();
            let event: serde_json::Value = serde_json::from_slice(&event).unwrap();
            event["digest"].clone()
        };
        let (one, other) = (change(None, BEFORE), change(None, AFTER));
        assert_eq!(digest_of(&one, None), digest_of(&one, None));
        assert_ne!(digest_of(&one, None), digest_of(&other, None));
        let hidden = ["task_id", "n"];
        assert_eq!(
            digest_of(&one, Some(&hidden)),
            digest_of(&other, Some(&hidden))
        );
    }

    #[test]
    fn a_change_whose_bytes_are_gone_is_told_with_all_that_is_shown() {
        let mut updated = change(Some(BEFORE), AFTER);
        updated.before.as_mut().unwrap().bytes = None;
        let event = shown(&updated, &Projection::default()).unwrap();
        assert_eq!(event["changed"].as_array().unwrap().len(), 5);
        assert_eq!(
            (&event["was"], &event["status"]),
            (&"pending".into(), &"completed".into())
        );

        updated.after.bytes = None;
        let view = Arc::new(view(&["task_id", "output"]));
        let event = shown(&updated, &Projection::new(Some(view), None)).unwrap();
        assert_eq!(
            event,
            serde_json::json!({"type": "task.updated", "task_id": "t1", "changed": ["task_id"]})
        );
    }

    #[test]
    fn an_entry_keeps_few_events_however_many_projections_there_are() {
        let entry = Entry::new(change(Some(BEFORE), AFTER), "");
        for number in 0..10_000 {
            let field = format!("f{number}");
            let projection = Projection::new(None, Some(view(&[&field])));
            assert!(entry.event(&projection).is_some());
        }
        assert_eq!(entry.shown.lock().len(), MOST_SHOWN);
    }
}
