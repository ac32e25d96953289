//! `tcp_read`: the program reads; `tcp_send` or `sock_send`: it sends.

use core::ffi::c_void;

use probe_common::abi::conn::{CLOSED, Conn, OPEN};

use crate::{
    conn,
    kernel::{
        arg,
        msghdr::Message,
        sock::{IPPROTO_TCP, Sock, TcpSock},
    },
    latency::{accept_queue, first_byte, tls},
};

/// The entry of a socket that a program is using, to send or to read.
#[inline(always)]
fn in_use(sk: *const c_void, sends: bool) -> Option<(&'static mut Conn, TcpSock)> {
    let sk = Sock::new(sk)?;
    let conn = conn::get(sk).filter(|conn| conn.flags & CLOSED == 0)?;
    let tp = sk.surely_tcp()?;
    if conn::is_connecting(conn) {
        first_byte::used_early(conn, tp, sends);
        return None;
    }
    Some((conn, tp))
}

#[inline(always)]
pub fn tcp_read(ctx: *const c_void) {
    if let Some((conn, tp)) = in_use(arg(ctx, 0) as *const c_void, false) {
        accept_queue::used(conn);
        conn::observe_window(conn, tp);
        if conn.flags & OPEN == 0 && tp.has_read_all() {
            conn.data_segs = tp.data_segs_in();
        }
    }
}

/// Before the data of a segment is copied (6.16 and later).
#[inline(always)]
pub fn tcp_send(ctx: *const c_void) {
    if let Some((conn, tp)) = in_use(arg(ctx, 0) as *const c_void, true) {
        let message = Message::new(arg(ctx, 1));
        if let Some(message) = message {
            tls::sends(conn, tp, message);
        }
        first_byte::sent(conn, tp, message.map_or(0, Message::count));
    }
}

/// When a send of any socket has returned (6.3 and later).
#[inline(always)]
pub fn sock_send(ctx: *const c_void) {
    let (sk, sent) = (arg(ctx, 0) as *const c_void, arg(ctx, 1) as i32);
    if sent > 0
        && Sock::new(sk).is_some_and(|sk| sk.protocol() == IPPROTO_TCP)
        && let Some((conn, tp)) = in_use(sk, true)
    {
        first_byte::sent(conn, tp, u64::from(sent.cast_unsigned()));
    }
}
