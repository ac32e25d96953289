//! edgeprobe: loads the kernel programs, reads their maps and shows what they
//! counted. The binary is a thin shell over this library.

pub mod cli;
pub mod config;
pub mod kernel;
pub mod snapshot;
pub mod socket;
