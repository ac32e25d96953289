//! The XDP program of one interface.

use std::io;

use anyhow::{Context as _, anyhow};
use aya::{
    Btf,
    programs::{ProgramError, Xdp, XdpMode as AyaMode},
};

use probe_common::hooks::{PROGRAMS, ProgramInfo, position};

use super::{
    Globals, Loaded,
    load::{open, program, refusal},
};
use crate::{config::XdpMode, kernel::netns::NetNs};

/// The program.
const PROGRAM: &ProgramInfo = &PROGRAMS[position("xdp_packets")];

/// Loads the XDP program for one interface and attaches it inside `netns`.
/// Where that cannot be, the result says so and holds no program.
///
/// # Errors
///
/// There is no such interface, or the kernel refuses the object.
pub fn device(
    btf: &Btf,
    globals: &Globals,
    netns: &NetNs,
    interface: &str,
    mode: XdpMode,
    flows: u32,
    noop: bool,
) -> anyhow::Result<(Loaded, Option<&'static str>)> {
    let name = match PROGRAM.twin {
        Some(twin) if noop => twin,
        _ => PROGRAM.name,
    };
    let mut ebpf = open(btf, globals, Some(flows))?;
    let xdp: &mut Xdp = ebpf
        .program_mut(name)
        .context("the object has no XDP program")?
        .try_into()?;
    xdp.load()
        .map_err(|error| anyhow!("cannot load {name}: {}", refusal(&error)))?;
    let modes: &[(AyaMode, &str)] = match mode {
        XdpMode::Native => &[(AyaMode::Driver, "native")],
        XdpMode::Generic => &[(AyaMode::Skb, "generic")],
        XdpMode::Auto => &[(AyaMode::Driver, "native"), (AyaMode::Skb, "generic")],
    };
    let attached = netns.run(|| -> anyhow::Result<Result<&'static str, String>> {
        let index = nix::net::if_::if_nametoindex(interface).map_err(|error| {
            anyhow!("no interface {interface:?} ({error}); `ip link` shows those there are")
        })?;
        let mut why = Vec::new();
        for &(mode, label) in modes {
            match xdp.attach_to_if_index(index, mode) {
                Ok(_) => return Ok(Ok(label)),
                Err(error) => why.push(format!("{label}: {}", busy_or(&error))),
            }
        }
        Ok(Err(why.join("; ")))
    })??;
    let hook = format!("{}/{interface}", PROGRAM.hook_type.prefix());
    let (mode, mut state) = match attached {
        Ok(mode) => {
            tracing::info!("XDP on {interface}: {mode} mode");
            (Some(mode), program(name, hook, String::new()))
        }
        Err(why) => {
            tracing::warn!("no XDP on {interface}, going on without: {why}");
            (None, program(name, hook, why))
        }
    };
    if let Some(mode) = mode {
        mode.clone_into(&mut state.note);
    }
    let mut loaded = Loaded::new(ebpf);
    loaded.programs.push(state);
    Ok((loaded, mode))
}

fn busy_or(error: &ProgramError) -> String {
    let io_error = match error {
        ProgramError::SyscallError(error) => Some(&error.io_error),
        _ => None,
    };
    match io_error.and_then(io::Error::raw_os_error) {
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is there and is not replaced".to_owned()
        }
        _ => refusal(error),
    }
}
