//! `kfree_skb`: packets that the kernel dropped, by its own reason.

use core::ffi::c_void;

use probe_common::{
    abi::series::{CORE_REASONS, DropKey},
    hooks::Loss,
    labels::{ConnectFailure, Protocol, Side},
    loss,
};

use crate::{
    atomic,
    globals::global,
    kernel::{
        arg,
        skb::Skb,
        sock::{Sock, state},
        watched,
    },
    lost,
    maps::{self, CORE_DROPS, DROPS},
    series::{RowRef, owner, row_of, shard},
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
    count(reason, skb.protocol());
    if let Some(listener) = rx_sk
        && reason == global!(CONFIG.reason_not_specified)
    {
        half_open_reset(skb, listener);
    }
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

/// A reset that answers a SYN-ACK ends a half-open connection. The kernel tells
/// nothing but this: the segment is freed on the listener without a reason.
#[inline(always)]
fn half_open_reset(skb: Skb, listener: Sock) {
    let netns = listener.netns();
    if listener.state() != state::LISTEN || !skb.is_reset() || !watched(netns) {
        return;
    }
    let row = row_of(
        Side::Server,
        listener.local_port(),
        skb.destination().unwrap_or_default(),
        skb.source().unwrap_or_default(),
        owner(listener),
        netns,
        FULL,
    );
    if let Some(row) = RowRef::get(row) {
        row.connect_failures(ConnectFailure::Reset, 1);
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
