//! Types and arithmetic shared by the kernel programs and user space.
//!
//! Everything here is `no_std` and owns nothing: map keys and values, the list
//! of kernel fields that are read, and the histogram bucket arithmetic, which
//! is the same code on both sides.

#![no_std]

pub mod config;
pub mod conn;
pub mod hist;
pub mod kfunc;
pub mod layout;
pub mod lost;
pub mod once;
pub mod owner;
pub mod packet;
pub mod series;
pub mod sock;
pub mod tls;
