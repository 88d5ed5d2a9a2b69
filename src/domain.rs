//! Our words as types. No I/O, no HTTP, no clock: what a space token, a page and its tasks are, and nothing of how they travel.

mod collection;
mod filter;
pub mod hex;
pub mod json;
mod list_page;
mod page_key;
mod page_query;
mod refusal;
mod run_id;
mod space_token;
mod task_id;
mod view;
mod view_set;

pub use self::{
    collection::{Collection, ListId, RUN_ID, RowKind},
    filter::{Filter, FilterMember},
    list_page::{ListPage, Row},
    page_key::{CredentialId, ListKey, PageKey, SpaceKey},
    page_query::{PageQuery, Span},
    refusal::Refusal,
    run_id::{InvalidRunId, RunId},
    space_token::{InvalidSpaceToken, SpaceFingerprint, SpaceToken},
    task_id::{InvalidTaskId, TaskId, is_row_value},
    view::{FieldPath, InvalidFieldPath, View, ViewId},
    view_set::ViewSet,
};
