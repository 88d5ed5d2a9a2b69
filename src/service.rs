//! The use cases, where cache and upstream meet.

mod concurrency_limit;
pub mod inspect;
pub mod packing;
mod second_tier;
pub mod snapshot;
pub mod tasks;

pub use self::tasks::{Ask, Served, Tasks, TasksError, TasksErrorKind};
pub use self::{
    concurrency_limit::{ConcurrencyLimit, Permit},
    second_tier::SecondTier,
    snapshot::Snapshot,
};
