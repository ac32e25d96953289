//! What the dependencies may be.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use super::Checks;
use crate::{cmd, workspace::Workspace};

const CARGO_DENY: &str = "0.20.2";

/// Licences, bans and sources come from the lock file and the downloaded
/// crates; advisories need a database that may be out of reach.
pub fn check(workspace: &Workspace, checks: &mut Checks) {
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
