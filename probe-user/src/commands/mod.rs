//! The subcommands.

pub mod daemon;
pub mod doctor;
pub mod exporter;
mod signals;
pub mod top;
