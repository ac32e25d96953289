//! `cargo xtask lint`.

use std::{
    env,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{
    cmd,
    ebpf::{self, Toolchain},
    setup,
    tally::Tally,
    workspace::Workspace,
};

const CARGO_DENY: &str = "0.20.2";

/// Runs every check, and ends with one line that sums them.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let toolchain = setup::ensure(workspace)?;
    let mut checks = Checks(Tally::default());

    let mut fmt = workspace.cargo();
    fmt.args(["fmt", "--all", "--check"]);
    checks.record("format", cmd::shown("format", &mut fmt));

    let mut clippy = workspace.cargo();
    clippy
        .args([
            "clippy",
            "--locked",
            "--workspace",
            "--exclude",
            "probe-ebpf",
        ])
        .args(["--all-targets", "--", "--deny", "warnings"]);
    let name = "clippy of the user-space side";
    checks.record(name, cmd::shown(name, &mut clippy));

    kernel_side(workspace, &toolchain, &mut checks);
    dependencies(workspace, &mut checks);

    println!("{}", checks.0);
    Ok(checks.0.exit_code())
}

fn kernel_side(workspace: &Workspace, toolchain: &Toolchain, checks: &mut Checks) {
    let name = "clippy of the kernel side";
    let Some(program) = &toolchain.cargo_clippy else {
        checks.skip(
            name,
            &format!(
                "{} has no clippy: run `rustup component add clippy --toolchain nightly` \
                 and remove {}",
                toolchain.origin,
                workspace.target.join(ebpf::CHOICE).display()
            ),
        );
        return;
    };
    let mut clippy = toolchain.command(
        program,
        "clippy",
        &workspace.root,
        &workspace.target.join(ebpf::BUILT),
        env::consts::ARCH,
    );
    clippy.args(["--", "--deny", "warnings"]);
    checks.record(name, cmd::shown(name, &mut clippy));
}

/// Licences, bans and sources come from the lock file and the downloaded
/// crates; advisories need a database that may be out of reach.
fn dependencies(workspace: &Workspace, checks: &mut Checks) {
    let name = "licences, bans and sources";
    let deny = match install_cargo_deny(workspace) {
        Ok(deny) => deny,
        Err(error) if cmd::is_ci() => return checks.record(name, Err(error)),
        Err(error) => {
            return checks.skip(
                "licences, bans, sources and advisories",
                &format!("{error:#}"),
            );
        }
    };
    // Called by its path, so that no other version is taken.
    let cargo_deny = |words: &[&str]| {
        let mut command = Command::new(&deny);
        command
            .current_dir(&workspace.root)
            .env("GIT_TERMINAL_PROMPT", "0")
            .args(words);
        command
    };
    let mut check = cargo_deny(&["--locked", "check", "licenses", "bans", "sources"]);
    checks.record(name, cmd::shown(name, &mut check));

    let name = "advisories";
    let log = workspace.logs().join("advisories");
    let fetched = cmd::logged(
        "fetching the advisory database",
        &mut cargo_deny(&["fetch", "db"]),
        &log,
    );
    if fetched.is_err() {
        checks.skip(name, "the advisory database could not be fetched");
        return;
    }
    let mut check = cargo_deny(&["--locked", "check", "--disable-fetch", "advisories"]);
    checks.record(name, cmd::shown(name, &mut check));
}

fn install_cargo_deny(workspace: &Workspace) -> Result<PathBuf> {
    let deny = workspace.tools().join("bin/cargo-deny");
    let installed = cmd::output(Command::new(&deny).arg("--version"));
    if installed.is_ok_and(|version| version.trim().ends_with(CARGO_DENY)) {
        return Ok(deny);
    }
    let step = format!("building cargo-deny {CARGO_DENY}");
    workspace.install_tool("cargo-deny", CARGO_DENY, &step, |command| {
        // Such a build takes half as long and still checks in seconds.
        command.arg("--debug").env("CARGO_PROFILE_DEV_DEBUG", "0");
    })
}

/// The checks so far. Each one says at once how it ended.
struct Checks(Tally);

impl Checks {
    fn record(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.0.passed += 1,
            Err(error) => {
                cmd::say(&format!("FAILED: {name}: {error:#}"));
                self.0.failed += 1;
            }
        }
    }

    fn skip(&mut self, name: &str, why: &str) {
        println!("SKIPPED: {name}: {why}");
        self.0.skipped += 1;
    }
}
