//! The hash table of flows in `FLOWS`: a flow is in the first free slot of the
//! [`FLOW_PROBE_LIMIT`] from its own on, until the collector evicts it for want of
//! packets. Packets of all CPUs claim slots; of two that want one at once a
//! compare-and-exchange lets one have it.

use core::mem::offset_of;

use probe_common::{
    abi::flow::{CLAIMED, EMPTY, EVICTED, FLOW_PROBE_LIMIT, Flow, FlowKey, TAKEN, Traffic},
    hooks::Loss,
    loss,
};

use crate::{
    atomic,
    globals::global,
    lost,
    maps::{FLOW_COUNT, FLOWS},
};

const FULL: Loss = loss!(xdp_packets, MapFull);
/// Two CPUs wanted one slot.
const CONTENDED: Loss = loss!(xdp_packets, Limit);

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

/// The counters of a flow; `None` where there is no slot for it, or another CPU
/// is just claiming the slot that may be its.
#[inline(always)]
pub fn traffic(key: Key) -> Option<*mut Traffic> {
    let hash = hash(key);
    let tag = hash | TAKEN;
    let mask = global!(CONFIG.flow_slots) - 1;
    // The first one whose flow was evicted, or none.
    let mut evicted = u32::MAX;
    // Whether one may be its that another CPU is just claiming.
    let mut is_contended = false;
    for n in 0..FLOW_PROBE_LIMIT {
        let index = ((hash >> 32) as u32).wrapping_add(n) & mask;
        let slot = FLOWS.get_ptr_mut(index)?;
        // SAFETY: a member of an element of `FLOWS`, read as the whole word that
        // it is, since other CPUs write it.
        match unsafe { (&raw const (*slot).tag).read_volatile() } {
            held if held == tag && holds(slot, key) => {
                // SAFETY: an element of `FLOWS`; only the address of a member is taken.
                return Some(unsafe { &raw mut (*slot).traffic });
            }
            EMPTY if evicted == u32::MAX && !is_contended => return claim(slot, EMPTY, tag, key),
            EMPTY => break,
            EVICTED if evicted == u32::MAX => evicted = index,
            CLAIMED => is_contended = true,
            _ => {}
        }
    }
    if is_contended {
        lost::count(CONTENDED, hash);
        return None;
    }
    if evicted == u32::MAX {
        lost::count(FULL, hash);
        return None;
    }
    claim(FLOWS.get_ptr_mut(evicted)?, EVICTED, tag, key)
}

#[inline(always)]
fn key_of(slot: *mut Flow) -> *mut u64 {
    slot.cast::<u64>().wrapping_add(offset_of!(Flow, key) / 8)
}

#[inline(always)]
fn holds(slot: *mut Flow, key: Key) -> bool {
    let mut differs = 0;
    for (n, word) in key.into_iter().enumerate() {
        // SAFETY: a word of the key in an element of `FLOWS`, whose tag says that it
        // has been written.
        differs |= word ^ unsafe { key_of(slot).add(n).read_volatile() };
    }
    differs == 0
}

/// Claims a slot that is free, `EMPTY` or `EVICTED`, if there may be one more flow.
#[inline(always)]
fn claim(slot: *mut Flow, free: u64, tag: u64, key: Key) -> Option<*mut Traffic> {
    let count = FLOW_COUNT.get_ptr_mut(0)?;
    let most = u64::from(global!(CONFIG.flows));
    // SAFETY: an element of `FLOWS` and that of `FLOW_COUNT`; who has exchanged the
    // tag for `CLAIMED` is the only one that writes the key.
    unsafe {
        if count.read_volatile() >= most {
            lost::count(FULL, tag);
            return None;
        }
        if atomic::compare_exchange(&raw mut (*slot).tag, free, CLAIMED) != free {
            lost::count(CONTENDED, tag);
            return None;
        }
        // Some CPUs may come too far at once, by one flow each.
        atomic::add(count, 1);
        for (n, word) in key.into_iter().enumerate() {
            key_of(slot).add(n).write_volatile(word);
        }
        atomic::store(&raw mut (*slot).tag, tag);
        Some(&raw mut (*slot).traffic)
    }
}
