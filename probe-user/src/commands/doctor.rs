//! `edgeprobe doctor`.

use std::process::ExitCode;

use anyhow::Context;

use super::stdout::print;
use crate::cli::DoctorArgs;
use crate::doctor::examine::examine;
use crate::doctor::facts::Facts;
use crate::doctor::report;
use crate::table::Style;

/// Prints the verdict; fails only where something required is missing.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let verdict = examine(&Facts::gather(), &args.interface);
    let text = if args.json {
        let mut text = serde_json::to_string_pretty(&verdict).context("cannot write JSON")?;
        text.push('\n');
        text
    } else {
        report::text(&verdict, Style::of_stdout())
    };
    print(&text)?;
    Ok(if verdict.usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
