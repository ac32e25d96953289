//! Types and arithmetic shared by the kernel programs and user space.
//!
//! Everything here is `no_std` and owns nothing: map keys and values, the list
//! of kernel fields that are read, and the histogram bucket arithmetic, which
//! is the same code on both sides.

#![no_std]

pub mod abi;
pub mod hist;
pub mod hooks;
pub mod kfunc;
pub mod layout;
pub mod preempt;
