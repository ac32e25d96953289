//! `tcp_send_reset`, `tcp_receive_reset`.

use core::ffi::c_void;

use probe_common::{
    abi::series::{OVERFLOW_ROW, Side},
    hooks::Hook,
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
    preempt::{self, copies},
    series::{Direction, owner, reset, row_of, row_of_sock, row_of_tcp},
};

copies!(
    "tcp_send_reset",
    Hook::TcpSendReset,
    answer,
    sends,
    tcp_send_reset in SEND_RESET,
    tcp_send_reset2 = 2,
    tcp_send_reset3 = 3,
    tcp_send_reset4 = 4,
    tcp_send_reset5 = 5,
    tcp_send_reset6 = 6
);
copies!(
    "tcp_receive_reset",
    Hook::TcpReceiveReset,
    preempt::of_socket,
    receives,
    tcp_recv_reset in RECEIVE_RESET,
    tcp_recv_reset2 = 2,
    tcp_recv_reset3 = 3,
    tcp_recv_reset4 = 4,
    tcp_recv_reset5 = 5,
    tcp_recv_reset6 = 6
);

/// The number of a reset that is sent, by what it answers; one that answers
/// nothing has a socket.
#[inline(always)]
fn answer(ctx: *const c_void) -> Option<u64> {
    let answered = Skb::new(arg(ctx, 1) as *const c_void).map(Skb::id);
    answered.or_else(|| preempt::of_socket(ctx))
}

#[inline(always)]
fn sends(ctx: *const c_void) {
    const HOOK: Hook = Hook::TcpSendReset;
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
        None => row_of(Side::None, 0, [0; 2], peer_of_segment(), 0, netns, HOOK),
        Some(sk) if sk.state() == state::LISTEN => {
            let port = sk.local_port();
            let address = skb.and_then(Skb::destination).unwrap_or_default();
            let peer = peer_of_segment();
            row_of(Side::Server, port, address, peer, owner(sk), netns, HOOK)
        }
        Some(sk) => row_of_connection(sk, netns, HOOK),
    };
    reset(row, Direction::Sent, reason, HOOK);
}

#[inline(always)]
fn receives(ctx: *const c_void) {
    const HOOK: Hook = Hook::TcpReceiveReset;
    if let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void)
        && watched(sk.netns())
        && !is_own(sk)
    {
        let row = row_of_connection(sk, sk.netns(), HOOK);
        // The kernel does not tell why the peer sent it.
        reset(row, Direction::Received, None, HOOK);
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
fn row_of_connection(sk: Sock, netns: u32, hook: Hook) -> u32 {
    let side = match conn::get(sk) {
        // The overflow row is also that of one that was never open.
        Some(conn) if !conn::is_connecting(conn) && conn.row != OVERFLOW_ROW => return conn.row,
        Some(conn) => conn::side(conn),
        None if sk.state() == state::SYN_SENT => Side::Client,
        // One that closes while the peer still sends is gone already.
        None => match sk.tcp() {
            Some(tp) => return row_of_tcp(tp, conn::side_of(tp), hook),
            None => Side::Unknown,
        },
    };
    row_of_sock(sk, side, netns, hook)
}
