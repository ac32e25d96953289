//! `tcp_probe`: segments that arrive in ESTABLISHED, before they count.

use core::ffi::c_void;

use probe_common::{
    abi::conn::{Conn, tls::DONE},
    labels::Side,
};

use crate::{
    conn,
    globals::global,
    kernel::{
        arg,
        skb::Skb,
        sock::{Sock, TcpSock},
    },
    latency::{accept_queue, first_byte, tls},
    series::RowRef,
};

#[inline(always)]
pub fn tcp_probe(ctx: *const c_void) {
    // A socket with an entry is watched and is TCP.
    if let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void)
        && let Some(tp) = sk.surely_tcp()
        && let Some(conn) = conn::open_entry(tp)
    {
        conn::observe_rtt(conn, tp);
        conn::observe_window(conn, tp);
        if conn.used == 0 && conn::is_side(conn, Side::Server) && sk.has_user() {
            accept_queue::used(conn);
        }
        if let Some(skb) = Skb::new(arg(ctx, 1) as *const c_void) {
            segment(conn, tp, skb);
        }
    }
}

#[inline(always)]
fn segment(conn: &mut Conn, tp: TcpSock, skb: Skb) {
    let with_ce = skb.ce_segments();
    if with_ce != 0
        && let Some(row) = RowRef::get(conn.row)
    {
        row.received_ce_segments(with_ce.into());
    }
    let payload = skb.payload();
    // A segment that comes again is neither a request nor an answer, nor is a
    // keepalive with a byte of what has been acknowledged.
    let expected = tp.rcv_nxt();
    let has_news = payload != 0 && skb.end_seq().wrapping_sub(expected).cast_signed() > 0;
    // What comes before its turn waits in the kernel.
    let can_be_read = has_news && skb.seq().wrapping_sub(expected).cast_signed() <= 0;
    first_byte::arrived(conn, tp, can_be_read);
    if has_news && global!(CONFIG.payload) != 0 && conn.tls != DONE {
        tls::arrived(conn, tp, skb, payload);
    }
}
