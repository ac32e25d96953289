//! `kfree_skb`: packets that the kernel dropped, by its own reason.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext, bindings::BPF_NOEXIST, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use probe_common::{
    lost::{Cause, Hook},
    series::{DropKey, Failed, Side},
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
    maps::DROPS,
    series::{RowRef, row_of},
};

const HOOK: Hook = Hook::KfreeSkb;

#[btf_tracepoint(function = "kfree_skb")]
fn kfree_skb(ctx: BtfTracePointContext) -> i32 {
    let ctx: *const c_void = ctx.as_ptr();
    let Some(skb) = Skb::new(arg(ctx, 0) as *const c_void) else {
        return 0;
    };
    let reason = arg(ctx, 2) as u32;
    // The verifier takes literal argument numbers only.
    let rx_sk = if global!(LAYOUT.arg_kfree_rx_sk) == 3 {
        Sock::new(arg(ctx, 3) as *const c_void)
    } else {
        None
    };
    if global!(CONFIG.netns_len) != 0 && !watched(netns_of(skb, rx_sk)) {
        return 0;
    }
    let key = DropKey {
        reason,
        protocol: skb.protocol() as u32,
    };
    let counter = DROPS.get_ptr_mut(&key).or_else(|| {
        // Somebody else may insert it first; then that entry is found.
        let _ = DROPS.insert(&key, &0, u64::from(BPF_NOEXIST));
        DROPS.get_ptr_mut(&key)
    });
    match counter {
        // SAFETY: a map value; entries of this map are never removed.
        Some(counter) => unsafe { atomic::add(counter, 1) },
        None => lost::count(HOOK, Cause::MapFull),
    }
    if let Some(listener) = rx_sk
        && reason == global!(CONFIG.reason_not_specified)
    {
        half_open_reset(skb, listener);
    }
    0
}

/// A reset that answers a SYN-ACK ends a half-open connection. The kernel tells
/// nothing but this: the segment is freed on the listener without a reason.
#[inline(always)]
fn half_open_reset(skb: Skb, listener: Sock) {
    if listener.state() != state::LISTEN || !skb.is_reset() {
        return;
    }
    let netns = listener.netns();
    let row = row_of(
        Side::Server,
        listener.local_port(),
        listener.local(),
        skb.source().unwrap_or_default(),
        netns,
        HOOK,
    );
    if watched(netns)
        && let Some(row) = RowRef::get(row)
    {
        row.failed(Failed::Reset);
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
