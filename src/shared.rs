//! What replicas share by way of a Redis or Valkey: the connection, and what is counted there for all of them.
//!
//! [`Link`] is the one connection; whoever asks over it goes on alone where it is lost. Pages are the business of `service`, which
//! joins this with the cache.

mod calls;
mod connect;
mod limit;
mod link;
mod nonce;

pub use self::{
    calls::{Calls, Grant, SharedCall},
    connect::DialError,
    limit::{SharedLimit, Taken},
    link::{Era, Follower, Health, Link, Lost, Session},
    nonce::Nonce,
};
