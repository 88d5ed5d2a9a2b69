//! A real gateway over real sockets, before a simulated or scripted upstream: what a client, an operator and a shell see.
//!
//! Every answer passes the checks of [`answer::check`], whatever a test is about.

#![expect(clippy::unwrap_used, reason = "a test fails by its panic")]

mod answer;
mod gateway;
mod http2;
mod pki;
mod provider;
mod raw;
mod redis_server;

mod admin_auth;
mod auth;
mod browser_tokens;
mod cache;
mod captures;
mod changes;
mod changes_streams;
mod check;
mod circuit;
mod claims;
mod client_address;
mod coherence;
mod collections;
mod commands;
mod cors;
mod deploy;
mod documents;
mod errors;
mod fairness;
mod faults;
mod filters;
mod hang_ups;
mod jwt;
mod layering;
mod listeners;
mod metrics;
mod never;
mod operators;
mod overload;
mod packing;
mod paths;
mod privacy;
mod process;
mod proxy_protocol;
mod quota;
mod rate_limit;
mod redis;
mod redis_changes;
mod redis_faults;
mod redis_kinds;
mod redis_metrics;
mod redis_quota;
mod reload;
mod secrets;
mod service_manager;
mod stalled;
mod task;
mod tls;
mod tokens;
mod traces;
mod upstream_answers;
mod upstream_tls;
mod views;
mod warm_start;
mod wide;
