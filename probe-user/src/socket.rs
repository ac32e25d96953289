//! The Unix socket that carries snapshots from the daemon to the exporter and
//! to `edgeprobe top`.

pub mod client;
pub mod protocol;

pub use client::fetch;
pub use protocol::{Error, Request};
