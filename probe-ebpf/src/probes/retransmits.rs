//! `tcp_retransmit_skb`, `tcp_retransmit_synack`: segments sent again.
//!
//! An event can stand for many segments or, on some kernels, for none that was
//! sent; `total_retrans` is raised with the counter `RetransSegs`, so its
//! differences are what counts.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use probe_common::{
    conn::{CONNECTING, Conn},
    lost::{Cause, Hook},
    series::{Retransmit, Side},
};

use crate::{
    conn,
    kernel::{
        arg,
        sock::{IPPROTO_TCP, Sock, TcpSock, state},
        watched,
    },
    lost,
    maps::{HandshakeKey, SYNACKS},
    series::{RowRef, row_of_sock},
};

/// `icsk_ca_state` and `icsk_pending` values
/// (`include/net/tcp.h`, `include/net/inet_connection_sock.h`).
const CA_RECOVERY: u8 = 3;
const CA_LOSS: u8 = 4;
const PENDING_LOSS_PROBE: u8 = 5;

#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn tcp_retransmit(ctx: BtfTracePointContext) -> i32 {
    const HOOK: Hook = Hook::TcpRetransmitSkb;
    let ctx: *const c_void = ctx.as_ptr();
    let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void) else {
        return 0;
    };
    let netns = sk.netns();
    if sk.protocol() != IPPROTO_TCP || !watched(netns) {
        return 0;
    }
    let Some(tp) = sk.tcp() else {
        return 0;
    };
    let state = sk.state();
    let handshake = matches!(state, state::SYN_SENT | state::SYN_RECV);
    let why = if handshake {
        Retransmit::Syn
    } else {
        cause(tp)
    };
    if let Some(conn) = conn::get(tp) {
        conn::flush_retransmits(conn, tp, why);
        return 0;
    }
    if handshake {
        // Some kernels fire for a SYN that could not be sent, too.
        if tp.total_retrans() == 0 {
            return 0;
        }
        // The first SYN sent again: from here on the connection is known, with
        // the time of its first SYN, which the kernel forgets.
        let connecting = Conn {
            since_ns: tp.first_syn_ns(conn::now_ns()),
            row: row_of_sock(sk, Side::Client, netns, HOOK),
            flags: CONNECTING,
            side: Side::Client as u32,
            ..Conn::default()
        };
        if conn::insert(tp, &connecting, HOOK)
            && let Some(conn) = conn::get(tp)
        {
            conn::flush_retransmits(conn, tp, why);
        }
        return 0;
    }
    if !conn::overflowed() {
        // Open before the start and not met yet: all but this one is the past.
        conn::adopt(tp, netns, state, HOOK);
        if let Some(conn) = conn::get(tp) {
            conn.retransmits = conn.retransmits.saturating_sub(1);
            conn::flush_retransmits(conn, tp, why);
        }
    }
    0
}

#[inline(always)]
fn cause(tp: TcpSock) -> Retransmit {
    match (tp.ca_state(), tp.pending()) {
        (CA_LOSS, 0) => Retransmit::Timeout,
        (CA_LOSS, _) => Retransmit::Other,
        (CA_RECOVERY, _) => Retransmit::Fast,
        (_, PENDING_LOSS_PROBE) => Retransmit::TailLossProbe,
        _ => Retransmit::Other,
    }
}

#[btf_tracepoint(function = "tcp_retransmit_synack")]
fn retrans_synack(ctx: BtfTracePointContext) -> i32 {
    const HOOK: Hook = Hook::TcpRetransmitSynack;
    let ctx: *const c_void = ctx.as_ptr();
    let Some(req) = Sock::new(arg(ctx, 1) as *const c_void) else {
        return 0;
    };
    let netns = req.netns();
    if !watched(netns) {
        return 0;
    }
    let number = row_of_sock(req, Side::Server, netns, HOOK);
    if let Some(row) = RowRef::get(number) {
        row.retransmits(Retransmit::SynAck, 1);
    }
    let key = HandshakeKey {
        remote: req.remote(),
        netns,
        local_port: req.local_port(),
        remote_port: req.remote_port(),
    };
    if let Some(first_us) = req.first_synack_us()
        && SYNACKS.insert(&key, &first_us, 0).is_err()
    {
        lost::count(HOOK, Cause::MapFull);
    }
    0
}
