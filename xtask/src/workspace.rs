//! Where things are, and the cargo that the user called.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::cmd;

/// The checkout and its target folder.
pub struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub root: PathBuf,
    /// The target folder, wherever the user's configuration puts it.
    pub target: PathBuf,
}

impl Workspace {
    /// Asks cargo where the workspace and its target folder are.
    pub fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("xtask is not inside a workspace: run it as `cargo xtask`")?
            .to_owned();
        let mut command = cargo_in(&root);
        command.args(["metadata", "--no-deps", "--offline", "--format-version=1"]);
        let metadata: serde_json::Value = serde_json::from_str(&cmd::output(&mut command)?)
            .context("`cargo metadata` did not print JSON")?;
        let target = metadata["target_directory"]
            .as_str()
            .context("`cargo metadata` names no target folder")?
            .into();
        Ok(Self { root, target })
    }

    /// Where the tools that set-up builds are kept.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The user's cargo, to be run in the workspace.
    pub fn cargo(&self) -> Command {
        cargo_in(&self.root)
    }
}

fn cargo_in(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` set these for xtask itself; they would make build scripts run again.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        }) {
            command.env_remove(name);
        }
    }
    command.current_dir(root);
    command
}
