//! `cargo xtask lint`.

mod dependencies;
mod layers;
mod lengths;
mod source;
mod structure;

use std::{env, process::ExitCode};

use anyhow::Result;

use crate::{
    cmd, docs,
    ebpf::{self, Toolchain},
    setup,
    tally::Tally,
    workspace::Workspace,
};

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
    checks.record("structure", structure::check(workspace));
    checks.record("generated documents", docs::check(workspace));
    dependencies::check(workspace, &mut checks);

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
