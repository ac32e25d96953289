//! Snapshots for others: over HTTP, and over the Unix socket that `edgeprobe top`
//! and `edgeprobe exporter` read.

pub(crate) mod clients;
pub mod http;
pub mod unix;
