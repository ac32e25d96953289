//! The `edgeprobe` command.

use std::process::ExitCode;

use clap::Parser;
use probe_user::cli::{Cli, Command};
use probe_user::collector::Collector;
use probe_user::config::ConfigErrors;
use probe_user::{commands, logging};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Daemon(args) => commands::daemon::run(&args, Collector::start),
        Command::Exporter(args) => commands::exporter::run(&args),
        Command::Top(args) => commands::top::run(&args, Collector::start),
        Command::Doctor(args) => commands::doctor::run(&args),
    };
    result.unwrap_or_else(|error| {
        // A line for each error, whatever its causes look like.
        let lines = match error.downcast_ref::<ConfigErrors>() {
            Some(errors) => errors.lines().to_vec(),
            None => vec![format!("{error:#}")],
        };
        for line in lines {
            let words: Vec<_> = line.split_whitespace().collect();
            logging::say(&format!("edgeprobe: {}", words.join(" ")));
        }
        ExitCode::FAILURE
    })
}
