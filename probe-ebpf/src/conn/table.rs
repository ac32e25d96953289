//! The hash table of sockets in `CONNS`. The caller holds the socket's lock, so
//! two of them never look for the same socket at once. Where two sockets want one
//! slot, a compare-and-exchange decides.

use probe_common::abi::conn::{CONN_PROBE_LIMIT, Conn};

use crate::{atomic, globals::global, maps::CONNS};

/// 64 bits that are different for each socket.
#[inline(always)]
fn hash(socket: u64) -> u64 {
    socket.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Index of the slot that a socket belongs to.
#[inline(always)]
fn index(socket: u64) -> u64 {
    // Spreads 32 bits evenly over any number of slots.
    ((hash(socket) >> 32) * u64::from(global!(CONFIG.conn_slots))) >> 32
}

#[inline(always)]
fn home(socket: u64) -> Option<*mut Conn> {
    CONNS.get_ptr_mut(index(socket) as u32)
}

/// One of the others, `1..=CONN_PROBE_LIMIT`: at steps of a width of the socket's own, so
/// that taken slots do not grow into runs.
#[inline(always)]
fn other(socket: u64, n: u32) -> Option<*mut Conn> {
    let step = hash(socket) & 0xffff_fffe | 1;
    let index = index(socket) + u64::from(n) * step;
    let index = index.checked_rem(u64::from(global!(CONFIG.conn_slots)))?;
    CONNS.get_ptr_mut(index as u32)
}

#[inline(always)]
fn holds(slot: *mut Conn, socket: u64) -> bool {
    // SAFETY: a member of an element of `CONNS`, read as the whole word that it is.
    unsafe { (&raw const (*slot).socket).read_volatile() == socket }
}

#[inline(always)]
fn has_spilled(slot: *mut Conn) -> bool {
    // SAFETY: a member of an element of `CONNS`, read as the whole word that it is.
    unsafe { (&raw const (*slot).spilled).read_volatile() != 0 }
}

/// What is remembered of a socket; null if nothing is.
#[inline(always)]
pub fn find(socket: u64) -> *mut Conn {
    match home(socket) {
        Some(home) if holds(home, socket) => home,
        Some(home) if has_spilled(home) => numbered(socket, find_spilled(socket)),
        _ => core::ptr::null_mut(),
    }
}

/// The slot of [`other`] number that holds a socket, 0 if none does.
///
/// A function of numbers that others can call: the verifier looks at it once, and
/// not again for each caller and each state that this is in.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_spilled(socket: u64) -> u32 {
    for n in 1..=CONN_PROBE_LIMIT {
        if let Some(slot) = other(socket, n)
            && holds(slot, socket)
        {
            return n;
        }
    }
    0
}

/// What one of the two functions found.
#[inline(always)]
fn numbered(socket: u64, n: u32) -> *mut Conn {
    match n {
        0 => core::ptr::null_mut(),
        n => other(socket, n).unwrap_or(core::ptr::null_mut()),
    }
}

/// Takes a slot for a socket that has none; null where none is free. The slot
/// holds what was remembered of the socket before.
#[inline(always)]
pub fn claim(socket: u64) -> *mut Conn {
    match home(socket) {
        Some(home) if try_claim(home, socket) => home,
        _ => numbered(socket, claim_spilled(socket)),
    }
}

/// Takes one of the others for a socket: its number, 0 where none is free. See
/// [`find_spilled`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_spilled(socket: u64) -> u32 {
    for n in 1..=CONN_PROBE_LIMIT {
        if let Some(slot) = other(socket, n)
            && try_claim(slot, socket)
        {
            spilled(socket, 1);
            return n;
        }
    }
    0
}

#[inline(always)]
fn try_claim(slot: *mut Conn, socket: u64) -> bool {
    // SAFETY: a member of an element of `CONNS`; of two that want the slot one gets it.
    holds(slot, 0) && unsafe { atomic::compare_exchange(&raw mut (*slot).socket, 0, socket) == 0 }
}

/// As many more connections of a socket's slot are elsewhere.
///
/// The kernel adds to words of 32 bits at least: the upper half, `drop_reason`, stays as
/// it is as long as the sum is at least 0 and fits into the lower.
#[inline(always)]
fn spilled(socket: u64, more: i32) {
    if let Some(home) = home(socket) {
        // SAFETY: two members of an element of `CONNS`, an aligned word; the lower is
        // written with adds only.
        unsafe {
            let word = (&raw mut (*home).spilled).cast::<u32>();
            atomic::add_u32(word, more.cast_unsigned());
        }
    }
}

/// Forgets a socket; not there, then there is nothing to forget.
#[inline(always)]
pub fn remove(socket: u64) {
    match home(socket) {
        Some(home) if holds(home, socket) => free(home),
        Some(home) if has_spilled(home) => {
            let slot = numbered(socket, find_spilled(socket));
            if !slot.is_null() {
                free(slot);
                spilled(socket, -1);
            }
        }
        _ => {}
    }
}

/// Frees a slot, after all that was written to it.
#[inline(always)]
fn free(slot: *mut Conn) {
    // SAFETY: a member of an element of `CONNS`, which its socket's lock holder frees.
    unsafe { atomic::store(&raw mut (*slot).socket, 0) };
}
