//! The subcommands.

mod configure;
pub mod daemon;
pub mod doctor;
pub mod exporter;
mod signals;
mod stdout;
pub mod top;

/// Threads that encode and decode for the servers, which answer others meanwhile.
const ENCODERS: usize = 2;
/// Tasks that the servers poll before they look for new events, such as a request for
/// whether they live: one may write 64 KiB to the kernel.
const TASKS_BEFORE_EVENTS: u32 = 8;
