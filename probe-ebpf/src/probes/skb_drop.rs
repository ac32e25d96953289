//! `kfree_skb`: packets that the kernel dropped, by its own reason.

use core::ffi::c_void;

use probe_common::{
    abi::series::{CORE_REASONS, DropKey},
    hooks::Loss,
    labels::Protocol,
    loss,
};

use crate::{
    atomic,
    conn::half_open,
    globals::global,
    kernel::{
        arg,
        skb::Skb,
        sock::{Sock, state},
        watched,
    },
    lost,
    maps::{self, CORE_DROPS, DROPS},
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
    count(reason, skb.protocol());
}

#[inline(always)]
fn count(reason: u32, protocol: Protocol) {
    let counter = if reason < CORE_REASONS {
        let element = shard() * CORE_REASONS + reason;
        CORE_DROPS.get_ptr_mut(element * Protocol::NAMES.len() as u32 + protocol as u32)
    } else {
        let key = DropKey {
            reason,
            protocol: protocol as u32,
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
