//! The object: opened, and its maps made.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    io,
    os::fd::AsRawFd,
};

use anyhow::{Context as _, anyhow};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{Program, ProgramError},
};
use probe_common::{
    abi::{config::ProbeConfig, drop::CORE_REASONS, flow::flow_slots, iter::SOCKET_STATES, owner},
    hooks::MARK_SLOTS,
    labels::Protocol,
    layout::KernelLayout,
};

use super::{
    link::link,
    log::{self, KernelLog},
};
use crate::{kernel::kfuncs::Kfuncs, model};

/// The kernel programs, compiled for BPF by the build script.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/edgeprobe.o"));

/// What the programs are told.
#[derive(Clone, Debug)]
pub struct Globals {
    /// Whether to watch system calls for the return of `accept()`.
    pub accept_exit: bool,
    /// Kernel functions that they may call.
    pub kfuncs: Kfuncs,
    /// Where the kernel keeps its fields.
    pub layout: KernelLayout,
    /// The settings.
    pub config: ProbeConfig,
}

/// A loaded object and what became of its programs.
#[derive(Debug)]
pub struct Loaded {
    /// Maps and programs; dropping it detaches.
    pub ebpf: Ebpf,
    /// The programs, attached or not.
    pub programs: Vec<model::Program>,
    _log: Option<KernelLog>,
}

impl Loaded {
    /// An object whose programs are not attached yet.
    pub(super) fn new(mut ebpf: Ebpf) -> Self {
        let log = KernelLog::of(&mut ebpf);
        Self {
            ebpf,
            programs: Vec::new(),
            _log: log,
        }
    }

    /// A map of the object.
    ///
    /// # Errors
    ///
    /// There is none of that name and type, which would be a fault of the build.
    pub fn map<'a, T>(&'a self, name: &str) -> anyhow::Result<T>
    where
        T: TryFrom<&'a Map, Error = aya::maps::MapError>,
    {
        let map = self
            .ebpf
            .map(name)
            .ok_or_else(|| anyhow!("the object has no map {name}"))?;
        T::try_from(map).with_context(|| format!("map {name}"))
    }

    /// As [`Self::map`], for writing.
    ///
    /// # Errors
    ///
    /// As [`Self::map`].
    pub fn map_mut<'a, T>(&'a mut self, name: &str) -> anyhow::Result<T>
    where
        T: TryFrom<&'a mut Map, Error = aya::maps::MapError>,
    {
        let map = self
            .ebpf
            .map_mut(name)
            .ok_or_else(|| anyhow!("the object has no map {name}"))?;
        T::try_from(map).with_context(|| format!("map {name}"))
    }

    /// The kernel's own figures for a program.
    pub fn program_facts(&self, name: &str) -> HashMap<String, u64> {
        let Some(fd) = self.ebpf.program(name).and_then(program_fd) else {
            return HashMap::new();
        };
        fdinfo(fd)
    }
}

fn program_fd(program: &Program) -> Option<i32> {
    use std::os::fd::AsFd as _;
    program.fd().ok().map(|fd| fd.as_fd().as_raw_fd())
}

/// The numbers in `/proc/self/fdinfo/FD`.
fn fdinfo(fd: i32) -> HashMap<String, u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// Memory of a map in bytes, as the kernel accounts it, if it tells.
pub(super) fn memory_bytes(map: &MapData) -> Option<u64> {
    use std::os::fd::AsFd as _;
    fdinfo(map.fd().as_fd().as_raw_fd()).get("memlock").copied()
}

/// Number of CPUs that this kernel can have.
///
/// # Errors
///
/// `/sys` is not mounted.
pub fn possible_cpus() -> anyhow::Result<u32> {
    let cpus =
        aya::util::nr_cpus().map_err(|(path, error)| anyhow!("cannot read {path}: {error}"))?;
    Ok(cpus as u32)
}

/// Opens the object for the hooks of the whole host, or for a device whose
/// `flows` are tracked separately.
pub(super) fn open(btf: &Btf, globals: &Globals, flows: Option<u32>) -> anyhow::Result<Ebpf> {
    let is_host = flows.is_none();
    let flows = flows.unwrap_or(1);
    let random = RandomState::new();
    let config = ProbeConfig {
        flows,
        flow_slots: flow_slots(flows),
        flow_keys: std::array::from_fn(|n| random.hash_one(n) as u32),
        logs: log::is_wanted().into(),
        ..globals.config
    };
    let log_bytes = if log::is_wanted() {
        log::RING_BYTES
    } else {
        log::NO_RING_BYTES
    };
    // One object serves the hooks of the whole host and each device. Where a
    // map has no use it shrinks to one entry.
    let entries = |has_use: bool, full: u32| if has_use { full } else { 1 };
    let owners = is_host && config.key_owner != owner::NONE;
    EbpfLoader::new()
        .btf(Some(btf))
        .override_global("LAYOUT", &globals.layout, true)
        .override_global("CONFIG", &config, true)
        .override_global(log::LEVEL, &log::level(), true)
        .map_max_entries(log::RING, log_bytes)
        .map_max_entries("ROWS", entries(is_host, config.rows * config.shards))
        .map_max_entries("ROW_OF", entries(is_host, config.rows))
        .map_max_entries("SPEAKS_TLS", entries(is_host, config.rows))
        .map_max_entries(
            "SOCKETS",
            entries(is_host, config.rows * SOCKET_STATES.len() as u32),
        )
        .map_max_entries("CONNS", entries(is_host, config.conn_slots))
        .map_max_entries("OWNER_OF", entries(owners, owner::CGROUPS as u32))
        .map_max_entries("OWNER_BY", entries(owners, owner::NAMES as u32))
        .map_max_entries(
            "PATH_OF",
            entries(owners && config.key_owner == owner::BY_NAME, owner::PATHS),
        )
        .map_max_entries(
            "CORE_DROPS",
            entries(
                is_host,
                (config.shards + 1) * CORE_REASONS * Protocol::NAMES.len() as u32,
            ),
        )
        .map_max_entries("FLOWS", config.flow_slots)
        .map_max_entries(
            "MARKS",
            entries(is_host && config.preempts != 0, MARK_SLOTS),
        )
        .map_max_entries("DEVICE", possible_cpus()? * Protocol::NAMES.len() as u32)
        .load(&link(OBJECT, &globals.layout, globals.kfuncs)?)
        .map_err(|error| {
            explain(anyhow::Error::new(error).context("cannot load the kernel programs"))
        })
}

/// Adds what to do to an error whose cause is a missing privilege.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let denied = error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)))
    });
    if denied {
        error.context("not permitted: run as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN")
    } else {
        error
    }
}

/// What a refusal means, in one line.
pub(super) fn refusal(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            // The last lines are figures; the one before them tells.
            let figures = ["processed ", "verification time ", "stack depth "];
            let last = log
                .lines()
                .rev()
                .find(|line| {
                    !line.trim().is_empty() && !figures.iter().any(|start| line.starts_with(start))
                })
                .unwrap_or("no word from the verifier");
            tracing::debug!("verifier: {log}");
            format!("{io_error}: {last}")
        }
        ProgramError::SyscallError(error) => format!("{}: {}", error.call, error.io_error),
        other => other.to_string(),
    }
}

/// What became of a program; `note` is empty where it is attached.
pub(super) fn program(name: &str, hook: String, note: String) -> model::Program {
    model::Program {
        program: name.to_owned(),
        hook,
        attached: note.is_empty(),
        note,
        skipped: 0,
        runs: None,
        run_seconds: None,
    }
}
