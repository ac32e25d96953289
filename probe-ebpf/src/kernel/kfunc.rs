//! Calls of kernel functions; see [`probe_common::kfunc`].

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::helpers::generated::bpf_dynptr_read;
use probe_common::kfunc;

use super::skb::Skb;

/// Runs `body` without an interrupt on this CPU, where the kernel has a way.
///
/// The kernel skips a program that is interrupted, or from 7.0 on preempted, by
/// its own event on the same CPU. With this the time in which that can happen
/// is a few instructions long.
#[inline(always)]
pub fn uninterrupted(body: impl FnOnce()) {
    let mut flags = MaybeUninit::<u64>::uninit();
    let flags = flags.as_mut_ptr();
    // SAFETY: a call as the kernel's calling convention has it; the verifier
    // checks the pointer and that both come in pairs.
    unsafe {
        asm!(
            "call {}", const kfunc::IRQ_SAVE.marker,
            inout("r1") flags => _, lateout("r0") _, lateout("r2") _, lateout("r3") _,
            lateout("r4") _, lateout("r5") _,
        );
    }
    body();
    // SAFETY: as above.
    unsafe {
        asm!(
            "call {}", const kfunc::IRQ_RESTORE.marker,
            inout("r1") flags => _, lateout("r0") _, lateout("r2") _, lateout("r3") _,
            lateout("r4") _, lateout("r5") _,
        );
    }
}

/// The bytes of a segment, from its TCP header on, wherever they lie.
pub struct Bytes {
    dynptr: [u64; 2],
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
        // SAFETY: as in `uninterrupted`. Where it fails the reads do too.
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
