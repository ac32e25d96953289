//! Where things are, and the cargo that the user called.

use std::{
    env, fs,
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

    /// Where the output of long steps is kept.
    pub fn logs(&self) -> PathBuf {
        self.tools().join("log")
    }

    /// Builds a program of crates.io into the tools' folder with the options
    /// that `configure` adds, unless it is there.
    pub fn install_tool(
        &self,
        name: &str,
        version: &str,
        step: &str,
        configure: impl FnOnce(&mut Command),
    ) -> Result<PathBuf> {
        // A folder that stays after an interruption, so that the next try goes
        // on from there; not the workspace's own, whose lock may be held.
        let build = self.tools().join("build").join(name);
        let mut command = self.cargo();
        command
            .args(["install", name, "--version", version, "--locked", "--root"])
            .arg(self.tools())
            .arg("--target-dir")
            .arg(&build);
        configure(&mut command);
        cmd::logged(step, &mut command, &self.logs().join(name))?;
        // It can be a gigabyte, and was only of use for this.
        if build.is_dir() {
            fs::remove_dir_all(&build)
                .with_context(|| format!("{} cannot be removed", build.display()))?;
        }
        Ok(self.tools().join("bin").join(name))
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
