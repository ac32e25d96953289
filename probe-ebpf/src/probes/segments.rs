//! `tcp_probe`: segments that arrive in ESTABLISHED, before they count;
//! `tcp_rcv_space_adjust`: the program reads; `tcp_sendmsg_locked` or
//! `sock_send_length`: it sends.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use probe_common::{conn::Conn, series::Side, tls};

use crate::{
    conn,
    globals::global,
    kernel::{
        arg,
        kfunc::uninterrupted,
        msg_count,
        skb::{FIN, Skb},
        sock::{IPPROTO_TCP, Sock, TcpSock},
    },
    turns,
};

#[btf_tracepoint(function = "tcp_probe")]
fn tcp_probe(ctx: BtfTracePointContext) -> i32 {
    let ctx: *const c_void = ctx.as_ptr();
    let (sk, skb) = (arg(ctx, 0) as *const c_void, arg(ctx, 1) as *const c_void);
    uninterrupted(|| {
        // A socket with an entry is watched and is TCP.
        if let Some(sk) = Sock::new(sk)
            && let Some(tp) = sk.tcp()
            && let Some(conn) = conn::settled(tp)
        {
            conn::observe_rtt(conn, tp);
            conn::observe_window(conn, tp);
            if conn.used == 0 && conn.side == Side::Server as u32 && sk.has_user() {
                turns::used(conn);
            }
            if let Some(skb) = Skb::new(skb) {
                segment(conn, tp, skb);
            }
        }
    });
    0
}

#[inline(always)]
fn segment(conn: &mut Conn, tp: TcpSock, skb: Skb) {
    let length = skb.end_seq().wrapping_sub(skb.seq());
    let has_payload = match length {
        0 => false,
        // A byte, or a FIN.
        1 => skb.tcp_header().is_none_or(|(_, flags)| flags & FIN == 0),
        _ => true,
    };
    turns::arrived(conn, tp, has_payload);
    if has_payload && global!(CONFIG.payload) != 0 && conn.tls != tls::DONE {
        crate::tls::arrived(conn, tp, skb);
    }
}

/// The entry of a socket that a program is using.
#[inline(always)]
fn in_use(sk: *const c_void) -> Option<(&'static mut Conn, TcpSock)> {
    let sk = Sock::new(sk)?;
    let conn = conn::get(sk).filter(|conn| !conn::is_connecting(conn))?;
    Some((conn, sk.tcp()?))
}

#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
fn tcp_read(ctx: BtfTracePointContext) -> i32 {
    let ctx: *const c_void = ctx.as_ptr();
    let sk = arg(ctx, 0) as *const c_void;
    uninterrupted(|| {
        if let Some((conn, tp)) = in_use(sk) {
            turns::used(conn);
            conn::observe_window(conn, tp);
        }
    });
    0
}

/// Before the data of a segment is copied (6.16 and later).
#[btf_tracepoint(function = "tcp_sendmsg_locked")]
fn tcp_send(ctx: BtfTracePointContext) -> i32 {
    let ctx: *const c_void = ctx.as_ptr();
    let (sk, length) = (arg(ctx, 0) as *const c_void, msg_count(arg(ctx, 1)));
    uninterrupted(|| {
        if let Some((conn, tp)) = in_use(sk) {
            turns::sent(conn, tp, length);
        }
    });
    0
}

/// When a send of any socket has returned (6.3 and later).
#[btf_tracepoint(function = "sock_send_length")]
fn sock_send(ctx: BtfTracePointContext) -> i32 {
    let ctx: *const c_void = ctx.as_ptr();
    let (sk, sent) = (arg(ctx, 0) as *const c_void, arg(ctx, 1) as i32);
    if sent <= 0 || !Sock::new(sk).is_some_and(|sk| sk.protocol() == IPPROTO_TCP) {
        return 0;
    }
    uninterrupted(|| {
        if let Some((conn, tp)) = in_use(sk) {
            turns::sent(conn, tp, u64::from(sent.cast_unsigned()));
        }
    });
    0
}
