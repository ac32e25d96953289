//! The programs of the whole host: attached to their tracepoints.

use std::io;

use aya::{
    Btf, Ebpf,
    maps::ProgramArray,
    programs::{BtfTracePoint, ProgramError},
};
use probe_common::{
    abi::{config::SENDS_AFTER, owner},
    hooks::{HookType, PROGRAMS, ProgramInfo, REPLICAS, Use},
    kfunc,
};

use super::{
    Globals, Loaded,
    iterate::load_iterator,
    load::{open, program, refusal},
};

/// Which programs are attached: all that are of use, but for a measurement or a test.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// The empty ones instead, which do nothing but cost what the hooks cost.
    pub noop: bool,
    /// All but those of these names.
    pub left_out: &'a [String],
}

/// Loads and attaches the programs of the whole host.
///
/// `before` runs when the maps are there and nothing is attached yet.
///
/// # Errors
///
/// The kernel refuses the object or a program that is needed.
pub fn host(
    btf: &Btf,
    globals: &Globals,
    selection: Selection<'_>,
    mut before: impl FnMut(&mut Loaded) -> anyhow::Result<()>,
) -> anyhow::Result<Loaded> {
    let mut globals = globals.clone();
    loop {
        let result = attach_all(btf, &globals, selection, &mut before);
        match (result, globals.kfuncs.first()) {
            (Err(error), Some(kfunc)) if was_refused(&error) => {
                // Some kernels have a function and keep it from tracing programs.
                tracing::warn!("trying without {}: {error:#}", kfunc.name);
                globals.kfuncs = globals.kfuncs.without(kfunc);
                globals.config.payload = globals.kfuncs.reads_payload().into();
            }
            (result, _) => return result,
        }
    }
}

/// A program that is needed is not attached.
#[derive(Debug, thiserror::Error)]
#[error("cannot attach {name} to {hook}: {}; see `edgeprobe doctor`", .refusal.why)]
struct NotAttached {
    name: String,
    hook: String,
    refusal: Refusal,
}

/// Why a program is not attached.
#[derive(Debug)]
struct Refusal {
    why: String,
    /// The verifier does not take it; another one may do.
    by_verifier: bool,
}

impl From<&ProgramError> for Refusal {
    fn from(error: &ProgramError) -> Self {
        let by_verifier = match error {
            ProgramError::LoadError { io_error, .. } => is_by_verifier(io_error),
            _ => false,
        };
        Self {
            why: refusal(error),
            by_verifier,
        }
    }
}

/// Whether the verifier refused to load a program: `EPERM` is for who may load none.
fn is_by_verifier(error: &io::Error) -> bool {
    error.raw_os_error() != Some(libc::EPERM)
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self {
            why,
            by_verifier: false,
        }
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

/// Whether the verifier refused a program: nothing else has to do with what it calls.
fn was_refused(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<NotAttached>()
        .is_some_and(|error| error.refusal.by_verifier)
}

fn attach_all(
    btf: &Btf,
    globals: &Globals,
    selection: Selection<'_>,
    before: &mut impl FnMut(&mut Loaded) -> anyhow::Result<()>,
) -> anyhow::Result<Loaded> {
    let mut loaded = Loaded::new(open(btf, globals, None)?);
    before(&mut loaded)?;
    tracing::debug!("made the maps");
    for info in PROGRAMS.iter().filter(|info| is_used(info, globals)) {
        if selection.left_out.iter().any(|name| name == info.name) {
            let hook = format!("{}/{}", info.hook_type.prefix(), info.hook);
            tracing::warn!("left out: {} on {hook}", info.name);
            let note = "left out, as --leave-out asks for".to_owned();
            loaded.programs.push(program(info.name, hook, note));
            continue;
        }
        match info.hook_type {
            HookType::Tracepoint => {
                attach_with_replicas(&mut loaded, info, btf, globals, selection.noop)?;
            }
            HookType::Iterator => {
                let result = load_iterator(&mut loaded.ebpf, info.name, info.hook, btf);
                let note = result.err().map(|error| format!("{error:#}").into());
                record(&mut loaded, info, info.name, note)?;
            }
            HookType::Xdp => {}
        }
    }
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

/// Whether a program of the whole host is to run here.
fn is_used(info: &ProgramInfo, globals: &Globals) -> bool {
    let sends_returned = globals.config.sends == SENDS_AFTER;
    match info.used {
        Use::Always | Use::OnDemand => true,
        Use::SendsBegun => !sends_returned,
        Use::SendsReturned => sends_returned,
        Use::Owners => globals.config.key_owner != owner::NONE,
        Use::AcceptExit => globals.accept_exit,
        Use::Device => false,
    }
}

/// Attaches a program and, where the kernel preempts it, its replicas; with `noop`
/// its empty twin.
fn attach_with_replicas(
    loaded: &mut Loaded,
    info: &ProgramInfo,
    btf: &Btf,
    globals: &Globals,
    noop: bool,
) -> anyhow::Result<()> {
    if noop {
        let Some(twin) = info.twin else {
            return Ok(());
        };
        let note = attach_tracepoint(&mut loaded.ebpf, twin, info.hook, btf, None).err();
        record(loaded, info, twin, note)?;
        return Ok(());
    }
    let replicas = info.replicas.filter(|_| globals.config.preempts != 0);
    let note = attach_tracepoint(&mut loaded.ebpf, info.name, info.hook, btf, replicas).err();
    let is_attached = record(loaded, info, info.name, note)?;
    // Without the program its replicas would have nothing to call.
    if is_attached && replicas.is_some() {
        for n in 2..=1 + REPLICAS {
            let name = format!("{}{n}", info.name);
            let note = attach_tracepoint(&mut loaded.ebpf, &name, info.hook, btf, None).err();
            record(loaded, info, &name, note)?;
        }
    }
    Ok(())
}

/// Notes what became of a program, a replica or a twin; `note` is why it is not
/// attached. Returns whether it is.
///
/// # Errors
///
/// It is not, and the tool is of no use without it.
fn record(
    loaded: &mut Loaded,
    info: &ProgramInfo,
    name: &str,
    note: Option<Refusal>,
) -> anyhow::Result<bool> {
    let hook = format!("{}/{}", info.hook_type.prefix(), info.hook);
    let note = match note {
        None => {
            tracing::debug!("attached {name} to {hook}");
            String::new()
        }
        Some(refusal) if info.required => {
            let name = name.to_owned();
            return Err(NotAttached {
                name,
                hook,
                refusal,
            }
            .into());
        }
        Some(Refusal { why, .. }) => {
            tracing::warn!("not attached: {name} to {hook}: {why}");
            why
        }
    };
    let is_attached = note.is_empty();
    loaded.programs.push(program(name, hook, note));
    Ok(is_attached)
}

/// Loads a program and attaches it to a tracepoint; `map` is where its replicas find
/// it.
fn attach_tracepoint(
    ebpf: &mut Ebpf,
    name: &str,
    tracepoint: &str,
    btf: &Btf,
    map: Option<&str>,
) -> Result<(), Refusal> {
    let program = ebpf
        .program_mut(name)
        .ok_or("the object has no such program")?;
    let program: &mut BtfTracePoint = program.try_into().map_err(|error| Refusal::from(&error))?;
    program
        .load(tracepoint, btf)
        .map_err(|error| Refusal::from(&error))?;
    if let Some(map) = map {
        let fd = program
            .fd()
            .map_err(|error| Refusal::from(&error))?
            .try_clone();
        let fd = fd.map_err(|error| error.to_string())?;
        let map = ebpf.map_mut(map).ok_or("the object has no such map")?;
        ProgramArray::try_from(map)
            .and_then(|mut array| array.set(0, &fd, 0))
            .map_err(|error| format!("its replicas cannot find it: {error}"))?;
    }
    let program: &mut BtfTracePoint = ebpf
        .program_mut(name)
        .ok_or("the object has no such program")?
        .try_into()
        .map_err(|error| Refusal::from(&error))?;
    program.attach().map_err(|error| Refusal::from(&error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_loaded(errno: i32) -> anyhow::Error {
        NotAttached {
            name: "tcp_probe".to_owned(),
            hook: "tp_btf/tcp_probe".to_owned(),
            refusal: Refusal {
                why: "refused".to_owned(),
                by_verifier: is_by_verifier(&io::Error::from_raw_os_error(errno)),
            },
        }
        .into()
    }

    #[test]
    fn only_the_verifiers_refusal_is_a_reason_to_do_with_fewer_functions() {
        assert!(was_refused(&not_loaded(libc::EACCES)));
        assert!(was_refused(&not_loaded(libc::EINVAL)));
        assert!(!was_refused(&not_loaded(libc::EPERM)));
        let full = anyhow::anyhow!(io::Error::from_raw_os_error(libc::E2BIG));
        assert!(!was_refused(&full.context("a map is full")));
    }
}
