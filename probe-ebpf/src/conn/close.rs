//! How a connection ends: what became of its handshake or of itself, told by its
//! last state, its error and what it has still to read and send.

use probe_common::{
    abi::{
        conn::{CLOSED, Conn, OPEN},
        status,
    },
    hooks::Loss,
    labels::{Closed, ConnectFailure, Retransmit, Side},
    loss,
    metrics::HistogramId,
};

use super::{
    flush, flush_retransmits, get, has_overflowed, is_closed, is_connecting, no_longer_open,
    now_ns, observe_newest_rtt, observe_rtt, open::nothing_yet, side, side_of, status_is_set, syn,
    table,
};
use crate::{
    kernel::sock::{Sock, TcpSock, state},
    latency::{accept_queue, tls},
    lost,
    series::{RowRef, row_of_tcp},
};

const FULL: Loss = loss!(sock_set_state, MapFull);
/// A connection whose events were skipped, all or those that told what it sent.
const UNSEEN: Loss = loss!(sock_set_state, Limit);

/// Error numbers (`include/uapi/asm-generic/errno.h`).
mod errno {
    pub const EPIPE: i32 = 32;
    pub const ENETDOWN: i32 = 100;
    pub const ENETUNREACH: i32 = 101;
    pub const ECONNRESET: i32 = 104;
    pub const ETIMEDOUT: i32 = 110;
    pub const ECONNREFUSED: i32 = 111;
    pub const EHOSTDOWN: i32 = 112;
    pub const EHOSTUNREACH: i32 = 113;
}
use errno::{
    ECONNREFUSED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, EPIPE, ETIMEDOUT,
};

fn failure(error: i32) -> ConnectFailure {
    match error {
        ECONNREFUSED => ConnectFailure::Refused,
        ETIMEDOUT => ConnectFailure::Timeout,
        ENETUNREACH | EHOSTUNREACH | ENETDOWN | EHOSTDOWN => ConnectFailure::Unreachable,
        ECONNRESET => ConnectFailure::Reset,
        _ => ConnectFailure::Other,
    }
}

/// A handshake that came to nothing, `without_error` why if the socket has no
/// error. `fallback` is the side where there is no entry.
#[inline(always)]
pub fn connect_failed(
    conn: Option<&'static mut Conn>,
    tp: TcpSock,
    without_error: ConnectFailure,
    fallback: Side,
) {
    let side = conn.as_ref().map_or(fallback, |conn| side(conn));
    let number = row_of_tcp(tp, side, FULL);
    if let Some(row) = RowRef::get(number) {
        let why = match tp.err() {
            0 => without_error,
            error => failure(error),
        };
        row.connect_failures(why, 1);
        // What a SYN's retransmission did not show: one that failed to be sent.
        let known = conn.as_ref().map_or(0, |conn| conn.retransmits);
        if matches!(side, Side::Client) {
            let unseen = tp.total_retrans().saturating_sub(known);
            if unseen != 0 {
                row.retransmits(Retransmit::Syn, unseen.into());
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
pub fn left_established(conn: &mut Conn, tp: TcpSock, new: u8) {
    if new != state::LAST_ACK {
        observe_rtt(conn, tp);
    }
    // A program that closes has accepted.
    if new != state::CLOSE_WAIT && tp.sock().has_user() {
        accept_queue::used(conn);
    }
    if new != state::CLOSE_WAIT
        && let Some(row) = RowRef::get(conn.row)
    {
        no_longer_open(conn, row);
    }
    conn.data_segs = tp.data_segs_in();
}

/// Whether the end of a connection in state `old` is one without a FIN of ours.
#[inline(always)]
fn is_abort(old: u8) -> bool {
    matches!(old, state::ESTABLISHED | state::CLOSE_WAIT)
}

/// Whether the kernel resets a connection in this state by itself: since data came
/// that nobody can read any more (`tcp_input.c:tcp_rcv_state_process`), or since it
/// is not to wait in FIN_WAIT2 (`TCP_LINGER2`). Its socket has the same error as
/// after a reset by the peer, or none. Data that had come before looks the same.
#[inline(always)]
pub fn is_refused(conn: &Conn, tp: TcpSock, state: u8) -> bool {
    match state {
        state::FIN_WAIT2 if tp.linger2() < 0 && !tp.sock().has_user() => true,
        state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING => {
            tp.is_deaf() && tp.has_read_all() && tp.data_segs_in() != conn.data_segs
        }
        _ => false,
    }
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
fn count(how: Closed, old: u8, row: RowRef) {
    row.closed(how, 1);
    if is_abort(old) {
        row.aborted(1);
    }
}

/// The end of a connection, `None` for one without an entry. `old` is the state
/// before CLOSE.
#[inline(always)]
pub fn closed(conn: Option<&'static mut Conn>, tp: TcpSock, old: u8) {
    match conn {
        Some(conn) => closed_with_entry(conn, tp, old),
        None => closed_without_entry(tp, old),
    }
}

#[inline(always)]
fn closed_with_entry(conn: &mut Conn, tp: TcpSock, old: u8) {
    // Accepted, never used, and closed with data unread.
    if conn.flags & OPEN != 0 && tp.sock().has_user() {
        accept_queue::used(conn);
    }
    let is_refused = is_refused(conn, tp, old);
    // The close was missed, by a program that reset its connection: what it sent
    // and received is forgotten (`tcp.c:tcp_disconnect`), but for a segment that has
    // come since.
    let segs_in = tp.segs_in();
    let known = conn.flushed.received_segments;
    let is_forgotten = segs_in == 0 || segs_in.wrapping_sub(known).cast_signed() < 0;
    let how = how(tp, old, is_refused || is_forgotten);
    if let Some(row) = RowRef::get(conn.row) {
        no_longer_open(conn, row);
        if is_forgotten {
            lost::count(UNSEEN, conn.socket);
        } else {
            observe_newest_rtt(conn, tp, row);
            flush(conn, tp, old, row);
            flush_retransmits(conn, tp, Retransmit::Other, row);
        }
        if conn.since_ns != 0 {
            let age_ns = now_ns().saturating_sub(conn.since_ns);
            row.observe(HistogramId::Duration, age_ns);
        }
        count(how, old, row);
    }
    tls::closed(conn, tp, how);
    conn.flags = CLOSED;
}

/// The end of a connection without an entry. Where one has found no slot it was
/// opened after the start: all that it did counts now.
#[inline(never)]
fn closed_without_entry(tp: TcpSock, old: u8) {
    let side = side_of(tp);
    let number = row_of_tcp(tp, side, FULL);
    let Some(row) = RowRef::get(number) else {
        return;
    };
    count(how(tp, old, false), old, row);
    if !has_overflowed() && status_is_set(status::COMPLETE) {
        // All of its events were skipped: it has not been counted as opened.
        lost::count(UNSEEN, tp.sock().id());
    }
    if has_overflowed() {
        let mut conn = Conn {
            flushed: nothing_yet(side),
            ..Conn::default()
        };
        flush(&mut conn, tp, old, row);
        flush_retransmits(&mut conn, tp, Retransmit::Other, row);
    }
}

/// A socket goes: its entry is removed, after an end that was missed has been
/// counted.
#[inline(always)]
pub fn destroyed(sk: Sock) {
    let Some(conn) = get(sk) else {
        return;
    };
    if !is_closed(conn)
        && let Some(tp) = sk.tcp()
    {
        if is_connecting(conn) {
            let side = side(conn);
            // The error may have been handed to the program and be gone.
            let without_error = match side {
                Side::Server => ConnectFailure::Local,
                _ => ConnectFailure::Other,
            };
            connect_failed(Some(conn), tp, without_error, side);
        } else {
            // Without an error both ends sent a FIN, if this one did.
            let has_sent_fin = conn.flags & OPEN == 0 || tp.fin_acked(syn(side(conn)));
            let old = match tp.err() {
                _ if !has_sent_fin => state::ESTABLISHED,
                0 => state::LAST_ACK,
                _ => state::FIN_WAIT1,
            };
            closed_with_entry(conn, tp, old);
        }
    }
    table::remove(sk.id());
}
