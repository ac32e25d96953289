//! Virtual machines with the kernels of other Debian releases, for tests and
//! for the benchmark that counts instructions.
//!
//! Each kernel boots in QEMU with an initramfs that holds the programs and the
//! few tools that they call, runs them and powers off. What it printed to its
//! serial line is the result.

pub mod image;
mod kernels;
pub mod machine;
mod selection;
mod suites;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{cmd, packages, tally::Tally, workspace::Workspace};
use kernels::{KERNELS, Kernel};
pub use selection::{Options, programs};
pub use suites::run;

/// What a guest is made with.
const PACKAGES: &[&str] = &[
    "binutils",
    "busybox-static",
    "cpio",
    "debian-archive-keyring",
    "kmod",
    "qemu-system-x86",
    "xz-utils",
];

/// A kernel that is ready to boot.
pub struct Guest {
    kernel: &'static Kernel,
    /// Its unpacked packages.
    pub unpacked: PathBuf,
    /// What `uname -r` says, such as `6.12.117+deb13-cloud-amd64`.
    pub release: String,
    /// The image that QEMU boots.
    pub vmlinuz: PathBuf,
    /// Where files of this kernel are kept.
    pub folder: PathBuf,
}

impl Guest {
    /// The version by which it is chosen, such as `6.12`.
    pub fn version(&self) -> &'static str {
        self.kernel.version
    }

    /// For messages.
    pub fn name(&self) -> String {
        format!("kernel {}", self.release)
    }
}

/// The kernels that could be fetched; what could not counts as skipped.
pub struct Guests {
    /// In the order of their versions.
    pub ready: Vec<Guest>,
    /// Kernels that are missing.
    pub missing: Tally,
}

/// Installs QEMU and fetches the kernels that are named, all where none is.
///
/// # Errors
///
/// A name is unknown, or a package cannot be installed.
pub fn prepare(workspace: &Workspace, versions: &[String]) -> Result<Guests> {
    for version in versions {
        if !KERNELS.iter().any(|kernel| kernel.version == version) {
            let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.version).collect();
            bail!(
                "there is no kernel {version} among the guests, only {}",
                known.join(", ")
            );
        }
    }
    let is_wanted =
        |kernel: &&Kernel| versions.is_empty() || versions.iter().any(|one| one == kernel.version);
    let wanted = KERNELS.iter().filter(is_wanted);
    let mut guests = Guests {
        ready: Vec::new(),
        missing: Tally::default(),
    };
    if !cfg!(target_arch = "x86_64") {
        let why = "the guests are x86-64, this machine is not";
        guests.missing = skipped(wanted.count(), why);
        return Ok(guests);
    }
    packages::ensure("the virtual machines", PACKAGES, &workspace.logs())?;
    let folder = workspace.target.join("vm");
    for kernel in wanted {
        if let (true, Some(why)) = (versions.is_empty(), kernel.left_out) {
            guests.missing += skipped(1, &format!("kernel {}: {why}", kernel.version));
            continue;
        }
        let unpacked = kernel.unpacked(&folder);
        match unpacked.and_then(|unpacked| Ok((kernels::image_of(&unpacked)?, unpacked))) {
            Ok(((vmlinuz, release), unpacked)) => guests.ready.push(Guest {
                kernel,
                unpacked,
                release,
                vmlinuz,
                folder: folder.join(kernel.version),
            }),
            Err(error) => {
                guests.missing += skipped(1, &format!("kernel {}: {error:#}", kernel.version));
            }
        }
    }
    Ok(guests)
}

/// Says what is skipped and why, and counts it.
pub fn skipped(count: usize, reason: &str) -> Tally {
    cmd::say(&format!("SKIPPED: {reason}"));
    Tally {
        skipped: count as u64,
        ..Tally::default()
    }
}
