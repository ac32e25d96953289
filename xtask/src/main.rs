//! `cargo xtask`: set-up, build, run, test, lint and benchmark of edgeprobe.

mod bench;
mod build;
mod cmd;
mod ebpf;
mod lint;
mod packages;
mod run;
mod setup;
mod tally;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Set-up, build, run, test, lint and benchmark of edgeprobe.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find or install the eBPF toolchain, and say which one it is
    Setup,
    /// Build the kernel programs and `edgeprobe`
    Build {
        /// With optimisations
        #[arg(long)]
        release: bool,
    },
    /// Run the daemon, print a first report, go on until SIGINT
    Run(run::Options),
    /// Test: unit tests, tests on this kernel, tests on other kernels in virtual machines
    Test {
        /// Which of them; all where none is named
        #[command(subcommand)]
        suite: Option<test::Suite>,
    },
    /// Check format, lints, licences and dependencies of both sides
    Lint,
    /// Measure what edgeprobe costs
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            cmd::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup => {
            let toolchain = setup::ensure(&workspace)?;
            println!("{}", setup::describe(&toolchain));
        }
        Task::Build { release } => {
            println!("{}", build::edgeprobe(&workspace, release)?.display());
        }
        Task::Run(options) => return run::run(&workspace, &options),
        Task::Test { suite } => return test::run(&workspace, suite),
        Task::Lint => return lint::run(&workspace),
        Task::Bench(options) => bench::run(&workspace, &options)?,
    }
    Ok(ExitCode::SUCCESS)
}
