//! Debian packages: which are missing, and installing those.

use std::{path::Path, process::Command, sync::Once};

use anyhow::{Result, bail};

use crate::cmd;

/// What the unit tests call: `promtool`.
pub const UNIT_TESTS: &[&str] = &["prometheus"];

/// What the real-kernel tests call: namespaces, packet filter, capture,
/// counters, a Prometheus that scrapes and checks, servers and what loads them
/// (`pgbench` comes with the server).
pub const KERNEL_TESTS: &[&str] = &[
    "bird2",
    "bpftool",
    "ethtool",
    "haproxy",
    "iproute2",
    "iptables",
    "iputils-ping",
    "nftables",
    "nginx-light",
    "openssl",
    "postgresql",
    "procps",
    "prometheus",
    "tshark",
    "wrk",
];

/// Another package manager may be at work.
const LOCK_TIMEOUT: [&str; 2] = ["--option", "DPkg::Lock::Timeout=120"];

/// Runs its arguments while Debian's policy script forbids services to start,
/// unless the machine has such a script of its own: the tests start an nginx
/// themselves, nobody asked for one on port 80. A shell, so that the script is
/// removed even if this program is interrupted.
const WITHOUT_SERVICES: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
"$@"
"#;

/// Installs those of `packages` that are missing; needs root only for that.
/// `why` says in the message what they are for, `logs` is a folder.
pub fn ensure<S: AsRef<str>>(why: &str, packages: &[S], logs: &Path) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    newest(why, &missing, logs)
}

/// Installs the newest version of `packages`, over an older one too.
pub fn newest(why: &str, packages: &[&str], logs: &Path) -> Result<()> {
    static UPDATED: Once = Once::new();

    let names = packages.join(" ");
    if !cmd::on_path("apt-get") {
        bail!("{why} needs {names}: there is no apt-get here, install them by hand");
    }
    if !cmd::is_root() {
        bail!(
            "{why} needs packages that only root can install: run `sudo apt-get install {names}`"
        );
    }
    // Lists that are there can be old, and name versions that are gone or that
    // are too old to be of use.
    UPDATED.call_once(|| {
        let mut update = Command::new("apt-get");
        update.args(LOCK_TIMEOUT).arg("update");
        let log = logs.join("apt-update");
        if let Err(error) = cmd::logged("updating the package lists", &mut update, &log) {
            cmd::say(&format!("{error:#}; going on with the lists that are here"));
        }
    });
    let mut install = Command::new("sh");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-c", WITHOUT_SERVICES, "sh", "apt-get"])
        .args(LOCK_TIMEOUT)
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages);
    let step = format!("installing for {why}: {names}");
    cmd::logged(&step, &mut install, &logs.join("apt-install"))
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
