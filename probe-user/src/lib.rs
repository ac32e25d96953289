//! edgeprobe: loads the kernel programs, reads their maps and shows what they
//! counted. The binary is a thin shell over this library.

pub mod attribution;
pub mod cli;
pub mod collector;
pub mod commands;
pub mod config;
pub mod doctor;
pub mod export;
pub mod kernel;
pub mod loader;
pub mod logging;
pub mod model;
pub mod sampler;
pub mod serve;
pub mod table;
pub mod top;
