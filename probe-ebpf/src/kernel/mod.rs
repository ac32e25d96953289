//! Typed reads of kernel structures at the offsets of `LAYOUT`.
//!
//! The pointers are BTF-typed to the verifier: a load at a wrong offset is
//! refused when the program is loaded, and a load through a freed object reads
//! zero instead of faulting.

pub mod cgroup;
pub mod kfunc;
pub mod skb;
pub mod sock;

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use probe_common::layout::ABSENT;

use crate::globals::global;

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

/// A `struct msghdr *`: what a program sends.
#[derive(Clone, Copy)]
pub struct Message(NonNull<c_void>);

impl Message {
    /// `None` for null.
    #[inline(always)]
    pub fn new(pointer: u64) -> Option<Self> {
        NonNull::new(pointer as *mut c_void).map(Self)
    }

    /// Bytes that are left to send.
    #[inline(always)]
    pub fn count(self) -> u64 {
        // SAFETY: a BTF-typed pointer.
        unsafe { load(self.0, global!(LAYOUT.msg_count)) }
    }

    /// Reads the first bytes of a send of which nothing has been taken yet, where
    /// they lie in one piece in the memory of the program, and this is at hand;
    /// else leaves `bytes` as they are, or fills them with zeros.
    #[inline(always)]
    pub fn read<const N: usize>(self, bytes: &mut [u8; N]) {
        /// `enum iter_type`, on kernels with this event (6.16).
        const ITER_UBUF: u8 = 0;
        const ITER_IOVEC: u8 = 1;
        if global!(LAYOUT.msg_iter_type) == ABSENT
            || global!(LAYOUT.msg_iov_offset) == ABSENT
            || global!(LAYOUT.msg_ubuf) == ABSENT
            || global!(LAYOUT.iov_base) == ABSENT
        {
            return;
        }
        // SAFETY: BTF-typed pointers; the helper checks the address.
        unsafe {
            if load::<u64>(self.0, global!(LAYOUT.msg_iov_offset)) != 0 {
                return;
            }
            let buffer: *mut c_void = load(self.0, global!(LAYOUT.msg_ubuf));
            let Some(buffer) = NonNull::new(buffer) else {
                return;
            };
            let from: *const c_void = match load::<u8>(self.0, global!(LAYOUT.msg_iter_type)) {
                ITER_UBUF => buffer.as_ptr(),
                ITER_IOVEC => load(buffer, global!(LAYOUT.iov_base)),
                _ => return,
            };
            bpf_probe_read_user(bytes.as_mut_ptr().cast(), N as u32, from);
        }
    }
}

/// Number of the network namespace behind a `struct net *`; 0 for null.
#[inline(always)]
pub fn netns_inum(net: *const c_void) -> u32 {
    match NonNull::new(net.cast_mut()) {
        // SAFETY: a `struct net *`.
        Some(net) => unsafe { load(net, global!(LAYOUT.net_inum)) },
        None => 0,
    }
}

/// Whether the namespace is watched.
#[inline(always)]
pub fn watched(netns: u32) -> bool {
    let len = global!(CONFIG.netns_len);
    if len == 0 {
        return true;
    }
    let mut n = 0;
    while n < probe_common::abi::config::MAX_NETNS {
        if n as u32 >= len {
            return false;
        }
        if global!(CONFIG.netns[n]) == netns {
            return true;
        }
        n += 1;
    }
    false
}
