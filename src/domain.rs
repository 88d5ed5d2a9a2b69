//! Our words as types. No I/O, no HTTP, no clock: what a space token, a page and its tasks are, and nothing of how they travel.

pub mod hex;
pub mod json;
mod page_key;
mod page_query;
mod refusal;
mod space_token;
mod task_page;
mod view;

pub use self::{
    page_key::{CredentialId, PageKey, SpaceKey},
    page_query::{PageQuery, Span},
    refusal::Refusal,
    space_token::{InvalidSpaceToken, SpaceFingerprint, SpaceToken},
    task_page::{Task, TaskPage},
    view::{FieldPath, InvalidFieldPath, View, ViewId},
};
