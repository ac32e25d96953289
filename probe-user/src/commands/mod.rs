//! The subcommands.

mod configure;
pub mod daemon;
pub mod doctor;
pub mod exporter;
mod signals;
mod stdout;
pub mod top;

/// Threads that encode and decode for the servers, which answer others meanwhile.
const ENCODERS: usize = 2;
