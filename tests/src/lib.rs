//! The rig of the real-kernel tests: network namespaces that remove
//! themselves, a daemon that does not outlive its test, load made of real
//! sockets, and the counters of the kernel to compare with.
//!
//! The rig panics where something is not as it must be, with the line of the
//! test that asked for it.

pub mod actor;
pub mod crowd;
pub mod daemon;
pub mod delay;
pub mod filter;
pub mod flatten;
pub mod frame;
pub mod http;
mod kernel_objects;
pub mod load;
pub mod map_memory;
pub mod netns;
pub mod objects;
pub mod options;
pub mod poll;
pub mod postgres;
pub mod programs;
pub mod pty;
pub mod refuse;
pub mod skip;
pub mod snmp;
pub mod tcp_info;
pub mod truth;
pub mod witness;
