//! The use cases, where cache and upstream meet.

pub mod background;
pub mod changes;
mod concurrency_limit;
pub mod inspect;
pub mod pages;
mod shared_cache;
pub mod snapshot;

pub use self::pages::{
    ClientRequest, FillObserver, FilterRequest, FoundTask, Pages, PagesError, PagesErrorKind,
    Scope, Served,
};
pub use self::{
    changes::Changes,
    concurrency_limit::{ConcurrencyLimit, Permit},
    shared_cache::SharedCache,
    snapshot::Snapshot,
};
