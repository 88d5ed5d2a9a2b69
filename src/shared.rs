//! What replicas share by way of a Redis or Valkey: the connection, and what is counted there for all of them.
//!
//! [`RedisConnection`] is the one connection; whoever asks over it goes on alone where it is lost. Pages are the business of `service`, which
//! joins this with the cache.

mod calls;
mod connect;
mod limit;
mod nonce;
mod redis_connection;

pub use self::{
    calls::{Calls, Grant, SharedCall},
    connect::DialError,
    limit::{SharedLimit, Taken},
    nonce::Nonce,
    redis_connection::{Era, Health, RedisConnection, Session, Subscriber, Unavailable},
};
