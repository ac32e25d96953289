//! Which test programs run in the guests.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use super::image;
use crate::{build, cmd, packages, workspace::Workspace};

/// The test programs that tell whether an object loads and counts rightly. The
/// others ask for the same of every kernel, and emulated processors are slow.
const COUNTING: &[&str] = &[
    "beginnings",
    "causes",
    "closes",
    "come_and_go",
    "drop_owners",
    "drops",
    "first_byte",
    "full",
    "handshake",
    "hidden",
    "last_drops",
    "loss",
    "many",
    "owner",
    "protocols",
    "queues",
    "rejects",
    "rows",
    "rtt",
    "segments",
    "servers",
    "sums",
    "truth",
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
pub const LEFT_OUT: &[(&str, &str)] = &[
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
    pub every: bool,
    /// Processors of a guest; the emulator may let it down with more than one
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: u32,
    /// Only this one, such as 6.12; may be given more than once
    #[arg(long = "kernel", value_name = "VERSION")]
    pub kernels: Vec<String>,
    /// For libtest, such as a part of a test's name
    #[arg(last = true)]
    pub args: Vec<String>,
}

impl Options {
    /// Tests that are left out of a program.
    pub fn left_out(&self, program: &str) -> impl Iterator<Item = &'static str> {
        let brief = if self.brief { BRIEF_LEFT_OUT } else { &[] };
        (LEFT_OUT.iter().chain(brief))
            .filter(move |(of, _)| *of == program)
            .map(|(_, tests)| *tests)
    }

    /// All tests that count, on each kernel.
    pub fn counting() -> Self {
        Self {
            cpus: 1,
            ..Self::default()
        }
    }

    /// As a run of all tests has it.
    pub fn brief() -> Self {
        Self {
            brief: true,
            ..Self::counting()
        }
    }
}

/// `edgeprobe` and the test programs.
pub struct Programs {
    /// The binary without optimisation.
    pub edgeprobe: PathBuf,
    /// The test programs that were asked for.
    pub tests: Vec<PathBuf>,
}

impl Programs {
    /// Names of the test programs.
    pub fn names(&self) -> Vec<String> {
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
        .arg("--message-format=json-render-diagnostics");
    let messages = cmd::piped("building the test programs", &mut command)?;
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
            bail!("xtask/src/vm/selection.rs lists the test program {name}, which is not built");
        }
    }
    if !options.every {
        let wanted = if options.brief { BRIEF } else { COUNTING };
        let is_wanted = |path: &PathBuf| wanted.contains(&image::plain_name(path).as_str());
        programs.tests.retain(is_wanted);
    }
    Ok(programs)
}
