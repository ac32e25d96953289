//! `struct msghdr`: what a program sends.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use probe_common::layout::ABSENT;

use super::load;
use crate::globals::global;

/// A `struct msghdr *`.
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
        // SAFETY: a BTF-typed pointer; see [`load!`].
        unsafe { load!(self.0, msg_count) }
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
        // SAFETY: BTF-typed pointers; see [`load!`]. The helper checks the address.
        unsafe {
            let taken: u64 = load!(self.0, msg_iov_offset);
            if taken != 0 {
                return;
            }
            let kind: u8 = load!(self.0, msg_iter_type);
            let buffer: *mut c_void = load!(self.0, msg_ubuf);
            let Some(buffer) = NonNull::new(buffer) else {
                return;
            };
            let from: *const c_void = match kind {
                ITER_UBUF => buffer.as_ptr(),
                ITER_IOVEC => load!(buffer, iov_base),
                _ => return,
            };
            bpf_probe_read_user(bytes.as_mut_ptr().cast(), N as u32, from);
        }
    }
}
