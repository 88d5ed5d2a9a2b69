//! The gateway as its users meet it, in one binary.

mod quota;
