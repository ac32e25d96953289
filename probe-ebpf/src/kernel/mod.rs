//! Typed reads of kernel structures at the offsets of `LAYOUT`.
//!
//! The pointers are BTF-typed to the verifier: a load at a wrong offset is
//! refused when the program is loaded, and a load through a freed object reads
//! zero instead of faulting.

pub mod addr;
pub mod cgroup;
pub mod kfunc;
pub mod msghdr;
pub mod skb;
pub mod sock;

use core::{arch::asm, ffi::c_void, ptr::NonNull};

use crate::{
    globals::{LAYOUT, global},
    maps::WATCHED,
};

/// Loads a `T` at `offset` bytes into a kernel structure.
///
/// # Safety
///
/// `base` is a BTF-typed kernel pointer.
#[inline(always)]
pub unsafe fn load<T: Copy>(base: NonNull<c_void>, offset: u32) -> T {
    // SAFETY: the verifier checks offset and size against the type.
    unsafe { core::ptr::read_volatile(base.cast::<u8>().as_ptr().add(offset as usize).cast()) }
}

/// Argument `n` of a BTF tracepoint.
#[inline(always)]
pub fn arg(ctx: *const c_void, n: u32) -> u64 {
    // SAFETY: the verifier knows the tracepoint's arguments and refuses others.
    unsafe { core::ptr::read_volatile(ctx.cast::<u64>().add(n as usize)) }
}

/// An address less one that does not change while the programs are loaded. The
/// verifier takes a difference of pointers for a number.
#[inline(always)]
pub fn number(pointer: *const c_void) -> u64 {
    let mut number = pointer as u64;
    // SAFETY: it changes one register and touches no memory.
    unsafe {
        asm!("{0} -= {1}", inout(reg) number, in(reg) &raw const LAYOUT, options(pure, readonly, nostack));
    }
    number
}

/// Number of the network namespace behind a `struct net *`; 0 for null.
#[inline(always)]
pub fn netns_inum(net: *const c_void) -> u32 {
    match NonNull::new(net.cast_mut()) {
        // SAFETY: a BTF-typed pointer; see `load`.
        Some(net) => unsafe { load(net, global!(LAYOUT.net_inum)) },
        None => 0,
    }
}

/// Whether the namespace is watched.
#[inline(always)]
pub fn watched(netns: u32) -> bool {
    // Where all are, the verifier removes the rest.
    global!(CONFIG.netns_len) == 0 || WATCHED.get_ptr(&netns).is_some()
}
