//! The programs, one file for each family of hooks.

mod drops;
mod noop;
mod packets;
mod resets;
mod retransmits;
mod segments;
mod sockets;
mod states;
