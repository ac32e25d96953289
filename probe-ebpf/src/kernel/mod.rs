//! Typed reads of kernel structures, see [`probe_common::layout`].
//!
//! The pointers are BTF-typed to the verifier: a load at a wrong offset is
//! refused when the program is loaded, and a load through a freed object reads
//! zero instead of faulting.

pub mod addr;
pub mod any_sock;
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

/// What one instruction loads.
pub trait Word: Copy {
    /// Loads it from `BELOW` bytes below the address, a number of
    /// [`Marker::below`](probe_common::layout::Marker::below).
    ///
    /// # Safety
    ///
    /// `base` is a BTF-typed kernel pointer.
    unsafe fn load<const BELOW: i32>(base: NonNull<c_void>) -> Self;
}

macro_rules! words {
    ($($type:ty: $size:literal in $register:ident $whole:ty $(, $T:ident)?;)*) => {$(
        impl $(<$T>)? Word for $type {
            #[inline(always)]
            unsafe fn load<const BELOW: i32>(base: NonNull<c_void>) -> Self {
                let word: $whole;
                // SAFETY: the verifier checks offset and size against the type.
                unsafe {
                    asm!(
                        concat!("{0} = *(", $size, " *)({1} - {2})"),
                        out($register) word, in(reg) base.as_ptr(), const BELOW,
                        options(readonly, nostack),
                    );
                }
                word as Self
            }
        }
    )*};
}
words! {
    u8: "u8" in wreg u32;
    u16: "u16" in wreg u32;
    u32: "u32" in wreg u32;
    i32: "u32" in wreg i32;
    u64: "u64" in reg u64;
    *const T: "u64" in reg u64, T;
    *mut T: "u64" in reg u64, T;
}

/// `load!(pointer, member)`: a member of [`KernelLayout`](probe_common::layout) from the
/// structure that a BTF-typed pointer points to; `member + 8` what lies 8 bytes further.
macro_rules! load {
    ($base:expr, $member:ident $(+ $add:literal)?) => {
        $crate::kernel::Word::load::<{
            probe_common::layout::Marker::below(
                core::mem::offset_of!(probe_common::layout::KernelLayout, $member),
                0 $(+ $add)?,
            )
        }>($base)
    };
}
pub(crate) use load;

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

/// The same number, of which the verifier knows nothing: what follows it looks at once,
/// and not for each value that the number may have. `unknown` is one that it knows nothing
/// of.
#[inline(always)]
pub fn any(mut number: u32, unknown: u32) -> u32 {
    // SAFETY: it changes one register, back to what it was, and touches no memory.
    unsafe {
        asm!("{0} += {1}", "{0} -= {1}", inout(wreg) number, in(wreg) unknown, options(pure, nomem, nostack));
    }
    number
}

/// Number of the network namespace behind a `struct net *`; 0 for null.
#[inline(always)]
pub fn netns_inum(net: *const c_void) -> u32 {
    match NonNull::new(net.cast_mut()) {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        Some(net) => unsafe { load!(net, net_inum) },
        None => 0,
    }
}

/// Whether the namespace is watched.
#[inline(always)]
pub fn watched(netns: u32) -> bool {
    // Where all are, the verifier removes the rest.
    global!(CONFIG.netns_len) == 0 || WATCHED.get_ptr(&netns).is_some()
}
