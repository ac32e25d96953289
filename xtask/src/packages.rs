//! Debian packages: which are missing, and installing those.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::cmd;

/// What the real-kernel tests call: namespaces, packet filter, capture,
/// counters, a Prometheus that scrapes and checks, and something to load.
pub const KERNEL_TESTS: &[&str] = &[
    "bpftool",
    "ethtool",
    "iproute2",
    "iptables",
    "iputils-ping",
    "nftables",
    "nginx-light",
    "procps",
    "prometheus",
    "tshark",
    "wrk",
];

/// Installs those of `packages` that are missing; needs root only for that.
/// `why` says in the message what they are for, `logs` is a folder.
pub fn ensure<S: AsRef<str>>(why: &str, packages: &[S], logs: &Path) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !cmd::on_path("apt-get") {
        bail!("{why} needs {names}: there is no apt-get here, install them by hand");
    }
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!(
            "{why} needs packages that only root can install: run `sudo apt-get install {names}`"
        );
    }
    let step = format!("installing for {why}: {names}");
    let log = logs.join("apt-install.log");
    // Without fresh lists the first try fails at once or finds old versions gone.
    if simulate(&missing) && cmd::logged(&step, &mut install(&missing), &log).is_ok() {
        return Ok(());
    }
    let mut update = apt();
    update.arg("update");
    cmd::logged(
        "updating the package lists",
        &mut update,
        &logs.join("apt-update.log"),
    )?;
    cmd::logged(&step, &mut install(&missing), &log)
}

/// Those of `packages` that dpkg does not call installed.
fn missing<S: AsRef<str>>(packages: &[S]) -> Vec<&str> {
    let known = Command::new("dpkg-query")
        .args(["--show", "--showformat=${binary:Package} ${Status}\n"])
        .args(packages.iter().map(AsRef::as_ref))
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let installed: Vec<&str> = known
        .lines()
        .filter_map(|line| line.strip_suffix(" install ok installed"))
        .map(|name| name.split(':').next().unwrap_or(name))
        .collect();
    packages
        .iter()
        .map(AsRef::as_ref)
        .filter(|name| !installed.contains(name))
        .collect()
}

/// Whether the lists that are here know all of `packages`.
fn simulate(packages: &[&str]) -> bool {
    let mut command = install(packages);
    command.arg("--simulate");
    cmd::output(&mut command).is_ok()
}

fn install(packages: &[&str]) -> Command {
    let mut command = apt();
    command
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages);
    command
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["--option", "DPkg::Lock::Timeout=120"]);
    command
}
