//! Keeps pages, judges their age, and lets one fetch serve many waiters.
//!
//! It knows nothing of the upstream: it is handed headers and bytes, and a future to run. Decisions are pure functions in
//! [`freshness`]; [`store`] keeps, [`flight`] joins.

pub mod assemble;
mod coding;
pub mod entry;
pub mod flight;
pub mod forms;
pub mod freshness;
pub mod http_semantics;
mod link;
pub mod list;
pub mod memory;
pub mod page_set;
pub mod rendition;
pub mod snapshot;
pub mod space;
pub mod status;
pub mod store;
pub mod stretch;
mod variants;

pub use self::{
    entry::{Received, Shown, StoredPage, judge_page},
    flight::{Flights, Role},
    freshness::{Verdict, judge},
    status::CacheStatus,
    store::PageStore,
};
