//! `edgeprobe doctor`.

use std::process::ExitCode;

use anyhow::Context;

use super::stdout::print;
use crate::cli::DoctorArgs;
use crate::doctor::examine::examine;
use crate::doctor::facts::Facts;
use crate::doctor::report;
use crate::doctor::setup::Setup;
use crate::table::Style;

/// Prints the verdict; fails only where something required is missing.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let facts = Facts::gather();
    let mut verdict = examine(&facts, &args.interface);
    let setup = Setup::gather(args.config.as_deref(), args.socket.as_deref());
    verdict.extend(setup.checks(facts.links.as_deref().ok()));
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
