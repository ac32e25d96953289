//! `cargo xtask`: set-up, build, run, test, lint and benchmark of edgeprobe.

mod bench;
mod build;
mod cmd;
mod docs;
mod ebpf;
mod lint;
mod packages;
mod picture;
mod run;
mod setup;
mod tally;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use bench::guests::inside;
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
    #[command(flatten)]
    InWorkspace(WorkspaceTask),
    /// What `bench --guests` runs in a guest
    #[command(hide = true, name = inside::SUBCOMMAND)]
    MeasureInside(inside::Options),
}

#[derive(Debug, Subcommand)]
enum WorkspaceTask {
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
    /// Check format, lints, structure, generated documents, licences and dependencies
    Lint,
    /// Write the documents that are generated from the code
    Docs,
    /// Measure what edgeprobe costs
    Bench(bench::Options),
    /// Draw docs/top.svg from the screen of a real run
    Picture,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::InWorkspace(task) => run(task),
        Task::MeasureInside(options) => inside::run(&options).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        cmd::say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

fn run(task: WorkspaceTask) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match task {
        WorkspaceTask::Setup => {
            let toolchain = setup::ensure(&workspace)?;
            println!("{}", setup::describe(&toolchain));
        }
        WorkspaceTask::Build { release } => {
            println!("{}", build::edgeprobe(&workspace, release)?.display());
        }
        WorkspaceTask::Run(options) => return run::run(&workspace, &options),
        WorkspaceTask::Test { suite } => return test::run(&workspace, suite),
        WorkspaceTask::Docs => docs::write(&workspace)?,
        WorkspaceTask::Lint => return lint::run(&workspace),
        WorkspaceTask::Bench(options) => {
            return Ok(bench::run(&workspace, &options)?.exit_code());
        }
        WorkspaceTask::Picture => picture::run(&workspace)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_has_no_contradiction() {
        Cli::command().debug_assert();
    }
}
