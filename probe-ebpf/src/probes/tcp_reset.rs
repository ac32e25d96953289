//! `tcp_send_reset`, `tcp_recv_reset`: resets, by the kernel's reason.

use core::ffi::c_void;

use probe_common::{
    abi::series::OVERFLOW_ROW,
    hooks::Loss,
    labels::{Direction, Side},
    loss,
};

use crate::{
    conn,
    globals::global,
    kernel::{
        addr::Address,
        arg,
        skb::Skb,
        sock::{Sock, state},
        watched,
    },
    preempt,
    series::{owner, reset, row_of, row_of_sock, row_of_tcp},
};

/// The number of a reset that is sent, by what it answers; one that answers
/// nothing has a socket.
#[inline(always)]
pub fn answered(ctx: *const c_void) -> Option<u64> {
    let answered = Skb::new(arg(ctx, 1) as *const c_void).map(Skb::id);
    answered.or_else(|| preempt::of_socket(ctx))
}

#[inline(always)]
pub fn tcp_send_reset(ctx: *const c_void) {
    const FULL: Loss = loss!(tcp_send_reset, MapFull);
    let sk = Sock::new(arg(ctx, 0) as *const c_void);
    let skb = Skb::new(arg(ctx, 1) as *const c_void);
    // The verifier takes literal argument numbers only.
    let reason = if global!(LAYOUT.arg_reset_reason) == 2 {
        Some(arg(ctx, 2) as u32)
    } else {
        None
    };
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
        None => row_of(Side::None, 0, [0; 2], peer_of_segment(), 0, netns, FULL),
        Some(sk) if sk.state() == state::LISTEN => {
            let port = sk.local_port();
            let address = skb.and_then(Skb::destination).unwrap_or_default();
            let peer = peer_of_segment();
            row_of(Side::Server, port, address, peer, owner(sk), netns, FULL)
        }
        Some(sk) => row_of_connection(sk, netns, FULL),
    };
    reset(row, Direction::Sent, reason, FULL);
}

#[inline(always)]
pub fn tcp_recv_reset(ctx: *const c_void) {
    const FULL: Loss = loss!(tcp_recv_reset, MapFull);
    if let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void)
        && watched(sk.netns())
        && !is_own(sk)
    {
        let row = row_of_connection(sk, sk.netns(), FULL);
        // The kernel does not tell why the peer sent it.
        reset(row, Direction::Received, None, FULL);
    }
}

/// Whether no reset has come, though the kernel handles the connection as if one
/// had.
#[inline(always)]
fn is_own(sk: Sock) -> bool {
    match (conn::get(sk), sk.tcp()) {
        (Some(conn), Some(tp)) => conn::is_refused(conn, tp, sk.state()),
        _ => false,
    }
}

/// The row of a connection that may be open, closed just now, or in a state
/// without a full socket.
#[inline(always)]
fn row_of_connection(sk: Sock, netns: u32, full: Loss) -> u32 {
    let side = match conn::get(sk) {
        // The overflow row is also that of one that was never open.
        Some(conn) if !conn::is_connecting(conn) && conn.row != OVERFLOW_ROW => return conn.row,
        Some(conn) => conn::side(conn),
        None if sk.state() == state::SYN_SENT => Side::Client,
        // One that closes while the peer still sends is gone already.
        None => match sk.tcp() {
            Some(tp) => return row_of_tcp(tp, conn::side_of(tp), full),
            None => Side::Unknown,
        },
    };
    row_of_sock(sk, side, netns, full)
}
