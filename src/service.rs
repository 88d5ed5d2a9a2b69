//! The use cases, where cache and upstream meet.

pub mod tasks;

pub use self::tasks::{Ask, Served, Tasks, TasksError, TasksErrorKind};
