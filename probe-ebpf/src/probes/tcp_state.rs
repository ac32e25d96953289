//! `inet_sock_set_state`: the life of a connection, and `tcp_destroy_sock`: its
//! end, where the life was cut short.
//!
//! Transitions that tell nothing (FIN_WAIT1 to FIN_WAIT2, …) leave before
//! anything is read.

use core::ffi::c_void;

use probe_common::{
    abi::conn::{CLOSED, Conn, OPEN, STATUS_COMPLETE},
    abi::iter::ListenerKey,
    abi::series::{Closed, Failed, Kind, Retransmit, Side},
    hooks::{Cause, Hook},
};

use crate::{
    atomic, conn,
    globals::global,
    kernel::{
        arg,
        sock::{IPPROTO_TCP, Sock, TcpSock, state},
        watched,
    },
    latency::{first_byte, tls},
    lost,
    maps::{self, LISTENER_DROPS},
    preempt::{self, copies},
    series::{RowRef, row_of_tcp},
};

const HOOK: Hook = Hook::SockSetState;

const ECONNRESET: i32 = 104;
const EPIPE: i32 = 32;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;
const EHOSTDOWN: i32 = 112;
const EHOSTUNREACH: i32 = 113;
const ENETUNREACH: i32 = 101;
const ENETDOWN: i32 = 100;

copies!(
    "inet_sock_set_state",
    Hook::SockSetState,
    change,
    changes,
    sock_set_state in SET_STATE,
    sock_set_state2 = 2,
    sock_set_state3 = 3,
    sock_set_state4 = 4,
    sock_set_state5 = 5,
    sock_set_state6 = 6
);
copies!(
    "tcp_destroy_sock",
    Hook::TcpDestroySock,
    preempt::of_socket,
    destroyed,
    tcp_destroy in DESTROY,
    tcp_destroy2 = 2,
    tcp_destroy3 = 3,
    tcp_destroy4 = 4,
    tcp_destroy5 = 5,
    tcp_destroy6 = 6
);

/// Whether a transition tells anything.
#[inline(always)]
fn tells(old: u8, new: u8) -> bool {
    match new {
        state::SYN_SENT => true,
        // A child; both ends sending a SYN at once stays the client's.
        state::SYN_RECV => old == state::LISTEN,
        state::ESTABLISHED => old != state::LISTEN,
        // Of a listener its drops.
        state::CLOSE => old != state::CLOSE,
        // From here on it does not count as open.
        state::LAST_ACK => old == state::CLOSE_WAIT,
        _ => old == state::ESTABLISHED,
    }
}

/// The number of a transition that tells something.
#[inline(always)]
fn change(ctx: *const c_void) -> Option<u64> {
    let (old, new) = (arg(ctx, 1) as u8, arg(ctx, 2) as u8);
    let socket = preempt::of_socket(ctx).filter(|_| tells(old, new))?;
    Some(socket ^ (u64::from(old) << 4 | u64::from(new)) << 48)
}

#[inline(always)]
fn changes(ctx: *const c_void) {
    let (old, new) = (arg(ctx, 1) as u8, arg(ctx, 2) as u8);
    if !tells(old, new) {
        return;
    }
    let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void) else {
        return;
    };
    // The socket of MPTCP itself passes here too; its subflows are TCP.
    if sk.protocol() != IPPROTO_TCP {
        return;
    }
    if global!(CONFIG.netns_len) != 0 && !watched(sk.netns()) {
        return;
    }
    match new {
        state::SYN_SENT => conn::begins(sk, Side::Client),
        state::SYN_RECV => conn::begins(sk, Side::Server),
        _ => {
            if let Some(tp) = sk.tcp() {
                moved(tp, old, new);
            }
        }
    }
}

#[inline(always)]
fn moved(tp: TcpSock, old: u8, new: u8) {
    if old == state::LISTEN {
        return listens_no_more(tp);
    }
    let fallback = match old {
        state::SYN_SENT => Side::Client,
        _ => Side::Server,
    };
    if new == state::ESTABLISHED {
        conn::established(tp, fallback);
        return;
    }
    let conn = conn::get(tp.sock());
    if conn.as_ref().is_some_and(|conn| conn::is_closed(conn)) {
        return;
    }
    match (old, new) {
        (state::SYN_SENT | state::SYN_RECV, _) => {
            // No SYN left, or a child could not be kept.
            let is_local = old == state::SYN_RECV || tp.snd_nxt() == tp.snd_una();
            let without_error = if is_local {
                Failed::Local
            } else {
                Failed::Cancelled
            };
            failed(conn, tp, without_error, fallback);
        }
        (_, state::CLOSE) => match conn::settle(tp, conn) {
            Some(conn) => closed(conn, tp, old),
            None => closed_unknown(tp, old),
        },
        _ => {
            if let Some(conn) = conn::settle(tp, conn) {
                leaves_established(conn, tp, new);
            }
        }
    }
}

/// A listener closes: what it dropped since it was last visited is kept.
#[inline(always)]
fn listens_no_more(tp: TcpSock) {
    let drops = u64::from(tp.drops());
    if drops == 0 {
        return;
    }
    let sk = tp.sock();
    let key = ListenerKey {
        address: sk.local(),
        netns: sk.netns(),
        port: tp.local_port().into(),
    };
    match maps::counter(&LISTENER_DROPS, &key) {
        // SAFETY: a map value; one that is being removed takes what is added along.
        Some(sum) => unsafe { atomic::add(sum, drops) },
        None => lost::count(HOOK, Cause::MapFull),
    }
}

#[inline(always)]
fn destroyed(ctx: *const c_void) {
    let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void) else {
        return;
    };
    let Some(conn) = conn::get(sk) else {
        return;
    };
    // Its close was missed.
    if !conn::is_closed(conn)
        && let Some(tp) = sk.tcp()
    {
        if conn::is_connecting(conn) {
            let side = conn::side(conn);
            // The error may have been handed to the program and be gone.
            let without_error = match side {
                Side::Server => Failed::Local,
                _ => Failed::Other,
            };
            failed(Some(conn), tp, without_error, side);
        } else {
            // Without an error both ends sent a FIN, if this one did.
            let has_sent_fin = conn.flags & OPEN == 0 || tp.fin_acked(conn::syn(conn::side(conn)));
            let old = match tp.err() {
                _ if !has_sent_fin => state::ESTABLISHED,
                0 => state::LAST_ACK,
                _ => state::FIN_WAIT1,
            };
            closed(conn, tp, old);
        }
    }
    conn::remove(sk);
}

fn failure(error: i32) -> Failed {
    match error {
        ECONNREFUSED => Failed::Refused,
        ETIMEDOUT => Failed::Timeout,
        ENETUNREACH | EHOSTUNREACH | ENETDOWN | EHOSTDOWN => Failed::Unreachable,
        ECONNRESET => Failed::Reset,
        _ => Failed::Other,
    }
}

/// A handshake that came to nothing, `without_error` why if the socket has no
/// error. `fallback` is the side where there is no entry.
#[inline(always)]
fn failed(conn: Option<&'static mut Conn>, tp: TcpSock, without_error: Failed, fallback: Side) {
    let side = conn.as_ref().map_or(fallback, |conn| conn::side(conn));
    let number = row_of_tcp(tp, side, HOOK);
    if let Some(row) = RowRef::get(number) {
        row.failed(match tp.err() {
            0 => without_error,
            error => failure(error),
        });
        // What a SYN's retransmission did not show: one that failed to be sent.
        let known = conn.as_ref().map_or(0, |conn| conn.retransmits);
        if matches!(side, Side::Client) {
            let unseen = tp.total_retrans().saturating_sub(known);
            if unseen != 0 {
                row.retransmits(Retransmit::Syn, unseen);
            }
        }
    }
    if let Some(conn) = conn {
        conn.flags = CLOSED;
    }
}

/// ESTABLISHED to FIN_WAIT1 or CLOSE_WAIT: the last time that a single segment
/// was handled since the look before. Or CLOSE_WAIT to LAST_ACK.
#[inline(always)]
fn leaves_established(conn: &mut Conn, tp: TcpSock, new: u8) {
    if new != state::LAST_ACK {
        conn::observe_rtt(conn, tp);
    }
    // A program that closes has accepted.
    if new != state::CLOSE_WAIT && tp.sock().has_user() {
        first_byte::used(conn);
    }
    if new != state::CLOSE_WAIT
        && let Some(row) = RowRef::get(conn.row)
    {
        conn::no_longer_open(conn, row);
    }
    conn.data_segs = tp.data_segs_in();
}

/// Whether the end of a connection in state `old` is one without a FIN of ours.
#[inline(always)]
fn is_abort(old: u8) -> bool {
    matches!(old, state::ESTABLISHED | state::CLOSE_WAIT)
}

#[inline(always)]
fn how(tp: TcpSock, old: u8, is_refused: bool) -> Closed {
    match (tp.err(), old) {
        (0 | ECONNRESET, _) if is_refused => Closed::ResetSent,
        // Closed with data unread.
        (0, state::FIN_WAIT1 | state::FIN_WAIT2) if tp.is_deaf() && !tp.has_read_all() => {
            Closed::ResetSent
        }
        (ECONNRESET | EPIPE, _) => Closed::ResetReceived,
        (ETIMEDOUT | EHOSTUNREACH | ENETUNREACH, _) => Closed::Timeout,
        (0, _) if is_abort(old) => Closed::ResetSent,
        (0, state::FIN_WAIT2 | state::LAST_ACK | state::CLOSING) => Closed::Fin,
        _ => Closed::Other,
    }
}

/// Counts an end by how it came.
#[inline(always)]
fn ended(how: Closed, old: u8, row: RowRef) {
    row.closed(how);
    if is_abort(old) {
        row.aborted(1);
    }
}

/// `old` is the state before CLOSE.
#[inline(always)]
fn closed(conn: &mut Conn, tp: TcpSock, old: u8) {
    // Accepted, never used, and closed with data unread.
    if conn.flags & OPEN != 0 && tp.sock().has_user() {
        first_byte::used(conn);
    }
    let is_refused = conn::is_refused(conn, tp, old);
    // The close was missed, by a program that reset its connection: what it sent
    // and received is forgotten (`tcp.c:tcp_disconnect`), but for a segment that has
    // come since.
    let segs_in = tp.segs_in();
    let is_forgotten = segs_in == 0 || segs_in.wrapping_sub(conn.segs_in).cast_signed() < 0;
    let how = how(tp, old, is_refused || is_forgotten);
    if let Some(row) = RowRef::get(conn.row) {
        conn::no_longer_open(conn, row);
        if is_forgotten {
            lost::count(HOOK, Cause::Limit);
        } else {
            conn::observe_newest_rtt(conn, tp, row);
            conn::flush(conn, tp, old, row);
            conn::flush_retransmits(conn, tp, Retransmit::Other, row);
        }
        if conn.since_ns != 0 {
            row.observe(Kind::Duration, conn::now_ns().saturating_sub(conn.since_ns));
        }
        ended(how, old, row);
    }
    tls::closed(conn, tp, how);
    conn.flags = CLOSED;
}

/// Closes a connection without an entry. Where one has found no place it was
/// opened after the start: all that it did counts now.
#[inline(never)]
fn closed_unknown(tp: TcpSock, old: u8) {
    let side = conn::side_of(tp);
    let number = row_of_tcp(tp, side, HOOK);
    let Some(row) = RowRef::get(number) else {
        return;
    };
    ended(how(tp, old, false), old, row);
    if !conn::overflowed() && conn::status(STATUS_COMPLETE) {
        // All of its events were skipped: it has not been counted as opened.
        lost::count(HOOK, Cause::Limit);
    }
    if conn::overflowed() {
        let mut conn = Conn {
            sent_bytes: conn::syn(side),
            ..Conn::default()
        };
        conn::flush(&mut conn, tp, old, row);
        conn::flush_retransmits(&mut conn, tp, Retransmit::Other, row);
    }
}
