use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use compact_str::CompactString;

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

/// One task of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its JSON within [`TaskPage::body`].
    pub span: Range<u32>,
    /// Its `task_id`, if that is a string.
    pub id: Option<CompactString>,
    /// Its `status`, if that is a string.
    pub status: Option<CompactString>,
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
    /// Bytes this page holds beside the struct itself.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let spilled = |text: &Option<CompactString>| {
            text.as_ref()
                .filter(|text| text.is_heap_allocated())
                .map_or(0, CompactString::capacity)
        };
        self.body.len()
            + self
                .tasks
                .iter()
                .map(|task| size_of::<Task>() + spilled(&task.id) + spilled(&task.status))
                .sum::<usize>()
    }
}
