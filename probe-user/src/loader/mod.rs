//! Loads the kernel programs and attaches them.

mod attach;
mod device;
mod iterate;
mod link;
mod load;
mod log;
pub mod maps;

pub use self::{
    attach::{Selection, host},
    device::DeviceProgram,
    iterate::{ITER_TASK_FILE, ITER_TCP, iterate},
    load::{Globals, Loaded, possible_cpus},
};
