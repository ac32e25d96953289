//! `cargo xtask test vm`: the kernel tests on the kernels of other Debian releases.

use std::{
    path::PathBuf,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{
    Guest, Guests,
    image::{self, BROKEN, Contents, DONE},
    machine::{Clock, Machine},
    skipped,
};
use crate::{build, cmd, packages, tally::Tally, workspace::Workspace};

/// What the guest prints before each test program.
const BEGIN: &str = "EDGEPROBE-GUEST-BEGIN ";

/// Programs that the tests call.
const TOOLS: &[&str] = &[
    "bpftool", "ip", "nft", "nginx", "openssl", "setpriv", "ss", "tc", "wrk",
];

/// Files that these read. `openssl req` does not work without its own.
const FILES: &[&str] = &["/usr/lib/ssl/openssl.cnf"];

/// Modules that the tests need, where they are not built in.
const MODULES: &[&str] = &[
    "8021q",
    "af_packet",
    "dummy",
    "nf_tables",
    "nft_numgen",
    "sch_netem",
    "tcp_diag",
    "tun",
    "veth",
];

/// How long all tests may take on one kernel.
const PATIENCE: Duration = Duration::from_secs(3000);

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
    pub brief: bool,
    /// Every test program, not only those that count
    #[arg(long)]
    every: bool,
    /// Processors of a guest; the emulator may let it down with more than one
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// Only this one, such as 6.12; may be given more than once
    #[arg(long = "kernel", value_name = "VERSION")]
    pub kernels: Vec<String>,
    /// For libtest, such as a part of a test's name
    #[arg(last = true)]
    pub args: Vec<String>,
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
pub fn run(guests: &Guests, programs: &Programs, options: &Options) -> Tally {
    let mut tally = guests.missing;
    // A filter leaves out more than this, and whoever gave it knows.
    for (program, tests) in LEFT_OUT.iter().filter(|_| options.args.is_empty()) {
        if programs.names().iter().any(|name| name == program) {
            let why = format!("{program}: {tests}: its server is not in the guests");
            tally += skipped(guests.ready.len(), &why);
        }
    }
    // A guest keeps little more than one processor busy.
    let results = thread::scope(|scope| {
        let threads: Vec<_> = guests
            .ready
            .iter()
            .map(|guest| scope.spawn(move || test_on(guest, programs, options)))
            .collect();
        threads
            .into_iter()
            .map(|guest| guest.join().unwrap_or_else(|_| bail!("its thread ended")))
            .collect::<Vec<_>>()
    });
    for (guest, result) in guests.ready.iter().zip(results) {
        tally += result.unwrap_or_else(|error| {
            cmd::say(&format!("error: {}: {error:#}", guest.name()));
            Tally {
                failed: 1,
                ..Tally::default()
            }
        });
    }
    tally
}

/// `edgeprobe` and the test programs.
pub struct Programs {
    /// The binary without optimisation.
    pub edgeprobe: PathBuf,
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
}

/// Builds them, and keeps the test programs that the options ask for.
pub fn programs(workspace: &Workspace, options: &Options) -> Result<Programs> {
    packages::ensure(
        "the kernel tests",
        packages::KERNEL_TESTS,
        &workspace.logs(),
    )?;
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
    let mut programs = Programs { edgeprobe, tests };
    let names = programs.names();
    let listed = COUNTING.iter().chain(BRIEF);
    let left_out = LEFT_OUT.iter().chain(BRIEF_LEFT_OUT);
    // A test that was renamed would silently not be run.
    for name in listed.chain(left_out.map(|(program, _)| program)) {
        if !names.iter().any(|built| built == name) {
            bail!("xtask/src/vm/suites.rs lists the test program {name}, which is not built");
        }
    }
    if !options.every {
        let wanted = if options.brief { BRIEF } else { COUNTING };
        let is_wanted = |path: &PathBuf| wanted.contains(&image::plain_name(path).as_str());
        programs.tests.retain(is_wanted);
    }
    Ok(programs)
}

fn test_on(guest: &Guest, programs: &Programs, options: &Options) -> Result<Tally> {
    let name = guest.name();
    cmd::say(&format!("{name}: making its initramfs"));
    let tests = programs.tests.iter();
    let tests = tests.map(|path| (path.clone(), format!("tests/{}", image::plain_name(path))));
    let edgeprobe = (programs.edgeprobe.clone(), "bin/edgeprobe".to_owned());
    // A test for which something is missing fails, unless the image was never
    // meant to have it.
    let is_complete = (!options.every).to_string();
    let contents = Contents {
        tools: TOOLS,
        files: FILES,
        modules: MODULES,
        programs: tests.chain([edgeprobe]).collect(),
        task: include_str!("suites.sh")
            .replace("@RUNS@", &runs(programs, options))
            .replace("@COMPLETE@", &is_complete)
            .replace("@BEGIN@", BEGIN),
    };
    let initramfs = image::make(guest, &guest.folder, &contents)?;
    let log = guest.folder.join("console.log");
    let started = Instant::now();
    let machine = Machine {
        cpus: options.cpus,
        clock: Clock::Host,
        patience: PATIENCE,
    };
    let console = machine.boot(guest, &initramfs, &log)?;
    let tally = judge(&name, &console, programs.tests.len());
    for line in console.lines() {
        let of_interest = line.starts_with("test ")
            || line.starts_with("SKIPPED:")
            || line.contains("panicked at")
            || line.starts_with("! ");
        if of_interest {
            println!("{}: {line}", guest.version());
        }
    }
    cmd::say(&format!(
        "{name}: {tally}, {:.0} s; all it said is in {}",
        started.elapsed().as_secs_f64(),
        log.display()
    ));
    Ok(tally)
}

/// Lines of the guest's init, one for each test program.
fn runs(programs: &Programs, options: &Options) -> String {
    let run = |name: String| {
        let left_out = options.left_out(&name);
        let skips = left_out.flat_map(|tests| ["--skip".to_owned(), quoted(tests)]);
        let words = ["run".to_owned(), name.clone()].into_iter().chain(skips);
        let words = words.chain(options.args.iter().map(|arg| quoted(arg)));
        words.collect::<Vec<_>>().join(" ")
    };
    let lines: Vec<_> = programs.names().into_iter().map(run).collect();
    lines.join("\n")
}

fn quoted(arg: &str) -> String {
    format!("'{}'", arg.replace('\'', "'\\''"))
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
