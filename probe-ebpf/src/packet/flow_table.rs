//! The hash table of flows in `FLOWS`: a flow is in the first free place of the
//! [`PROBES`] from its own on, until the collector takes the place from a flow
//! without packets. Packets of all CPUs take places; what two of them want at once
//! is settled with a compare-and-exchange.

use core::mem::offset_of;

use probe_common::{
    abi::flow::{EMPTY, Flow, FlowKey, LEFT, PROBES, TAKEN, TAKING, Traffic},
    hooks::{Cause, Hook},
};

use crate::{
    atomic,
    globals::global,
    lost,
    maps::{FLOW_COUNT, FLOWS},
};

/// A [`FlowKey`] as words of the machine.
pub type Key = [u64; size_of::<FlowKey>() / 8];

/// NH, the universal hash of UMAC (RFC 4418, section 5.2), with secret keys: no
/// stranger can foresee which flows come together.
#[inline(always)]
fn hash(key: Key) -> u64 {
    let mut sum = 0u64;
    for (n, word) in key.into_iter().enumerate() {
        let low = (word as u32).wrapping_add(global!(CONFIG.flow_keys[2 * n]));
        let high = ((word >> 32) as u32).wrapping_add(global!(CONFIG.flow_keys[2 * n + 1]));
        sum = sum.wrapping_add(u64::from(low) * u64::from(high));
    }
    // Spreads it evenly.
    let hash = sum.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 32
}

/// The counters of a flow; `None` where there is no place for it, or another CPU
/// is just taking the place that may be its.
#[inline(always)]
pub fn traffic(key: Key) -> Option<*mut Traffic> {
    let hash = hash(key);
    let tag = hash | TAKEN;
    let mask = global!(CONFIG.flow_places) - 1;
    // The first one that was given up, or none.
    let mut left = u32::MAX;
    // Whether one may be its that another CPU is just taking.
    let mut is_busy = false;
    for n in 0..PROBES {
        let index = ((hash >> 32) as u32).wrapping_add(n) & mask;
        let place = FLOWS.get_ptr_mut(index)?;
        // SAFETY: an element of the map; words are read whole.
        match unsafe { (&raw const (*place).tag).read_volatile() } {
            held if held == tag && holds(place, key) => {
                // SAFETY: a member of an element of the map.
                return Some(unsafe { &raw mut (*place).traffic });
            }
            EMPTY if left == u32::MAX && !is_busy => return take(place, EMPTY, tag, key),
            EMPTY => break,
            LEFT if left == u32::MAX => left = index,
            TAKING => is_busy = true,
            _ => {}
        }
    }
    if is_busy {
        lost::count(Hook::Xdp, Cause::Limit);
        return None;
    }
    if left == u32::MAX {
        lost::count(Hook::Xdp, Cause::MapFull);
        return None;
    }
    take(FLOWS.get_ptr_mut(left)?, LEFT, tag, key)
}

#[inline(always)]
fn key_of(place: *mut Flow) -> *mut u64 {
    place.cast::<u64>().wrapping_add(offset_of!(Flow, key) / 8)
}

#[inline(always)]
fn holds(place: *mut Flow, key: Key) -> bool {
    let mut differs = 0;
    for (n, word) in key.into_iter().enumerate() {
        // SAFETY: an element of the map.
        differs |= word ^ unsafe { key_of(place).add(n).read_volatile() };
    }
    differs == 0
}

/// Takes a place that is free, `EMPTY` or `LEFT`, if there may be one more flow.
#[inline(always)]
fn take(place: *mut Flow, free: u64, tag: u64, key: Key) -> Option<*mut Traffic> {
    let count = FLOW_COUNT.get_ptr_mut(0)?;
    let most = u64::from(global!(CONFIG.flows));
    // SAFETY: elements of the maps.
    unsafe {
        if count.read_volatile() >= most {
            lost::count(Hook::Xdp, Cause::MapFull);
            return None;
        }
        if atomic::compare_exchange(&raw mut (*place).tag, free, TAKING) != free {
            lost::count(Hook::Xdp, Cause::Limit);
            return None;
        }
        // Some CPUs may come too far at once, by one flow each.
        atomic::add(count, 1);
        for (n, word) in key.into_iter().enumerate() {
            key_of(place).add(n).write_volatile(word);
        }
        atomic::store(&raw mut (*place).tag, tag);
        Some(&raw mut (*place).traffic)
    }
}
