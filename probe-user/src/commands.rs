//! The subcommands.

pub mod exporter;
mod signals;
