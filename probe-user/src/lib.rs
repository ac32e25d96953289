//! edgeprobe: loads the kernel programs, reads their maps and shows what they
//! counted. The binary is a thin shell over this library.

pub mod cli;
pub mod collector;
pub mod commands;
pub mod config;
pub mod doctor;
pub mod export;
pub mod feed;
pub mod kernel;
pub mod loader;
pub mod logging;
pub mod process;
pub mod server;
pub mod snapshot;
pub mod socket;
pub mod style;
pub mod top;
