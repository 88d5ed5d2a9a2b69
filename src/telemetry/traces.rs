//! Where a request stands in a trace that its caller began.

pub mod traceparent;
