//! `cargo xtask test vm`.

use anyhow::{Result, bail};
use clap::Args;

use crate::{tally::Tally, workspace::Workspace};

/// Which kernels, and how.
#[derive(Args, Debug, Default)]
pub struct Options {}

/// Boots each kernel and runs the tests in it.
pub fn run(_workspace: &Workspace, _options: &Options) -> Result<Tally> {
    bail!("the tests in virtual machines are not there yet")
}
