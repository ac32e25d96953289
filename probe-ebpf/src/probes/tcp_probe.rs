//! `tcp_probe`: segments that arrive in ESTABLISHED, before they count;
//! `tcp_rcv_space_adjust`: the program reads; `tcp_sendmsg_locked` or
//! `sock_send_length`: it sends.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use probe_common::{
    abi::conn::{CLOSED, CONNECTING, Conn, OPEN},
    abi::series::Side,
    abi::tls::DONE,
    hooks::Hook,
};

use crate::{
    conn,
    globals::global,
    kernel::{
        Message, arg,
        skb::Skb,
        sock::{IPPROTO_TCP, Sock, TcpSock},
    },
    latency::{first_byte, tls},
    preempt::{self, copies},
};

copies!(
    "tcp_probe",
    Hook::TcpProbe,
    preempt::of_socket,
    arrives,
    tcp_probe in PROBE,
    tcp_probe2 = 2,
    tcp_probe3 = 3,
    tcp_probe4 = 4,
    tcp_probe5 = 5,
    tcp_probe6 = 6
);
copies!(
    "tcp_rcv_space_adjust",
    Hook::TcpRcvSpaceAdjust,
    preempt::of_socket,
    reads,
    tcp_read in READ,
    tcp_read2 = 2,
    tcp_read3 = 3,
    tcp_read4 = 4,
    tcp_read5 = 5,
    tcp_read6 = 6
);
copies!(
    "tcp_sendmsg_locked",
    Hook::TcpSendmsgLocked,
    preempt::of_socket,
    sends,
    tcp_send in SEND,
    tcp_send2 = 2,
    tcp_send3 = 3,
    tcp_send4 = 4,
    tcp_send5 = 5,
    tcp_send6 = 6
);

#[inline(always)]
fn arrives(ctx: *const c_void) {
    // A socket with an entry is watched and is TCP.
    if let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void)
        && let Some(tp) = sk.tcp()
        && let Some(conn) = conn::settled(tp)
    {
        conn::observe_rtt(conn, tp);
        conn::observe_window(conn, tp);
        if conn.used == 0 && conn.side == Side::Server as u32 && sk.has_user() {
            first_byte::used(conn);
        }
        if let Some(skb) = Skb::new(arg(ctx, 1) as *const c_void) {
            segment(conn, tp, skb);
        }
    }
}

#[inline(always)]
fn segment(conn: &mut Conn, tp: TcpSock, skb: Skb) {
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

/// The entry of a socket that a program is using.
#[inline(always)]
fn in_use(sk: *const c_void) -> Option<(&'static mut Conn, TcpSock)> {
    let sk = Sock::new(sk)?;
    let conn = conn::get(sk).filter(|conn| conn.flags & (CONNECTING | CLOSED) == 0)?;
    Some((conn, sk.tcp()?))
}

#[inline(always)]
fn reads(ctx: *const c_void) {
    if let Some((conn, tp)) = in_use(arg(ctx, 0) as *const c_void) {
        first_byte::used(conn);
        conn::observe_window(conn, tp);
        if conn.flags & OPEN == 0 && tp.has_read_all() {
            conn.data_segs = tp.data_segs_in();
        }
    }
}

/// Before the data of a segment is copied (6.16 and later).
#[inline(always)]
fn sends(ctx: *const c_void) {
    if let Some((conn, tp)) = in_use(arg(ctx, 0) as *const c_void) {
        let message = Message::new(arg(ctx, 1));
        if let Some(message) = message {
            tls::sends(conn, tp, message);
        }
        first_byte::sent(conn, tp, message.map_or(0, Message::count));
    }
}

/// When a send of any socket has returned (6.3 and later).
#[btf_tracepoint(function = "sock_send_length")]
fn sock_send(ctx: BtfTracePointContext) -> i32 {
    let ctx: *const c_void = ctx.as_ptr();
    let (sk, sent) = (arg(ctx, 0) as *const c_void, arg(ctx, 1) as i32);
    if sent > 0
        && Sock::new(sk).is_some_and(|sk| sk.protocol() == IPPROTO_TCP)
        && let Some((conn, tp)) = in_use(sk)
    {
        first_byte::sent(conn, tp, u64::from(sent.cast_unsigned()));
    }
    0
}
