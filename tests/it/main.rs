//! A real gateway over real sockets, before a simulated or scripted upstream: what a client, an operator and a shell see.
//!
//! Every answer passes the checks of [`answer::check`], whatever a test is about.

#![expect(clippy::unwrap_used, reason = "a test fails by its panic")]

mod answer;
mod gateway;
mod http2;
mod raw;

mod auth;
mod cache;
mod captures;
mod coherence;
mod errors;
mod layering;
mod listeners;
mod operators;
mod paths;
mod process;
mod quota;
mod reload;
mod secrets;
mod service_manager;
mod tokens;
mod upstream_tls;
mod warm_start;
