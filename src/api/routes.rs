//! The data listener's handlers.

pub mod tasks;
