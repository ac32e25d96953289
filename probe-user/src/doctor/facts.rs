//! What the host says about itself.

use std::io::ErrorKind;
use std::path::Path;

use nix::sys::utsname::uname;
use nix::unistd::Uid;

use super::links::{self, Link};
use crate::kernel::btf::{self, Btf};
use crate::kernel::process;
use crate::kernel::shield::{HiddenEvents, Shield};

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Its content without surrounding white space.
    Value(String),
    /// It is not there.
    Absent,
    /// This user may not read it.
    Denied,
    /// Another error.
    Failed(String),
}

impl Reading {
    fn of(path: &str) -> Self {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::Value(text.trim().to_owned()),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => Self::Absent,
                ErrorKind::PermissionDenied => Self::Denied,
                _ => Self::Failed(error.to_string()),
            },
        }
    }
}

/// All that the judgement rests on.
#[derive(Debug)]
pub struct Facts {
    /// Release of the kernel, as `uname -r` prints it.
    pub release: String,
    /// The kernel's types.
    pub btf: Result<Btf, btf::BtfError>,
    /// `net.core.bpf_jit_enable`.
    pub jit: Reading,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged: Reading,
    /// `kernel.perf_event_paranoid`.
    pub paranoid: Reading,
    /// The lockdown file of securityfs.
    pub lockdown: Reading,
    /// `/proc/self/mounts`.
    pub mounts: Reading,
    /// Effective capabilities of this process.
    pub capabilities: Vec<String>,
    /// Whether the kernel shields process 1.
    pub shield: Shield,
    /// Whether what a shield hides can be counted, or why not; tried only where there
    /// is one.
    pub hidden_events: Result<(), String>,
    /// Whether this process runs as root.
    pub root: bool,
    /// The interfaces of this network namespace.
    pub links: Result<Vec<Link>, String>,
}

impl Facts {
    /// Asks the running host.
    pub fn gather() -> Self {
        let shield = Shield::of_process_1();
        let hidden_events = match shield {
            Shield::Present => HiddenEvents::start().map(drop),
            Shield::Absent | Shield::Unknown(_) => Ok(()),
        };
        Self {
            shield,
            hidden_events: hidden_events.map_err(|error| format!("{error:#}")),
            release: uname().map_or_else(
                |_| String::new(),
                |name| name.release().to_string_lossy().into_owned(),
            ),
            btf: Btf::from_file(Path::new(btf::VMLINUX), None),
            jit: Reading::of("/proc/sys/net/core/bpf_jit_enable"),
            unprivileged: Reading::of("/proc/sys/kernel/unprivileged_bpf_disabled"),
            paranoid: Reading::of("/proc/sys/kernel/perf_event_paranoid"),
            lockdown: Reading::of("/sys/kernel/security/lockdown"),
            mounts: Reading::of("/proc/self/mounts"),
            capabilities: process::read()
                .map_or_else(|_| Vec::new(), |process| process.capabilities),
            root: Uid::effective().is_root(),
            links: links::read().map_err(|error| error.to_string()),
        }
    }
}
