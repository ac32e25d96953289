//! What crosses the border between the kernel programs and user space: keys and
//! values of maps, records of iterators, read-only globals.

pub mod config;
pub mod conn;
pub mod flow;
pub mod iter;
pub mod owner;
pub mod series;
pub mod tls;
