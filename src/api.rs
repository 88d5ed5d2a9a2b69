//! The two listeners as routers: what a request passes on its way in, and what every answer looks like on its way out.

pub mod admin;
pub mod body;
pub mod clients;
pub mod context;
pub mod error;
pub mod extract;
pub mod key;
pub mod layers;
pub mod list_scope;
pub mod policy;
pub mod query;
pub mod rate_limit;
pub mod router;
pub mod routes;

pub use self::{
    clients::{Client, Clients, Issuers, Right},
    error::ApiError,
    policy::{LivePolicy, Policy},
    router::{Data, data_router},
};
