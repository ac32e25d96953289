//! `cargo xtask test vm`: the kernel tests on kernels of other Debian releases.
//!
//! Each kernel boots in QEMU with an initramfs that holds the test programs
//! and the few tools that they call, runs them and powers off. What it printed
//! to its serial line is the result.

mod image;
mod kernels;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{build, cmd, packages, tally::Tally, workspace::Workspace};
use kernels::{KERNELS, Kernel};

/// What this needs beside the tools of the tests themselves.
const PACKAGES: &[&str] = &[
    "binutils",
    "busybox-static",
    "cpio",
    "debian-archive-keyring",
    "kmod",
    "qemu-system-x86",
    "xz-utils",
];

/// What the guest prints when all tests have ended.
const DONE: &str = "EDGEPROBE-GUEST-DONE";
/// What it prints before each test program.
const BEGIN: &str = "EDGEPROBE-GUEST-BEGIN ";
/// What it prints before something that the image promises and that failed.
const BROKEN: &str = "EDGEPROBE-GUEST-BROKEN ";

/// The test programs that tell whether an object loads and counts rightly. The
/// others ask for the same of every kernel, and emulated processors are slow.
const COUNTING: &[&str] = &[
    "causes",
    "closes",
    "drops",
    "full",
    "handshake",
    "many",
    "owner",
    "queues",
    "rtt",
    "segments",
    "servers",
    "truth",
    "turns",
    "xdp",
];

/// Those that a run of all tests has in the guests.
const BRIEF: &[&str] = &["closes", "truth"];

/// What these go without, as [`LEFT_OUT`]: it takes two minutes, and the other ways
/// to end have resets of both directions too.
const BRIEF_LEFT_OUT: &[(&str, &str)] = &[("closes", "each_way_to_end")];

/// Tests that no guest runs, by program and beginning of their name: what they
/// start is not in the image. What they ask for does not depend on the kernel,
/// unlike TLS.
const LEFT_OUT: &[(&str, &str)] = &[
    ("servers", "bird::"),
    ("servers", "haproxy::"),
    ("servers", "postgres::"),
];

/// Which kernels, and how.
#[derive(Args, Debug, Default)]
pub struct Options {
    /// The few test programs that a run of all tests has
    #[arg(long, conflicts_with = "every")]
    brief: bool,
    /// Every test program, not only those that count
    #[arg(long)]
    every: bool,
    /// Processors of a guest; the emulator may let it down with more than one
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// Only this one, such as 6.12; may be given more than once
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// For libtest, such as a part of a test's name
    #[arg(last = true)]
    args: Vec<String>,
}

impl Options {
    /// Tests that are left out of a program.
    fn left_out(&self, program: &str) -> impl Iterator<Item = &'static str> {
        let brief = if self.brief { BRIEF_LEFT_OUT } else { &[] };
        (LEFT_OUT.iter().chain(brief))
            .filter(move |(of, _)| *of == program)
            .map(|(_, tests)| *tests)
    }

    /// As a run of all tests has it.
    pub fn brief() -> Self {
        Self {
            brief: true,
            cpus: 1,
            ..Self::default()
        }
    }
}

/// Boots each kernel and runs the tests in it.
pub fn run(workspace: &Workspace, options: &Options) -> Result<Tally> {
    for name in &options.kernels {
        if !KERNELS.iter().any(|kernel| kernel.version == name) {
            let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.version).collect();
            bail!(
                "there is no kernel {name} to test on, only {}",
                known.join(", ")
            );
        }
    }
    if !cfg!(target_arch = "x86_64") {
        return Ok(skipped(
            KERNELS.len(),
            "the guests are x86-64, this machine is not",
        ));
    }
    let logs = workspace.tools().join("log");
    packages::ensure("the kernel tests", packages::KERNEL_TESTS, &logs)?;
    packages::ensure("the virtual machines", PACKAGES, &logs)?;
    let mut programs = programs(workspace)?;
    if !options.every {
        let wanted = if options.brief { BRIEF } else { COUNTING };
        programs
            .tests
            .retain(|path| wanted.contains(&image::plain_name(path).as_str()));
    }
    let folder = workspace.target.join("vm");

    let mut tally = Tally::default();
    let mut kernels = Vec::new();
    for kernel in KERNELS {
        if !options.kernels.is_empty() && !options.kernels.iter().any(|one| one == kernel.version) {
            continue;
        }
        if let (true, Some(why)) = (options.kernels.is_empty(), kernel.left_out) {
            tally += skipped(1, &format!("kernel {}: {why}", kernel.version));
            continue;
        }
        match kernel.unpacked(&folder) {
            Ok(unpacked) => kernels.push((kernel, unpacked)),
            Err(error) => tally += skipped(1, &format!("kernel {}: {error:#}", kernel.version)),
        }
    }
    // A filter leaves out more than this, and whoever gave it knows.
    for (program, tests) in LEFT_OUT.iter().filter(|_| options.args.is_empty()) {
        if programs.has(program) {
            let why = format!("{program}: {tests}: its server is not in the guests");
            tally += skipped(kernels.len(), &why);
        }
    }
    // A guest keeps little more than one processor busy.
    let results = thread::scope(|scope| {
        let guests: Vec<_> = kernels
            .iter()
            .map(|(kernel, unpacked)| {
                let (folder, programs) = (&folder, &programs);
                scope.spawn(move || test_on(kernel, unpacked, folder, programs, options))
            })
            .collect();
        guests
            .into_iter()
            .map(|guest| guest.join().unwrap_or_else(|_| bail!("its thread ended")))
            .collect::<Vec<_>>()
    });
    for ((kernel, _), result) in kernels.iter().zip(results) {
        tally += result.unwrap_or_else(|error| {
            cmd::say(&format!("error: kernel {}: {error:#}", kernel.version));
            Tally {
                failed: 1,
                ..Tally::default()
            }
        });
    }
    Ok(tally)
}

fn skipped(count: usize, reason: &str) -> Tally {
    cmd::say(&format!("SKIPPED: {reason}"));
    Tally {
        skipped: count as u64,
        ..Tally::default()
    }
}

/// `edgeprobe` and the test programs.
struct Programs {
    edgeprobe: PathBuf,
    tests: Vec<PathBuf>,
}

impl Programs {
    /// Names of the test programs.
    fn names(&self) -> Vec<String> {
        self.tests
            .iter()
            .map(|path| image::plain_name(path))
            .collect()
    }

    fn has(&self, program: &str) -> bool {
        self.names().iter().any(|name| name == program)
    }
}

fn programs(workspace: &Workspace) -> Result<Programs> {
    let edgeprobe = build::edgeprobe(workspace, false)?;
    let mut command = workspace.cargo();
    command
        .args(["test", "--locked", "--package", "probe-tests", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    cmd::say("building the test programs");
    let output = command
        .output()
        .with_context(|| format!("`{}` cannot be run", cmd::line(&command)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", cmd::line(&command), output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut tests: Vec<PathBuf> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect();
    if tests.is_empty() {
        bail!("cargo built no test program");
    }
    tests.sort();
    Ok(Programs { edgeprobe, tests })
}

fn test_on(
    kernel: &Kernel,
    unpacked: &Path,
    folder: &Path,
    programs: &Programs,
    options: &Options,
) -> Result<Tally> {
    let place = folder.join(kernel.version);
    let (vmlinuz, release) = kernels::image_of(unpacked)?;
    let name = format!("kernel {release}");
    cmd::say(&format!("{name}: making its initramfs"));
    let initramfs = image::make(&place, unpacked, &release, programs, options)?;
    let log = place.join("console.log");
    let started = Instant::now();
    boot(
        &name,
        &vmlinuz,
        &initramfs,
        &log,
        kernel.patience,
        options.cpus,
    )?;
    let console = fs::read(&log).with_context(|| format!("{} cannot be read", log.display()))?;
    let console = String::from_utf8_lossy(&console).replace('\r', "");
    let tally = judge(&name, &console, programs.tests.len());
    for line in console.lines() {
        let of_interest = line.starts_with("test ")
            || line.starts_with("SKIPPED:")
            || line.contains("panicked at")
            || line.starts_with("! ");
        if of_interest {
            println!("{}: {line}", kernel.version);
        }
    }
    cmd::say(&format!(
        "{name}: {tally}, {:.0} s; all it said is in {}",
        started.elapsed().as_secs_f64(),
        log.display()
    ));
    Ok(tally)
}

/// Counts what a guest printed; what did not end counts as failed.
fn judge(name: &str, console: &str, programs: usize) -> Tally {
    let mut tally = Tally::default();
    for (_, what) in console.lines().filter_map(|line| line.split_once(BROKEN)) {
        cmd::say(&format!("error: {name}: {what}"));
        tally.failed += 1;
    }
    let mut begun = 0;
    for part in console.split(BEGIN).skip(1) {
        begun += 1;
        let program = part.lines().next().unwrap_or_default();
        if part.contains("test result: ") {
            tally += Tally::from_libtest(part);
        } else {
            cmd::say(&format!("error: {name}: {program} did not end"));
            tally.failed += 1;
        }
    }
    if begun < programs || !console.contains(DONE) {
        cmd::say(&format!(
            "error: {name}: only {begun} of {programs} test programs were run"
        ));
        tally.failed += 1;
    }
    tally
}

/// Boots a kernel on `cpus` processors with its console in the file `log` and
/// waits for its end.
fn boot(
    name: &str,
    vmlinuz: &Path,
    initramfs: &Path,
    log: &Path,
    patience: Duration,
    cpus: u32,
) -> Result<()> {
    let console = File::create(log).with_context(|| format!("{} cannot be made", log.display()))?;
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg", "-cpu", "max", "-m", "3G"])
        .args(["-smp", &cpus.to_string()])
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 panic=-1 quiet loglevel=4"])
        .stdin(Stdio::null())
        .stdout(console.try_clone().context("a log file cannot be shared")?)
        .stderr(console);
    cmd::say(&format!("{name}: booting"));
    let started = Instant::now();
    let mut guest = command
        .spawn()
        .with_context(|| format!("`{}` cannot be run", cmd::line(&command)))?;
    let mut next = Duration::from_secs(30);
    loop {
        if guest
            .try_wait()
            .context("QEMU cannot be waited for")?
            .is_some()
        {
            return Ok(());
        }
        if started.elapsed() > patience {
            guest.kill().context("QEMU cannot be ended")?;
            guest.wait().context("QEMU cannot be waited for")?;
            cmd::say(&format!(
                "error: {name}: ended after {} s",
                patience.as_secs()
            ));
            return Ok(());
        }
        if started.elapsed() > next {
            cmd::say(&format!("{name}: {} s so far", next.as_secs()));
            next += Duration::from_secs(30);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_did_not_end_has_failed() {
        let console = format!(
            "boot\n{BEGIN}a\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 m\n{BEGIN}b\npanic\n"
        );
        let tally = judge("k", &console, 2);
        assert_eq!((tally.passed, tally.failed, tally.skipped), (2, 2, 1));
        let whole =
            format!("{BEGIN}a\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 m\n{DONE}\n");
        assert_eq!(judge("k", &whole, 1).failed, 0);
        assert_eq!(judge("k", &whole, 2).failed, 1);
        let broken = format!("{BROKEN}insmod x failed\n{whole}");
        assert_eq!(judge("k", &broken, 1).failed, 1);
    }
}
