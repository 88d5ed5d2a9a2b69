use std::{borrow::Cow, fmt, ops::Range, str, sync::Arc};

use bytes::Bytes;

use super::json;

/// One page of tasks: the upstream's bytes, and where in them each task lies.
///
/// The bytes are never parsed and printed again: numbers past 2^53, key order and escapes stay as they came.
#[derive(Clone)]
pub struct TaskPage {
    /// The whole document, as received.
    pub body: Bytes,
    /// How many tasks the list has, over all pages.
    pub count: u64,
    /// The tasks of this page, in order.
    pub tasks: Arc<[Task]>,
}

/// One task of a page: where it lies.
///
/// What it says is read where it is asked for. Most of it never is, and there are dozens to every page that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its JSON within [`TaskPage::body`].
    pub span: Range<u32>,
}

/// Without the tasks: they hold people's names, numbers and words.
impl fmt::Debug for TaskPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskPage")
            .field("bytes", &self.body.len())
            .field("count", &self.count)
            .field("tasks", &self.tasks.len())
            .finish()
    }
}

impl TaskPage {
    /// The `task_id` of `task`, one of this page, if that is a string.
    #[must_use]
    pub fn id_of(&self, task: &Task) -> Option<Cow<'_, str>> {
        self.text_of(task, "task_id")
    }

    /// The `status` of `task`, one of this page, if that is a string.
    #[must_use]
    pub fn status_of(&self, task: &Task) -> Option<Cow<'_, str>> {
        self.text_of(task, "status")
    }

    fn text_of(&self, task: &Task, name: &str) -> Option<Cow<'_, str>> {
        let span = task.span.start as usize..task.span.end as usize;
        let task = str::from_utf8(&self.body[span]).ok()?;
        json::text(json::member(task, name)?)
    }
}
