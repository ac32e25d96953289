//! Atomic adds. A tracing program can be interrupted by another one on the same
//! CPU, and from 6.13 on be preempted, so nothing that is counted may be raised
//! with a plain load and store.

use core::arch::asm;

/// `*counter += amount`.
///
/// # Safety
///
/// `counter` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the caller vouches for the pointer; the verifier checks it.
    unsafe {
        asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount, options(nostack));
    }
}

/// [`add`] to a 32-bit word.
///
/// # Safety
///
/// `counter` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn add_u32(counter: *mut u32, amount: u32) {
    // SAFETY: the caller vouches for the pointer; the verifier checks it.
    unsafe {
        asm!("lock *(u32 *)({0} + 0) += {1}", in(reg) counter, in(wreg) amount, options(nostack));
    }
}

/// `*counter += amount`, and what it was before.
///
/// # Safety
///
/// `counter` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn fetch_add(counter: *mut u64, amount: u64) -> u64 {
    let mut value = amount;
    // SAFETY: the caller vouches for the pointer; the verifier checks it.
    unsafe {
        asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) counter, inout(reg) value, options(nostack));
    }
    value
}

/// `*cell = value` if it was `expected`; what it was.
///
/// # Safety
///
/// `cell` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn compare_exchange(cell: *mut u64, expected: u64, value: u64) -> u64 {
    let previous: u64;
    // SAFETY: the caller vouches for the pointer; the verifier checks it.
    unsafe {
        asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) cell, in(reg) value, inout("r0") expected => previous, options(nostack));
    }
    previous
}

/// [`compare_exchange`] of a 32-bit word.
///
/// # Safety
///
/// `cell` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn compare_exchange_u32(cell: *mut u32, expected: u32, value: u32) -> u32 {
    let previous: u32;
    // SAFETY: the caller vouches for the pointer; the verifier checks it.
    unsafe {
        asm!("w0 = cmpxchg32_32({0} + 0, w0, {1})", in(reg) cell, in(wreg) value, inout("w0") expected => previous, options(nostack));
    }
    previous
}

/// `*cell = value`, after all that was written before.
///
/// # Safety
///
/// `cell` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn store(cell: *mut u64, value: u64) {
    // SAFETY: the caller vouches for the pointer; the verifier checks it.
    unsafe {
        asm!("{1} = xchg_64({0} + 0, {1})", in(reg) cell, inout(reg) value => _, options(nostack));
    }
}
