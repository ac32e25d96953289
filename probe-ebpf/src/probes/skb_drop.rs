//! `kfree_skb`: packets that the kernel dropped, by its own reason.

mod sample;
mod whose;

use core::ffi::c_void;

use probe_common::{
    abi::drop::{CORE_REASONS, DropKey, FOLDED, NOBODY},
    hooks::Loss,
    labels::Protocol,
    loss,
};

use crate::{
    atomic,
    conn::half_open,
    globals::{CONFIG, global},
    kernel::{
        any, arg,
        skb::Skb,
        sock::{Sock, state},
        watched,
    },
    lost,
    maps::{self, CORE_DROPS, DROPS, SERVICE_DROPS},
    series::shard,
};

const FULL: Loss = loss!(kfree_skb, MapFull);

#[inline(always)]
pub fn kfree_skb(ctx: *const c_void) {
    let Some(skb) = Skb::new(arg(ctx, 0) as *const c_void) else {
        return;
    };
    let reason = arg(ctx, 2) as u32;
    // The verifier takes literal argument numbers only.
    let rx_sk = if global!(LAYOUT.arg_kfree_rx_sk) == 3 {
        Sock::new(arg(ctx, 3) as *const c_void)
    } else {
        None
    };
    if global!(CONFIG.netns_len) != 0 && !watched(netns_of(skb, rx_sk)) {
        return;
    }
    if let Some(listener) = rx_sk
        && reason == global!(CONFIG.reason_not_specified)
        && listener.state() == state::LISTEN
        && half_open::segment_freed(skb, listener)
    {
        return;
    }
    let protocol = skb.protocol();
    if !is_looked_at(reason) {
        return count(NOBODY, reason, protocol as u32);
    }
    let row = match protocol {
        Protocol::Tcp => whose::row(skb, rx_sk, reason),
        _ => NOBODY,
    };
    let (row, protocol) = (any(row, reason), any(protocol as u32, reason));
    if sample::is_due(reason) {
        sample::take(ctx, rx_sk, row, protocol);
    }
    if row == NOBODY {
        count(NOBODY, reason, protocol);
    } else {
        count_for(row, reason, protocol);
    }
}

/// Whether to look for whose it is, and to keep a sample. A short connection makes one
/// drop that nobody lacks, and to look for its service would cost more than all the rest.
#[inline(always)]
fn is_looked_at(reason: u32) -> bool {
    if reason >= CORE_REASONS {
        return true;
    }
    let words = (&raw const CONFIG.nobodys_drops).cast::<u32>();
    // SAFETY: the reason is below the number of bits in these words.
    let word = unsafe { words.add((reason / 32) as usize).read_volatile() };
    word >> (reason % 32) & 1 == 0
}

/// Counts a drop that has a side and a service. `protocol` is a [`Protocol`].
#[inline(never)]
fn count_for(row: u32, reason: u32, protocol: u32) {
    let key = DropKey {
        row,
        reason,
        protocol,
    };
    match maps::counter(&SERVICE_DROPS, &key) {
        // SAFETY: a value of `SERVICE_DROPS`, whose entries are never removed.
        Some(counter) => unsafe { atomic::add(counter, 1) },
        None => count(FOLDED, reason, protocol),
    }
}

/// Counts a drop by its reason. `protocol` is a [`Protocol`], `row` is [`NOBODY`] or [`FOLDED`].
#[inline(always)]
fn count(row: u32, reason: u32, protocol: u32) {
    let counter = if reason < CORE_REASONS {
        let shard = match row {
            NOBODY => shard(),
            _ => global!(CONFIG.shards),
        };
        let element = shard * CORE_REASONS + reason;
        CORE_DROPS.get_ptr_mut(element * Protocol::NAMES.len() as u32 + protocol)
    } else {
        let key = DropKey {
            row,
            reason,
            protocol,
        };
        maps::counter(&DROPS, &key)
    };
    match counter {
        // SAFETY: a value of `CORE_DROPS` or `DROPS`, whose entries are never removed.
        Some(counter) => unsafe { atomic::add(counter, 1) },
        None => lost::count(FULL, reason.into()),
    }
}

/// The namespace of the device, of the receiving or of the owning socket.
#[inline(always)]
fn netns_of(skb: Skb, rx_sk: Option<Sock>) -> u32 {
    match skb.netns() {
        0 => rx_sk.or_else(|| skb.sk()).map_or(0, Sock::netns),
        netns => netns,
    }
}
