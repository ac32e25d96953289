//! `cargo xtask bench --guests`: instructions that a short connection costs in
//! the kernel programs, on each kernel of the guests.
//!
//! In a guest whose clock counts instructions the kernel's statistics of BPF
//! programs are instructions, the same in every run and on every machine. They
//! show no cache and no lock, but two objects compare exactly. The accepted
//! figures are in a file of the repository, which a check holds a change against.

pub mod inside;
mod record;
mod table;

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{
    build, cmd, packages,
    tally::Tally,
    vm::{
        self, Guest,
        image::{self, Contents},
        machine::{Clock, Machine},
    },
    workspace::Workspace,
};
use inside::Measured;
use record::{Record, Verdict};
use table::Kernel;

/// What the guests' tools are taken from.
const PACKAGES: &[&str] = &["bpftool"];
/// How long one guest may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// The kernels that a run of all tests checks: one that does not preempt programs,
/// and one that does.
pub const CHECKED: [&str; 2] = ["6.12", "7.2"];

/// What to measure in the guests.
#[derive(Args, Debug)]
pub struct InstructionOptions {
    /// Instead, the instructions of a short connection in guests whose clock counts
    /// them: the same in every run
    #[arg(long)]
    pub guests: bool,
    /// Only this kernel, such as 6.12; may be given more than once
    #[arg(long = "kernel", value_name = "VERSION", requires = "guests")]
    kernels: Vec<String>,
    /// Write the figures to xtask/instructions.toml
    #[arg(long, requires = "guests", conflicts_with = "check")]
    update: bool,
    /// Fail where a connection costs over 3 % more than xtask/instructions.toml says
    #[arg(long, requires = "guests")]
    check: bool,
}

/// Measures with the optimised binary, prints a table for each kernel, and checks
/// or keeps the figures. Each kernel that is checked counts as one test.
pub fn run(workspace: &Workspace, options: &InstructionOptions) -> Result<Tally> {
    let guests = vm::prepare(workspace, &options.kernels)?;
    packages::ensure("the guests", PACKAGES, &workspace.logs())?;
    let edgeprobe = build::edgeprobe(workspace, true)?;
    let mut record = Record::read(workspace)?;
    let mut tally = guests.missing;
    for (guest, result) in measure_all(&guests.ready, &edgeprobe) {
        let kernel = match result {
            Ok(kernel) => kernel,
            Err(error) => {
                tally += failed(&format!("{}: {error:#}", guest.name()));
                continue;
            }
        };
        println!("{kernel}");
        if options.update {
            record.insert(guest.version(), kernel);
        } else {
            let verdict = record.compare(guest.version(), &kernel);
            tally += judge(&verdict, options.check);
        }
    }
    if options.update {
        ensure!(
            tally.failed == 0,
            "{} stays as it was, since not each kernel was measured",
            record::PATH
        );
        record.write(workspace)?;
        cmd::say(&format!("wrote {}", record::PATH));
    }
    Ok(tally)
}

/// The check as the tests have it: on `guests`, with the binary that the tests
/// have. Its kernel programs are those of the optimised one.
pub fn check(workspace: &Workspace, guests: &[&Guest], edgeprobe: &Path) -> Result<Tally> {
    let record = Record::read(workspace)?;
    let mut tally = Tally::default();
    for (guest, result) in measure_all(guests.iter().copied(), edgeprobe) {
        tally += match result {
            Ok(kernel) => judge(&record.compare(guest.version(), &kernel), true),
            Err(error) => failed(&format!("{}: {error:#}", guest.name())),
        };
    }
    Ok(tally)
}

fn judge(verdict: &Verdict, counts: bool) -> Tally {
    if verdict.has_failed && counts {
        return failed(&verdict.text);
    }
    cmd::say(&verdict.text);
    Tally {
        passed: u64::from(counts),
        ..Tally::default()
    }
}

fn failed(text: &str) -> Tally {
    cmd::say(&format!("FAILED: {text}"));
    Tally::FAILURE
}

/// Measures in all guests at the same time: their figures do not depend on load.
fn measure_all<'a>(
    guests: impl IntoIterator<Item = &'a Guest>,
    edgeprobe: &Path,
) -> Vec<(&'a Guest, Result<Kernel>)> {
    thread::scope(|scope| {
        let threads: Vec<_> = guests
            .into_iter()
            .map(|guest| (guest, scope.spawn(move || measure(guest, edgeprobe))))
            .collect();
        threads
            .into_iter()
            .map(|(guest, thread)| {
                let result = thread.join();
                let result = result.unwrap_or_else(|_| bail!("its thread ended"));
                (guest, result)
            })
            .collect()
    })
}

fn measure(guest: &Guest, edgeprobe: &Path) -> Result<Kernel> {
    let folder = guest.folder.join("bench");
    let own = std::env::current_exe().context("xtask does not know its own path")?;
    let contents = Contents {
        tools: PACKAGES,
        files: &[],
        modules: &[],
        programs: vec![
            (edgeprobe.to_owned(), "bin/edgeprobe".to_owned()),
            (own, "bin/xtask".to_owned()),
        ],
        task: format!("xtask {} /bin/edgeprobe 2>&1", inside::SUBCOMMAND),
    };
    let initramfs = image::make(guest, &folder, &contents)?;
    let log = folder.join("console.log");
    let machine = Machine {
        cpus: 1,
        clock: Clock::Instructions,
        patience: PATIENCE,
    };
    let console = machine.boot(guest, &initramfs, &log)?;
    let measured = Measured::find(&console)
        .with_context(|| format!("it printed no figures, see {}", log.display()))?;
    Kernel::new(&guest.release, &measured)
}
