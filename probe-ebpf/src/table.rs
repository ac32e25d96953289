//! The hash table of sockets in `CONNS`. The caller holds the socket's lock, so
//! two of them never look for the same socket at once; two sockets that want
//! the same place settle it with a compare-and-exchange.

use core::arch::asm;

use probe_common::conn::{BUCKET_CONNS, Bucket, Conn, STATUS_ZERO};

use crate::{
    atomic,
    globals::global,
    maps::{CONNS, STATUS},
};

const FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
/// Offset of the last entry of a bucket.
const LAST: u64 = ((BUCKET_CONNS - 1) * size_of::<Conn>()) as u64;
/// The bits of such an offset.
const MASK: u64 = LAST.next_power_of_two() - size_of::<Conn>() as u64;
const SECOND: u64 = 0xc2b2_ae3d_27d4_eb4f;

#[inline(always)]
fn bucket(socket: u64, factor: u64) -> Option<*mut Bucket> {
    let hash = socket.wrapping_mul(factor) >> 32;
    // Spreads 32 bits evenly over any number of buckets.
    let index = (hash * u64::from(global!(CONFIG.buckets))) >> 32;
    CONNS.get_ptr_mut(index as u32)
}

/// What is remembered of a socket; null if nothing is.
#[inline(always)]
pub fn find(socket: u64) -> *mut Conn {
    let Some(first) = bucket(socket, FIRST) else {
        return core::ptr::null_mut();
    };
    let found = scan(first, socket);
    if found.is_null() && has_spilled(first) {
        return find_second(socket);
    }
    found
}

#[inline(always)]
fn has_spilled(bucket: *mut Bucket) -> bool {
    // SAFETY: an element of the map.
    unsafe { (&raw const (*bucket).spilled).read_volatile() != 0 }
}

#[inline(never)]
fn find_second(socket: u64) -> *mut Conn {
    match bucket(socket, SECOND) {
        Some(second) => scan(second, socket),
        None => core::ptr::null_mut(),
    }
}

#[inline(always)]
fn scan(bucket: *mut Bucket, socket: u64) -> *mut Conn {
    let mut found = BUCKET_CONNS;
    for place in 0..BUCKET_CONNS {
        // SAFETY: an element of the map; the place is inside the array.
        if unsafe { (&raw const (*bucket).sockets[place]).read_volatile() } == socket {
            found = place;
            break;
        }
    }
    entry(bucket, found)
}

/// The entry at a place; null where there is no such place.
///
/// The verifier knows the place, and would follow all that comes after it once
/// for each; with a number added that it does not know, once is enough.
#[inline(always)]
fn entry(bucket: *mut Bucket, place: usize) -> *mut Conn {
    if place == BUCKET_CONNS {
        return core::ptr::null_mut();
    }
    let zero = STATUS.get(STATUS_ZERO).map_or(0, |zero| {
        // SAFETY: a reference is valid for reads.
        unsafe { core::ptr::read_volatile(zero) }
    });
    let mut offset = (place as u64 + zero) * size_of::<Conn>() as u64;
    // The compiler must compare and add one and the same register: of another
    // that it computes anew the verifier does not know the bound.
    // SAFETY: registers only.
    unsafe {
        asm!("{0} &= {1}", inout(reg) offset, const MASK, options(pure, nomem, nostack));
    }
    if offset > LAST {
        return core::ptr::null_mut();
    }
    // SAFETY: the offset is inside the array.
    unsafe {
        (&raw mut (*bucket).conns)
            .cast::<Conn>()
            .byte_add(offset as usize)
    }
}

/// Takes a place for a socket that has none; null where both buckets are full.
/// The place holds what was remembered of the socket before.
#[inline(always)]
pub fn claim(socket: u64) -> *mut Conn {
    let Some(first) = bucket(socket, FIRST) else {
        return core::ptr::null_mut();
    };
    let place = take(first, socket);
    if place.is_null() {
        return claim_second(socket);
    }
    place
}

#[inline(never)]
fn claim_second(socket: u64) -> *mut Conn {
    let (Some(first), Some(second)) = (bucket(socket, FIRST), bucket(socket, SECOND)) else {
        return core::ptr::null_mut();
    };
    let place = take(second, socket);
    if !place.is_null() {
        // SAFETY: an element of the map.
        unsafe { atomic::add(&raw mut (*first).spilled, 1) };
    }
    place
}

#[inline(always)]
fn take(bucket: *mut Bucket, socket: u64) -> *mut Conn {
    let mut taken = BUCKET_CONNS;
    for place in 0..BUCKET_CONNS {
        // SAFETY: an element of the map; the place is inside the array.
        unsafe {
            let cell = &raw mut (*bucket).sockets[place];
            if cell.read_volatile() == 0 && atomic::compare_exchange(cell, 0, socket) == 0 {
                taken = place;
                break;
            }
        }
    }
    entry(bucket, taken)
}

/// Forgets a socket; not there, then there is nothing to forget.
#[inline(always)]
pub fn remove(socket: u64) {
    if let Some(first) = bucket(socket, FIRST)
        && !give(first, socket)
        && has_spilled(first)
    {
        remove_second(socket);
    }
}

#[inline(never)]
fn remove_second(socket: u64) -> u32 {
    if let (Some(first), Some(second)) = (bucket(socket, FIRST), bucket(socket, SECOND))
        && give(second, socket)
    {
        // SAFETY: an element of the map.
        unsafe { atomic::add(&raw mut (*first).spilled, u64::MAX) };
        return 1;
    }
    0
}

#[inline(always)]
fn give(bucket: *mut Bucket, socket: u64) -> bool {
    for place in 0..BUCKET_CONNS {
        // SAFETY: an element of the map; the place is inside the arrays.
        unsafe {
            let cell = &raw mut (*bucket).sockets[place];
            if cell.read_volatile() == socket {
                // After all that was written to the place.
                atomic::store(cell, 0);
                return true;
            }
        }
    }
    false
}
