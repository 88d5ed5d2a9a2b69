//! Stores pages, judges their age, and merges concurrent fetches of a page into one.
//!
//! It knows nothing of the upstream: it is handed headers and bytes, and a future to run. Decisions are pure functions in
//! [`freshness`]; [`store`] stores, [`single_flight`] merges concurrent fetches.

pub mod assemble;
mod compression;
pub mod content;
pub mod encodings;
pub mod entry;
mod failing;
pub mod freshness;
pub mod http_semantics;
mod link;
pub mod list;
pub mod memory;
pub mod outline;
pub mod page_set;
pub mod refresh_plan;
pub mod representation;
pub mod row_limit;
pub mod row_table;
pub mod single_flight;
pub mod snapshot;
pub mod space;
pub mod status;
pub mod store;
mod variants;

pub use self::{
    entry::{StoredPage, judge_page},
    freshness::{Received, Verdict, judge},
    single_flight::{Role, SingleFlight},
    status::CacheStatus,
    store::PageStore,
};
