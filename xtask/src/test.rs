//! `cargo xtask test`.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, ExitCode, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

use crate::{bench, build, cmd, packages, setup, tally::Tally, vm, workspace::Workspace};

/// One kind of tests.
#[derive(Debug, Subcommand)]
pub enum Suite {
    /// What needs no kernel and no privilege
    Unit,
    /// On this kernel, in network namespaces of their own; needs root
    Kernel {
        /// For libtest, such as a part of a test's name
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// On other kernels, in virtual machines
    Vm(vm::Options),
    /// What is run for closing notes and not for each change: ten minutes of churn,
    /// six of abuse of the servers, then on each other kernel every test that counts;
    /// some 30 minutes, needs root
    Long,
}

/// What libtest is given for tests that take long: those that are left out
/// otherwise, but for the process of [`actor`], which other tests start.
///
/// [`actor`]: ../../tests/src/actor.rs
const LONG: [&str; 3] = ["--ignored", "--skip", "actor"];

/// Runs one suite, or all; ends with one line that sums the tests.
pub fn run(workspace: &Workspace, suite: Option<Suite>) -> Result<ExitCode> {
    const GUESTS: &str = "tests in virtual machines";
    let tally = match suite {
        None => {
            let mut tally = counted("unit tests", unit(workspace));
            tally += counted("kernel tests", kernel(workspace, &[]));
            tally += counted(GUESTS, guests(workspace, &vm::Options::brief()));
            tally
        }
        Some(Suite::Unit) => counted("unit tests", unit(workspace)),
        Some(Suite::Kernel { args }) => {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            counted("kernel tests", kernel(workspace, &args))
        }
        Some(Suite::Vm(options)) => counted(GUESTS, guests(workspace, &options)),
        Some(Suite::Long) => {
            let mut tally = counted("long kernel tests", kernel(workspace, &LONG));
            tally += counted(GUESTS, guests(workspace, &vm::Options::counting()));
            tally
        }
    };
    println!("{tally}");
    Ok(tally.exit_code())
}

/// What cannot be run counts as failed: other suites are still worth their results.
fn counted(name: &str, result: Result<Tally>) -> Tally {
    result.unwrap_or_else(|error| {
        cmd::say(&format!("error: {name}: {error:#}"));
        Tally::FAILURE
    })
}

/// The tests on other kernels and, unless a filter picks some of them, the
/// instructions of a connection there, in guests that run at the same time.
fn guests(workspace: &Workspace, options: &vm::Options) -> Result<Tally> {
    let guests = vm::prepare(workspace, &options.kernels)?;
    let programs = vm::programs(workspace, options)?;
    let measured: Vec<&vm::Guest> = guests
        .ready
        .iter()
        .filter(|_| options.args.is_empty())
        .filter(|guest| !options.brief || bench::guests::CHECKED.contains(&guest.version()))
        .collect();
    let (mut tally, instructions) = thread::scope(|scope| {
        let instructions =
            scope.spawn(|| bench::guests::check(workspace, &measured, &programs.edgeprobe));
        let tests = vm::run(&guests, &programs, options);
        let instructions = instructions.join();
        (
            tests,
            instructions.unwrap_or_else(|_| bail!("its thread ended")),
        )
    });
    tally += counted("instructions in the guests", instructions);
    Ok(tally)
}

/// Installs what a suite calls. Each test says itself what it lacks, and is skipped.
fn prepare(workspace: &Workspace, suite: &str, packages: &[&str]) -> Result<()> {
    match packages::ensure(suite, packages, &workspace.logs()) {
        Err(error) if !cmd::is_ci() => {
            cmd::say(&format!("{error:#}; going on without"));
            Ok(())
        }
        result => result,
    }
}

fn unit(workspace: &Workspace) -> Result<Tally> {
    setup::ensure(workspace)?;
    prepare(workspace, "the unit tests", packages::UNIT_TESTS)?;
    let mut command = workspace.cargo();
    command
        .args(["test", "--locked", "--workspace", "--no-fail-fast"])
        .args(["--exclude", "probe-ebpf", "--exclude", "probe-tests"])
        .args(["--", "--show-output"]);
    libtest("unit tests", &mut command)
}

fn kernel(workspace: &Workspace, args: &[&str]) -> Result<Tally> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("no /proc")?;
    if !mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some("/"))
    {
        bail!(
            "`/` is no mount point, as in a plain chroot, so `ip netns` cannot work: \
             `mount --bind` the root on itself before going in"
        );
    }
    prepare(workspace, "the kernel tests", packages::KERNEL_TESTS)?;
    let binary = build::edgeprobe(workspace, false)?;
    let mut command = workspace.cargo();
    command
        .env("EDGEPROBE_BIN", binary)
        .args(["test", "--locked", "--package", "probe-tests"])
        // One at a time: they share the machine's counters and its two ends.
        .args(["--no-fail-fast", "--", "--test-threads=1", "--show-output"])
        .args(args);
    libtest("kernel tests", &mut command)
}

/// Runs `cargo test` with its output on the terminal, and counts.
fn libtest(name: &str, command: &mut Command) -> Result<Tally> {
    cmd::say(name);
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{}` cannot be run", cmd::line(command)))?;
    let stdout = child
        .stdout
        .take()
        .context("a test program has no output")?;
    let mut output = String::new();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("the output of the tests cannot be read")?;
        let line = String::from_utf8_lossy(&line);
        writeln!(std::io::stdout(), "{line}").context("stdout cannot be written")?;
        output.push_str(&line);
        output.push('\n');
    }
    let status = child.wait().context("the tests cannot be waited for")?;
    let mut tally = Tally::from_libtest(&output);
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test program died.
        tally.failed = 1;
    }
    cmd::say(&format!(
        "{name}: {tally}, {:.1} s",
        started.elapsed().as_secs_f64()
    ));
    Ok(tally)
}
