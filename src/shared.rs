//! What replicas share through a Redis or Valkey: the connection, and the calls and rate limits counted there.
//!
//! Without [`RedisConnection`] a replica continues alone. Shared pages are the business of `service`.

mod calls;
mod connect;
mod limit;
mod nonce;
mod redis_connection;
#[cfg(test)]
pub(crate) mod test_redis;

pub(crate) use self::redis_connection::{ms, unix_ms};
pub use self::{
    calls::{Calls, Grant, SharedCall},
    connect::DialError,
    limit::{SharedLimit, Taken},
    nonce::Nonce,
    redis_connection::{
        Backlog, Health, Members, RedisConnection, Session, Subscriber, Unavailable,
    },
};
