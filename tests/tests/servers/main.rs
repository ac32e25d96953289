//! Servers and clients as they are found on an edge machine, each in namespaces
//! of its own: what they and the kernel count is what edgeprobe shows.

mod bird;
mod haproxy;
mod postgres;
mod tls;
mod tls_failures;
