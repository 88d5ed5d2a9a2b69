//! The use cases, where cache and upstream meet.

pub mod inspect;
pub mod snapshot;
pub mod tasks;

pub use self::snapshot::Snapshot;
pub use self::tasks::{Ask, Served, Tasks, TasksError, TasksErrorKind};
