//! `tcp_retransmit`, `retrans_synack`: segments sent again.
//!
//! An event can stand for many segments or, on some kernels, for none that was
//! sent; `total_retrans` is raised with the counter `RetransSegs`, so its
//! differences are what counts.

use core::ffi::c_void;

use probe_common::{
    hooks::Loss,
    labels::{Retransmit, Side},
    loss,
};

use crate::{
    conn,
    kernel::{
        arg,
        skb::Skb,
        sock::{IPPROTO_TCP, Sock, TcpSock, state},
        watched,
    },
    lost,
    maps::{HandshakeKey, SYNACKS},
    series::{RowRef, owner, row_of, row_of_sock},
};

/// `icsk_ca_state` and `icsk_pending` values
/// (`include/net/tcp.h`, `include/net/inet_connection_sock.h`).
const CA_RECOVERY: u8 = 3;
const CA_LOSS: u8 = 4;
const PENDING_LOSS_PROBE: u8 = 5;

#[inline(always)]
pub fn tcp_retransmit(ctx: *const c_void) {
    if let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void)
        && sk.protocol() == IPPROTO_TCP
        && watched(sk.netns())
        && let Some(tp) = sk.tcp()
    {
        sent_again(tp, Skb::new(arg(ctx, 1) as *const c_void));
    }
}

#[inline(always)]
fn sent_again(tp: TcpSock, segment: Option<Skb>) {
    const FULL: Loss = loss!(tcp_retransmit, MapFull);
    let sk = tp.sock();
    let netns = sk.netns();
    let state = sk.state();
    if matches!(state, state::SYN_SENT | state::SYN_RECV) {
        let conn = conn::get(sk).or_else(|| {
            // In SYN_SENT since before the start: all but this one is the past.
            conn::start_handshake(sk, Side::Client);
            let conn = conn::get(sk)?;
            conn.since_ns = 0;
            // Whoever was interrupted by the timer.
            conn.pid = 0;
            conn.retransmits = tp.total_retrans().saturating_sub(1);
            Some(conn)
        });
        let number = row_of_sock(sk, Side::Client, netns, FULL);
        if let (Some(conn), Some(row)) = (conn, RowRef::get(number)) {
            conn::flush_retransmits(conn, tp, Retransmit::Syn, row);
        }
        return;
    }
    let conn = match conn::open_entry(tp) {
        Some(conn) => conn,
        None if conn::has_overflowed() => return,
        // Open before the start and not met yet: all but this one is the past.
        None => match conn::adopt(tp, state, FULL) {
            Some(conn) => {
                conn.retransmits = conn.retransmits.saturating_sub(1);
                let bytes = segment.map_or(0, Skb::len);
                let known = &mut conn.flushed.retransmitted_bytes;
                *known = known.saturating_sub(bytes.into());
                conn
            }
            None => return,
        },
    };
    if let Some(row) = RowRef::get(conn.row) {
        conn::flush_retransmits(conn, tp, cause(tp, segment), row);
    }
}

#[inline(always)]
fn cause(tp: TcpSock, segment: Option<Skb>) -> Retransmit {
    let is_last = || segment.is_some_and(|segment| segment.end_seq() == tp.snd_nxt());
    match (tp.ca_state(), tp.pending()) {
        // A probe that became due after the loss was found; it is the last segment.
        (CA_RECOVERY, PENDING_LOSS_PROBE) if is_last() && tp.timer_is_due() => {
            Retransmit::TailLossProbe
        }
        (CA_LOSS, 0) => Retransmit::Timeout,
        (CA_LOSS, _) => Retransmit::Other,
        (CA_RECOVERY, _) => Retransmit::Fast,
        (_, PENDING_LOSS_PROBE) => Retransmit::TailLossProbe,
        _ => Retransmit::Other,
    }
}

#[inline(always)]
pub fn retrans_synack(ctx: *const c_void) {
    let sk = Sock::new(arg(ctx, 0) as *const c_void);
    let req = Sock::new(arg(ctx, 1) as *const c_void);
    if let Some(req) = req.filter(|req| watched(req.netns())) {
        synack_sent_again(sk.map_or(0, owner), req);
    }
}

#[inline(always)]
fn synack_sent_again(owner: u64, req: Sock) {
    const FULL: Loss = loss!(retrans_synack, MapFull);
    let netns = req.netns();
    let (port, address, remote) = (req.local_port(), req.local(), req.remote());
    let number = row_of(Side::Server, port, address, remote, owner, netns, FULL);
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
        lost::count(FULL, port.into());
    }
}
