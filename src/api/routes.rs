//! The data listener's handlers.

pub mod browser_tokens;
pub mod tasks;
