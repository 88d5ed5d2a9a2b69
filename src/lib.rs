//! A caching gateway in front of Unpod's "Get Tasks by Space Token": one API token behind it, many callers before it.
//!
//! A request passes, in order: [`server`] (connection, limits), [`api`] (request id, log, identity, route, query, space),
//! [`service`] (is there a page that may be served?), [`cache`] (judge its age, join or begin a fill), [`upstream`]
//! (deadline, retries, circuit, quota, slots, and what the answer means).
//!
//! ```text
//! main → cli → app → everything        api → service → cache | upstream → domain
//!                                      api | service | upstream → shared        api | server → peer
//! ```
//!
//! `config` and `telemetry` may be used by most; `domain` uses nothing of ours. `cache` and `upstream` do not know
//! each other: `service` joins them. `shared` is what replicas share by way of a Redis, where there is one. `peer` is what is known of a
//! connection, `outbound` asks other services than the upstream. `simulator` stands outside: it plays the upstream for `demo` and the tests.

pub mod api;
pub mod app;
pub mod cache;
pub mod cli;
pub mod config;
pub mod domain;
pub mod off_runtime;
pub mod outbound;
pub mod peer;
pub mod server;
pub mod service;
pub mod shared;
pub mod simulator;
pub mod telemetry;
pub mod upstream;
