//! What wraps every request of the data listener.

pub mod catch_panic;
pub mod cors;
pub mod host;
pub mod internal_auth;
pub mod observe;
mod request_id;
pub mod shed;
