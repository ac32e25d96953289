//! `cargo xtask bench`.

use anyhow::{Result, bail};
use clap::Args;

use crate::workspace::Workspace;

/// What to measure, and how long.
#[derive(Args, Debug, Default)]
pub struct Options {}

/// Measures, and prints one table.
pub fn run(_workspace: &Workspace, _options: &Options) -> Result<()> {
    bail!("the benchmark is not there yet")
}
