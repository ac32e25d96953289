//! Loads the kernel programs and attaches them.

mod device;
mod hooks;
pub mod maps;

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    io,
    os::fd::AsRawFd,
};

use anyhow::{Context as _, anyhow, bail};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Map, MapData, ProgramArray},
    programs::{BtfTracePoint, Iter, Program, ProgramError},
};
use probe_common::{
    config::{ProbeConfig, SENDS_AFTER},
    kfunc,
    layout::KernelLayout,
    once::{COPIES, MARKS},
    owner,
    packet::{Protocol, flow_places},
    series::CORE_REASONS,
};

use self::hooks::{ACCEPT, CGROUPS, HOOKS, Hook};
pub use self::{
    device::device,
    hooks::{SOCK_SEND, TCP_SEND},
};
use crate::{kernel::kfuncs::Kfuncs, model};

/// The kernel programs, compiled for BPF by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/edgeprobe.o"));

/// Visits all sockets of a network namespace.
pub const VISIT: &str = "tcp_visit";
/// Visits all open files.
pub const HOLDERS: &str = "sock_holders";

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
}

impl Loaded {
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
pub fn fdinfo(fd: i32) -> HashMap<String, u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// Memory of a map in bytes, as the kernel accounts it.
pub fn memory_bytes(map: &MapData) -> u64 {
    use std::os::fd::AsFd as _;
    fdinfo(map.fd().as_fd().as_raw_fd())
        .get("memlock")
        .copied()
        .unwrap_or(0)
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
/// `flows` are told apart.
fn open(btf: &Btf, globals: &Globals, flows: Option<u32>) -> anyhow::Result<Ebpf> {
    let is_host = flows.is_none();
    let flows = flows.unwrap_or(1);
    let random = RandomState::new();
    let config = ProbeConfig {
        flows,
        flow_places: flow_places(flows),
        flow_keys: std::array::from_fn(|n| random.hash_one(n) as u32),
        ..globals.config
    };
    // One object serves the hooks of the whole host and each device. Where a
    // map has no use it shrinks to one entry.
    let entries = |has_use: bool, full: u32| if has_use { full } else { 1 };
    let owners = is_host && config.key_owner != owner::NONE;
    EbpfLoader::new()
        .btf(Some(btf))
        .override_global("LAYOUT", &globals.layout, true)
        .override_global("CONFIG", &config, true)
        .map_max_entries("ROWS", entries(is_host, config.rows * config.shards))
        .map_max_entries("ROW_OF", entries(is_host, config.rows))
        .map_max_entries("SPEAKS_TLS", entries(is_host, config.rows))
        .map_max_entries("CONNS", entries(is_host, config.places))
        .map_max_entries("OWNER_OF", entries(owners, owner::CGROUPS as u32))
        .map_max_entries("OWNER_BY", entries(owners, owner::NAMES as u32))
        .map_max_entries(
            "PATH_OF",
            entries(owners && config.key_owner == owner::BY_NAME, owner::PATHS),
        )
        .map_max_entries(
            "CORE_DROPS",
            config.shards * CORE_REASONS * Protocol::NAMES.len() as u32,
        )
        .map_max_entries("FLOWS", config.flow_places)
        .map_max_entries("MARKS", entries(is_host && config.preempts != 0, MARKS))
        .map_max_entries("DEVICE", possible_cpus()? * Protocol::NAMES.len() as u32)
        .load(&globals.kfuncs.link(OBJECT))
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
fn refusal(error: &ProgramError) -> String {
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

/// Loads and attaches the programs of the whole host. With `noop` the empty
/// ones, which do nothing but cost what the hooks cost.
///
/// `before` runs when the maps are there and nothing is attached yet.
///
/// # Errors
///
/// The kernel refuses the object or a program that is needed.
pub fn host(
    btf: &Btf,
    globals: &Globals,
    noop: bool,
    before: impl Fn(&mut Loaded) -> anyhow::Result<()>,
) -> anyhow::Result<Loaded> {
    let result = attach_all(btf, globals, noop, &before);
    match result {
        Err(error) if globals.kfuncs.reads_payload() && !is_forbidden(&error) => {
            // Some kernels have a function and keep it from tracing programs.
            tracing::warn!("trying without {}: {error:#}", kfunc::DYNPTR_FROM_SKB.name);
            let mut plain = globals.clone();
            plain.kfuncs = Kfuncs::default();
            plain.config.payload = 0;
            attach_all(btf, &plain, noop, &before)
        }
        result => result,
    }
}

/// Whether this user may not load programs at all: what the verifier refuses is
/// `EACCES`.
fn is_forbidden(error: &anyhow::Error) -> bool {
    let causes = || {
        error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
    };
    causes().any(|cause| cause.raw_os_error() == Some(libc::EPERM))
}

fn attach_all(
    btf: &Btf,
    globals: &Globals,
    noop: bool,
    before: &impl Fn(&mut Loaded) -> anyhow::Result<()>,
) -> anyhow::Result<Loaded> {
    let ebpf = open(btf, globals, None)?;
    let mut loaded = Loaded {
        ebpf,
        programs: Vec::new(),
    };
    before(&mut loaded)?;
    tracing::debug!("made the maps");
    let other_send = match globals.config.sends {
        SENDS_AFTER => TCP_SEND,
        _ => SOCK_SEND,
    };
    let owners = globals.config.key_owner != owner::NONE;
    let is_used = |hook: &&Hook| {
        hook.tracepoint != other_send && (owners || !CGROUPS.contains(&hook.tracepoint))
    };
    let hooks = HOOKS.iter().filter(is_used);
    for hook in hooks.chain(globals.accept_exit.then_some(&ACCEPT)) {
        let copies = hook.copies.filter(|_| globals.config.preempts != 0);
        let names = match (noop, copies) {
            (true, _) => vec![hook.noop.to_owned()],
            (false, None) => vec![hook.program.to_owned()],
            (false, Some(_)) => (1..=COPIES).map(|n| hook.copy(n)).collect(),
        };
        for (n, name) in names.iter().enumerate() {
            let map = copies.filter(|_| n == 0 && !noop);
            let note = match attach_tracepoint(&mut loaded.ebpf, name, hook.tracepoint, btf, map) {
                Ok(()) => {
                    tracing::debug!("attached {name} to tracepoint {}", hook.tracepoint);
                    String::new()
                }
                Err(why) if hook.required => {
                    bail!(
                        "cannot attach {name} to tracepoint {}: {why}; see `edgeprobe doctor`",
                        hook.tracepoint
                    )
                }
                Err(why) => {
                    tracing::warn!(
                        "not attached: {name} on tracepoint {}: {why}",
                        hook.tracepoint
                    );
                    why
                }
            };
            let is_missing = !note.is_empty();
            let hook = format!("tp_btf/{}", hook.tracepoint);
            loaded.programs.push(program(name, hook, note));
            if is_missing {
                // Its copies would have nothing to call.
                break;
            }
        }
    }
    load_iterator(&mut loaded.ebpf, VISIT, "tcp", btf)
        .with_context(|| format!("cannot load {VISIT} for iter/tcp; see `edgeprobe doctor`"))?;
    loaded
        .programs
        .push(program(VISIT, "iter/tcp".to_owned(), String::new()));
    let loaded_holders = load_iterator(&mut loaded.ebpf, HOLDERS, "task_file", btf);
    let note = loaded_holders.map_or_else(|error| format!("{error:#}"), |()| String::new());
    loaded
        .programs
        .push(program(HOLDERS, "iter/task_file".to_owned(), note));
    let note = match globals.config.payload {
        0 => "this kernel lets no tracing program read a payload (6.12 and later do)",
        _ => "",
    };
    let hook = format!("kfunc/{}", kfunc::DYNPTR_FROM_SKB.name);
    loaded
        .programs
        .push(program("tls_records", hook, note.to_owned()));
    Ok(loaded)
}

fn program(name: &str, hook: String, note: String) -> model::Program {
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

fn attach_tracepoint(
    ebpf: &mut Ebpf,
    name: &str,
    tracepoint: &str,
    btf: &Btf,
    map: Option<&str>,
) -> Result<(), String> {
    let program = ebpf
        .program_mut(name)
        .ok_or("the object has no such program")?;
    let program: &mut BtfTracePoint = program.try_into().map_err(|error| refusal(&error))?;
    program
        .load(tracepoint, btf)
        .map_err(|error| refusal(&error))?;
    if let Some(map) = map {
        let fd = program.fd().map_err(|error| refusal(&error))?.try_clone();
        let fd = fd.map_err(|error| error.to_string())?;
        let map = ebpf.map_mut(map).ok_or("the object has no such map")?;
        ProgramArray::try_from(map)
            .and_then(|mut array| array.set(0, &fd, 0))
            .map_err(|error| format!("its copies cannot find it: {error}"))?;
    }
    let program: &mut BtfTracePoint = ebpf
        .program_mut(name)
        .ok_or("the object has no such program")?
        .try_into()
        .map_err(|error| refusal(&error))?;
    program.attach().map_err(|error| refusal(&error))?;
    Ok(())
}

fn load_iterator(ebpf: &mut Ebpf, name: &str, target: &str, btf: &Btf) -> anyhow::Result<()> {
    let program = ebpf
        .program_mut(name)
        .context("the object has no such program")?;
    let program: &mut Iter = program.try_into()?;
    program
        .load(target, btf)
        .map_err(|error| anyhow!(refusal(&error)))
}

/// Runs an iterator, [`VISIT`] for the network namespace of the calling thread,
/// and returns what the program wrote.
///
/// # Errors
///
/// The kernel refuses, or reading fails.
pub fn iterate(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<Vec<u8>> {
    use std::io::Read as _;

    let program = ebpf
        .program_mut(name)
        .context("the object has no such program")?;
    let program: &mut Iter = program.try_into()?;
    let link = program
        .attach()
        .with_context(|| format!("cannot attach {name}"))?;
    let mut file = program
        .take_link(link)?
        .into_file()
        .with_context(|| format!("cannot open {name}"))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    Ok(bytes)
}
