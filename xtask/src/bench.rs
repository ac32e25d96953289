//! `cargo xtask bench`: what edgeprobe costs.

mod arena;
mod daemon;
mod figures;
pub mod guests;
mod host;

use anyhow::Result;
use clap::Args;

use crate::{tally::Tally, workspace::Workspace};

/// What to measure, and how long.
#[derive(Args, Debug)]
pub struct Options {
    /// Rounds of the load: each has one turn without programs, one with empty
    /// ones, and one with edgeprobe
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Seconds of load in each turn
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[command(flatten)]
    guests: guests::InstructionOptions,
}

/// Measures, and prints one table, or one for each guest. What is checked counts.
pub fn run(workspace: &Workspace, options: &Options) -> Result<Tally> {
    if options.guests.guests {
        return guests::run(workspace, &options.guests);
    }
    host::run(workspace, options)?;
    Ok(Tally::default())
}
