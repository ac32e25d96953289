//! The Unix socket that carries snapshots from the daemon to the exporter and
//! to `edgeprobe top`.

pub mod client;
pub mod endpoint;
pub mod protocol;
pub mod server;

pub use client::fetch;
pub use protocol::{Request, SocketError};
