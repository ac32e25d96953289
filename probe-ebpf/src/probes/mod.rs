//! The programs, one file for each family of hooks.

mod drops;
mod noop;
mod packets;
mod resets;
mod retransmits;
mod rtt;
mod sockets;
mod states;
