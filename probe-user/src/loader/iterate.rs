//! Programs that run when they are asked: iterators over sockets and open files.

use anyhow::{Context as _, anyhow};
use aya::{Btf, Ebpf, programs::Iter};
use probe_common::hooks::{PROGRAMS, position};

use super::load::refusal;

/// Iterates over all sockets of a network namespace.
pub const ITER_TCP: &str = PROGRAMS[position("iter_tcp")].name;
/// Iterates over all open files.
pub const ITER_TASK_FILE: &str = PROGRAMS[position("iter_task_file")].name;

pub(super) fn load_iterator(
    ebpf: &mut Ebpf,
    name: &str,
    target: &str,
    btf: &Btf,
) -> anyhow::Result<()> {
    let program = ebpf
        .program_mut(name)
        .context("the object has no such program")?;
    let program: &mut Iter = program.try_into()?;
    program
        .load(target, btf)
        .map_err(|error| anyhow!(refusal(&error)))
}

/// Runs an iterator, [`ITER_TCP`] for the network namespace of the calling thread,
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
