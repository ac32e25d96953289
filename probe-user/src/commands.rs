//! The subcommands.

pub mod daemon;
pub mod exporter;
mod signals;
