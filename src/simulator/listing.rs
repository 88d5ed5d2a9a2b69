//! The lists that the upstream serves below a space, and the rows of its runs.

use super::task::{Place, Task};

/// Which list of a space is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Listing<'a> {
    Tasks,
    Runs,
    /// The tasks of one run, whose id is taken as it stands in the path.
    RunTasks(&'a str),
}

impl<'a> Listing<'a> {
    /// The list at `path` below a space, without a trailing slash.
    pub(super) fn at(path: &'a str) -> Option<Self> {
        match path {
            "tasks" => Some(Self::Tasks),
            "runs" => Some(Self::Runs),
            _ => {
                let run = path.strip_prefix("runs/")?.strip_suffix("/tasks")?;
                let one_segment = !run.is_empty() && !run.contains('/');
                one_segment.then_some(Self::RunTasks(run))
            }
        }
    }

    pub(super) fn success(self) -> &'static str {
        match self {
            Self::Tasks | Self::RunTasks(_) => "Tasks Fetched Successfully",
            Self::Runs => "Runs Fetched Successfully",
        }
    }

    /// What a failure is called: a run's tasks are read by the code of the runs.
    pub(super) fn failure(self) -> &'static str {
        match self {
            Self::Tasks => "Tasks Fetch Failed",
            Self::Runs | Self::RunTasks(_) => "Runs Fetch Failed",
        }
    }

    /// What is said to who has no role in the space.
    pub(super) fn no_role(self) -> &'static str {
        match self {
            Self::Tasks => "You Don't have Access to this Space",
            Self::Runs | Self::RunTasks(_) => {
                "You Don't have Access to this Space, You can't do any operation to this Space"
            }
        }
    }

    /// The methods that are allowed: a POST makes tasks.
    pub(super) fn allowed(self) -> &'static str {
        match self {
            Self::Tasks => "GET, POST, HEAD, OPTIONS",
            Self::Runs | Self::RunTasks(_) => "GET, HEAD, OPTIONS",
        }
    }

    /// The rows of the list, of a space with `tasks`, both newest first.
    pub(super) fn rows(self, place: &Place, tasks: &[&Task]) -> Vec<Row> {
        match self {
            Self::Tasks => tasks.iter().map(|task| Row::of(task)).collect(),
            Self::RunTasks(run) => tasks
                .iter()
                .filter(|task| task.run_id(place) == run)
                .map(|task| Row::of(task))
                .collect(),
            Self::Runs => tasks
                .chunk_by(|task, next| task.run() == next.run())
                .map(|tasks| run(place, tasks))
                .collect(),
        }
    }
}

/// One row as it is printed.
pub(super) struct Row {
    pub(super) json: String,
    /// Stored so badly that its whole page fails.
    pub(super) poisoned: bool,
}

impl Row {
    fn of(task: &Task) -> Self {
        Self {
            json: task.json.clone(),
            poisoned: task.poisoned,
        }
    }
}

/// The run of `tasks`, which are its own, newest first.
fn run(place: &Place, tasks: &[&Task]) -> Row {
    let (newest, oldest) = (tasks[0], tasks[tasks.len() - 1]);
    let is_done = |task: &&&Task| matches!(&*task.status, "completed" | "failed");
    let status = match tasks.iter().filter(is_done).count() {
        done if done == tasks.len() => "completed",
        0 => "pending",
        _ => "in_progress",
    };
    let (space, space_id, id) = (place.space, place.space_id, newest.run_id(place));
    let thread = match newest.run() % 3 {
        0 => format!(r#""thread_{}""#, newest.run()),
        _ => "null".to_owned(),
    };
    let (created, modified) = (oldest.created(place), newest.created(place));
    let count = tasks.len();
    Row {
        json: format!(
            r#"{{"space_id":"{space_id}","user":"2","thread_id":{thread},"run_id":"{id}","collection_ref":"contact_data_{space}","run_mode":"default","status":"{status}","batch_count":{count},"created":"{created}","modified":"{modified}"}}"#
        ),
        poisoned: false,
    }
}
