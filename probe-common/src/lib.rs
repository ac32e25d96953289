//! Types, tables and arithmetic shared by the kernel programs and user space.
//!
//! Everything here is `no_std` and owns nothing. [`metrics`] is the table of what
//! is counted by side, service and peer, [`hooks`] the table of the programs,
//! [`layout`] the list of kernel fields that are read, and [`abi`] what crosses
//! the border between the two sides.

#![no_std]

pub mod abi;
pub mod hist;
pub mod hooks;
pub mod kfunc;
pub mod labels;
pub mod layout;
pub mod metrics;
pub mod packet;
