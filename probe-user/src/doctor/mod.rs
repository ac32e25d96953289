//! What will and will not work on this host, and why.
//!
//! [`facts`], [`links`] and [`setup`] ask the host, [`examine`] judges what they found and
//! [`report`] writes it down; only the first three touch the system. Nothing is
//! loaded or attached to find out.

pub mod examine;
pub mod facts;
pub mod hooks;
pub mod interfaces;
pub mod links;
pub mod netlink;
pub mod privileges;
pub mod report;
pub mod setup;
