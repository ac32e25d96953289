//! The `edgeprobe` command.

use std::process::ExitCode;

use clap::Parser;
use probe_user::cli::{Cli, Command};
use probe_user::collector::Collector;
use probe_user::commands;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Daemon(args) => commands::daemon::run(&args, Collector::start),
        Command::Exporter(args) => commands::exporter::run(&args),
        Command::Top(args) => commands::top::run(&args, Collector::start),
        Command::Doctor(args) => commands::doctor::run(&args),
    };
    result.unwrap_or_else(|error| {
        // One line, whatever the causes look like.
        let lines = format!("{error:#}");
        let words: Vec<_> = lines.split_whitespace().collect();
        eprintln!("edgeprobe: {}", words.join(" "));
        ExitCode::FAILURE
    })
}
