//! The programs of the whole host: attached to their tracepoints.

use std::io;

use anyhow::{Context as _, bail};
use aya::{Btf, Ebpf, maps::ProgramArray, programs::BtfTracePoint};
use probe_common::{abi::config::SENDS_AFTER, abi::owner, kfunc, preempt::COPIES};

use super::{
    Globals, Loaded,
    hooks::{ACCEPT, CGROUPS, HOOKS, Hook, SOCK_SEND, TCP_SEND},
    iterate::{ITER_TASK_FILE, ITER_TCP, load_iterator},
    load::{open, program, refusal},
};
use crate::kernel::kfuncs::Kfuncs;

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
    load_iterator(&mut loaded.ebpf, ITER_TCP, "tcp", btf)
        .with_context(|| format!("cannot load {ITER_TCP} for iter/tcp; see `edgeprobe doctor`"))?;
    loaded
        .programs
        .push(program(ITER_TCP, "iter/tcp".to_owned(), String::new()));
    let loaded_iterator = load_iterator(&mut loaded.ebpf, ITER_TASK_FILE, "task_file", btf);
    let note = loaded_iterator.map_or_else(|error| format!("{error:#}"), |()| String::new());
    loaded
        .programs
        .push(program(ITER_TASK_FILE, "iter/task_file".to_owned(), note));
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
