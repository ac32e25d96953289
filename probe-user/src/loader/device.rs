//! The XDP program of one interface.

use std::io;

use anyhow::{Context as _, anyhow};
use aya::{
    Btf, Ebpf,
    programs::{ProgramError, Xdp, XdpMode as AyaMode, xdp::XdpLinkId},
};

use probe_common::hooks::{PROGRAMS, ProgramInfo, position};

use super::{
    Globals, Loaded,
    load::{open, program, refusal},
};
use crate::config::XdpMode;

/// The program.
const PROGRAM: &ProgramInfo = &PROGRAMS[position("xdp_packets")];

/// The program of one interface.
#[derive(Debug)]
pub struct DeviceProgram {
    /// The program and its maps; `programs` has the one record of what became of it.
    pub loaded: Loaded,
    name: &'static str,
    mode: XdpMode,
    link: Option<XdpLinkId>,
}

impl DeviceProgram {
    /// Loads the XDP program for one interface.
    ///
    /// # Errors
    ///
    /// The kernel refuses the object.
    pub fn load(
        btf: &Btf,
        globals: &Globals,
        interface: &str,
        mode: XdpMode,
        flows: u32,
        noop: bool,
    ) -> anyhow::Result<Self> {
        let name = match PROGRAM.twin {
            Some(twin) if noop => twin,
            _ => PROGRAM.name,
        };
        let mut ebpf = open(btf, globals, Some(flows))?;
        xdp(&mut ebpf, name)?
            .load()
            .map_err(|error| anyhow!("cannot load {name}: {}", refusal(&error)))?;
        let mut loaded = Loaded::new(ebpf);
        let hook = format!("{}/{interface}", PROGRAM.hook_type.prefix());
        (loaded.programs).push(program(name, hook, "not attached yet".to_owned()));
        Ok(Self {
            loaded,
            name,
            mode,
            link: None,
        })
    }

    /// Attaches it to an interface of the network namespace of the calling thread;
    /// returns the mode. Otherwise the record says why not.
    ///
    /// # Errors
    ///
    /// What the kernel says to each mode.
    pub fn attach(&mut self, index: u32) -> Result<&'static str, String> {
        let modes: &[(AyaMode, &str)] = match self.mode {
            XdpMode::Native => &[(AyaMode::Driver, "native")],
            XdpMode::Generic => &[(AyaMode::Skb, "generic")],
            XdpMode::Auto => &[(AyaMode::Driver, "native"), (AyaMode::Skb, "generic")],
        };
        let xdp = xdp(&mut self.loaded.ebpf, self.name).map_err(|error| error.to_string())?;
        let mut why = Vec::new();
        for &(mode, label) in modes {
            match xdp.attach_to_if_index(index, mode) {
                Ok(link) => {
                    self.link = Some(link);
                    self.note(true, label);
                    return Ok(label);
                }
                Err(error) => why.push(format!("{label}: {}", busy_or(&error))),
            }
        }
        let why = why.join("; ");
        self.note(false, &why);
        Err(why)
    }

    /// Detaches it from wherever it is, and notes why.
    pub fn detach(&mut self, why: &str) {
        if let Some(link) = self.link.take()
            && let Ok(xdp) = xdp(&mut self.loaded.ebpf, self.name)
            && let Err(error) = xdp.detach(link)
        {
            tracing::debug!("cannot detach {}: {}", self.name, refusal(&error));
        }
        self.note(false, why);
    }

    fn note(&mut self, attached: bool, note: &str) {
        for program in &mut self.loaded.programs {
            program.attached = attached;
            note.clone_into(&mut program.note);
        }
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name);
    Ok(program
        .context("the object has no XDP program")?
        .try_into()?)
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
