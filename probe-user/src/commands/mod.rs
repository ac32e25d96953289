//! The subcommands.

mod configure;
pub mod daemon;
pub mod doctor;
pub mod exporter;
mod signals;
mod stdout;
pub mod top;
