//! Calls of kernel functions; see [`probe_common::kfunc`].

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated::bpf_dynptr_read;
use probe_common::kfunc;

use super::skb::Skb;
use crate::globals::global;

/// The pointer to a full TCP socket as one to a `struct tcp_sock`.
#[inline(always)]
pub fn tcp_sock(sk: *mut c_void) -> *mut c_void {
    let tp;
    // SAFETY: a call as the kernel's calling convention has it; the verifier checks the
    // arguments.
    unsafe {
        asm!(
            "call {}", const kfunc::RDONLY_CAST.marker,
            inout("r1") sk => _, inout("r2") u64::from(global!(LAYOUT.tcp_sock)) => _,
            lateout("r0") tp, lateout("r3") _, lateout("r4") _, lateout("r5") _,
        );
    }
    tp
}

/// The bytes of a segment, from its TCP header on, wherever they lie.
pub struct Bytes {
    _dynptr: [u64; 2],
}

impl Bytes {
    /// Room for them.
    #[inline(always)]
    pub fn room() -> MaybeUninit<Self> {
        MaybeUninit::uninit()
    }

    /// Makes them those of a segment. Only where the settings say that a payload
    /// can be read.
    #[inline(always)]
    pub fn of(room: &mut MaybeUninit<Self>, skb: Skb) -> *mut Self {
        let room = room.as_mut_ptr();
        // SAFETY: a call as the kernel's calling convention has it; the verifier
        // checks the pointers. Where it fails the reads do too.
        unsafe {
            asm!(
                "call {}", const kfunc::DYNPTR_FROM_SKB.marker,
                inout("r1") skb.as_ptr() => _, inout("r2") 0 => _, inout("r3") room => _,
                lateout("r0") _, lateout("r4") _, lateout("r5") _,
            );
        }
        room
    }

    /// Copies what begins at an offset; `false` where there is less.
    ///
    /// # Safety
    ///
    /// `bytes` is from [`Self::of`].
    #[inline(always)]
    pub unsafe fn read<const N: usize>(bytes: *mut Self, offset: u32, to: &mut [u8; N]) -> bool {
        // SAFETY: the caller vouches for the bytes; the array has that length.
        unsafe { bpf_dynptr_read(to.as_mut_ptr().cast(), N as u32, bytes.cast(), offset, 0) == 0 }
    }
}

/// From here on the process stays on its CPU, up to [`allow_preemption`].
#[inline(always)]
pub fn forbid_preemption() {
    // SAFETY: a call without arguments.
    unsafe {
        asm!(
            "call {}", const kfunc::PREEMPT_DISABLE.marker,
            lateout("r0") _, lateout("r1") _, lateout("r2") _, lateout("r3") _,
            lateout("r4") _, lateout("r5") _,
        );
    }
}

/// Ends what [`forbid_preemption`] began, without a switch to another process here: one
/// that is due comes after the program has ended and may run again. With interrupts
/// off preemption is allowed without a look at what waits
/// (`include/linux/preempt.h:preempt_enable`), and where interrupts are allowed again
/// none is taken either.
#[inline(always)]
pub fn allow_preemption() {
    let mut flags = MaybeUninit::<u64>::uninit();
    let flags = flags.as_mut_ptr();
    // SAFETY: calls as the kernel's calling convention has them; the verifier checks
    // that the flags lie on the stack and that the calls come in pairs.
    unsafe {
        asm!(
            "call {}", const kfunc::IRQ_SAVE.marker,
            inout("r1") flags => _, lateout("r0") _, lateout("r2") _, lateout("r3") _,
            lateout("r4") _, lateout("r5") _,
        );
        asm!(
            "call {}", const kfunc::PREEMPT_ENABLE.marker,
            lateout("r0") _, lateout("r1") _, lateout("r2") _, lateout("r3") _,
            lateout("r4") _, lateout("r5") _,
        );
        asm!(
            "call {}", const kfunc::IRQ_RESTORE.marker,
            inout("r1") flags => _, lateout("r0") _, lateout("r2") _, lateout("r3") _,
            lateout("r4") _, lateout("r5") _,
        );
    }
}
