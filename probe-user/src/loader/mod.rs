//! Loads the kernel programs and attaches them.

mod attach;
mod device;
mod hooks;
mod iterate;
mod load;
pub mod maps;

pub use self::{
    attach::host,
    device::device,
    hooks::{SOCK_SEND, TCP_SEND},
    iterate::{ITER_TASK_FILE, ITER_TCP, iterate},
    load::{Globals, Loaded, memory_bytes, possible_cpus},
};
