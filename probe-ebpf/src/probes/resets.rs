//! `tcp_send_reset`, `tcp_receive_reset`.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use probe_common::{
    lost::Hook,
    series::{OVERFLOW_ROW, Side},
};

use crate::{
    conn,
    globals::global,
    kernel::{
        arg,
        skb::Skb,
        sock::{Address, Sock, state},
        watched,
    },
    series::{Direction, owner, reset, row_of, row_of_sock, row_of_tcp},
};

#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    let ctx: *const c_void = ctx.as_ptr();
    let sk = Sock::new(arg(ctx, 0) as *const c_void);
    let skb = Skb::new(arg(ctx, 1) as *const c_void);
    // The verifier takes literal argument numbers only.
    let reason = if global!(LAYOUT.arg_reset_reason) == 2 {
        Some(arg(ctx, 2) as u32)
    } else {
        None
    };
    sent(sk, skb, reason);
    0
}

#[inline(always)]
fn sent(sk: Option<Sock>, skb: Option<Skb>, reason: Option<u32>) {
    const HOOK: Hook = Hook::TcpSendReset;
    let netns = match (sk, skb) {
        (Some(sk), _) => sk.netns(),
        (None, Some(skb)) => skb.netns(),
        (None, None) => 0,
    };
    if !watched(netns) {
        return;
    }
    let peer_of_segment = || -> Address { skb.and_then(Skb::source).unwrap_or_default() };
    let row = match sk {
        None => row_of(Side::None, 0, [0; 2], peer_of_segment(), 0, netns, HOOK),
        Some(sk) if sk.state() == state::LISTEN => {
            let (port, address) = (sk.local_port(), sk.local());
            let peer = peer_of_segment();
            row_of(Side::Server, port, address, peer, owner(sk), netns, HOOK)
        }
        Some(sk) => row_of_connection(sk, netns, HOOK),
    };
    reset(row, Direction::Sent, reason, HOOK);
}

#[btf_tracepoint(function = "tcp_receive_reset")]
fn tcp_recv_reset(ctx: BtfTracePointContext) -> i32 {
    const HOOK: Hook = Hook::TcpReceiveReset;
    let ctx: *const c_void = ctx.as_ptr();
    let sk = Sock::new(arg(ctx, 0) as *const c_void);
    if let Some(sk) = sk.filter(|sk| watched(sk.netns())) {
        let row = row_of_connection(sk, sk.netns(), HOOK);
        // The kernel does not tell why the peer sent it.
        reset(row, Direction::Received, None, HOOK);
    }
    0
}

/// The row of a connection that may be open, closed just now, or in a state
/// without a full socket.
#[inline(always)]
fn row_of_connection(sk: Sock, netns: u32, hook: Hook) -> u32 {
    let side = match conn::get(sk) {
        // The overflow row is also that of a mark without a connection.
        Some(conn) if !conn::is_connecting(conn) && conn.row != OVERFLOW_ROW => return conn.row,
        Some(conn) => conn::side(conn),
        None if sk.state() == state::SYN_SENT => Side::Client,
        // One that closes while the peer still sends is gone already.
        None => match sk.tcp() {
            Some(tp) if conn::is_listening(tp) => return row_of_tcp(tp, Side::Server, hook),
            _ => Side::Unknown,
        },
    };
    row_of_sock(sk, side, netns, hook)
}
