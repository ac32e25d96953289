//! `cargo xtask build`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{cmd, setup, workspace::Workspace};

/// Sets up, builds the binary `edgeprobe` and says where it is.
pub fn edgeprobe(workspace: &Workspace, release: bool) -> Result<PathBuf> {
    executable(workspace, "probe-user", "edgeprobe", release)
}

/// Sets up, builds the binary `name` of `package` and says where it is.
pub fn executable(
    workspace: &Workspace,
    package: &str,
    name: &str,
    release: bool,
) -> Result<PathBuf> {
    setup::ensure(workspace)?;
    let mut command = workspace.cargo();
    command
        .args(["build", "--locked", "--package", package, "--bin", name])
        .arg("--message-format=json-render-diagnostics")
        .args(release.then_some("--release"));
    cmd::piped(&format!("building {name}"), &mut command)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .with_context(|| format!("cargo built no executable {name}"))
}
