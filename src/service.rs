//! The use cases, where cache and upstream meet.

pub mod inspect;
pub mod off_runtime;
pub mod packing;
mod second_tier;
pub mod snapshot;
pub mod tasks;

pub use self::tasks::{Ask, Served, Tasks, TasksError, TasksErrorKind};
pub use self::{second_tier::SecondTier, snapshot::Snapshot};
