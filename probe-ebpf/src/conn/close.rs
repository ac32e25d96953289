//! How a connection ends: what became of its handshake or of itself, told by its
//! last state, its error and what it has still to read and send.

use probe_common::{
    abi::{
        conn::{CLOSED, Conn, OPEN, tls},
        status,
    },
    hooks::Loss,
    labels::{Closed, ConnectFailure, Retransmit, Side},
    loss,
    metrics::HistogramId,
};

use super::{
    fill, flush, flush_retransmits, flush_syns, get, has_overflowed, insert, is_closed,
    is_connecting, no_longer_open, now_ns, observe_min_rtt, observe_newest_rtt, observe_rtt,
    open::nothing_yet, side, side_of, status_is_set, syn, table, why,
};
use crate::{
    globals::global,
    kernel::{
        sock::{IPPROTO_TCP, Sock, TcpSock, state},
        watched,
    },
    latency::{accept_queue, tls as handshakes},
    lost,
    maps::STATUS,
    series::{RowRef, row_of_tcp},
};

const FULL: Loss = loss!(sock_set_state, MapFull);
/// A connection whose events were skipped, all or those that told what it sent.
const UNSEEN: Loss = loss!(sock_set_state, Limit);

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
        row.connect_failures(why::failed(tp, without_error), 1);
        // What a SYN's retransmission did not show: one that failed to be sent.
        let known = conn.as_ref().map_or(0, |conn| conn.retransmits);
        flush_syns(tp, side, known, row);
    }
    match conn {
        Some(conn) => conn.flags = CLOSED,
        None => counted_without_entry(tp),
    }
}

/// A connection without an entry has been counted: it gets one that says so, until
/// its socket goes. Where there is no slot, none is missed either, see
/// [`unseen_until_now`].
#[inline(always)]
fn counted_without_entry(tp: TcpSock) {
    if let Some(slot) = insert(tp.sock()) {
        let conn = Conn {
            flags: CLOSED,
            ..Conn::default()
        };
        fill(slot, conn);
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
pub fn is_abort(old: u8) -> bool {
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
    let how = why::ended(tp, old, is_refused || is_forgotten);
    if let Some(row) = RowRef::get(conn.row) {
        no_longer_open(conn, row);
        if is_forgotten {
            lost::count(UNSEEN, conn.socket);
        } else {
            observe_newest_rtt(conn, tp, row);
            observe_min_rtt(tp, row);
            flush(conn, tp, old, row);
            flush_retransmits(conn, tp, Retransmit::Other, row);
        }
        if conn.since_ns != 0 {
            let age_ns = now_ns().saturating_sub(conn.since_ns);
            row.observe(HistogramId::Duration, age_ns);
        }
        count(how, old, row);
    }
    handshakes::closed(conn, tp, how);
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
    count(why::ended(tp, old, false), old, row);
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
    counted_without_entry(tp);
}

/// A socket goes: its entry is removed, after an end that was missed has been
/// counted.
#[inline(always)]
pub fn destroyed(sk: Sock) {
    let Some(conn) = get(sk) else {
        if let Some(tp) = sk.tcp() {
            unseen_until_now(tp);
        }
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
            let old = last_state(conn, tp);
            closed_with_entry(conn, tp, old);
        }
    }
    table::remove(sk.id());
}

/// The state before CLOSE of a connection whose close was missed.
#[inline(always)]
fn last_state(conn: &Conn, tp: TcpSock) -> u8 {
    // Without an error both ends sent a FIN, if this one did.
    let has_sent_fin = conn.flags & OPEN == 0 || tp.fin_acked(syn(side(conn)));
    match tp.err() {
        _ if !has_sent_fin => state::ESTABLISHED,
        0 => state::LAST_ACK,
        _ => state::FIN_WAIT1,
    }
}

/// The socket of a connection that no event has told of goes. Where a listener had
/// accepted it after all sockets had been visited, all of its events were skipped: it
/// counts as opened and closed. A client's SYN is sent by a process, which interrupts
/// nothing.
///
/// Where the kernel preempts programs an event may be taken twice, and would be counted
/// twice without an entry. What is skipped there is counted by the replicas.
#[inline(never)]
fn unseen_until_now(tp: TcpSock) {
    let sk = tp.sock();
    // A listener, or a socket that was never connected, has sent nothing.
    if global!(CONFIG.preempts) != 0
        || tp.write_seq() == 0
        || sk.protocol() != IPPROTO_TCP
        || has_overflowed()
        || !is_from_after_the_start(tp)
        || !watched(sk.netns())
        || !matches!(side_of(tp), Side::Server)
    {
        return;
    }
    let number = row_of_tcp(tp, Side::Server, FULL);
    if let Some(row) = RowRef::get(number) {
        row.opened(1);
        row.open(1);
        let mut conn = Conn {
            socket: sk.id(),
            row: number,
            flags: OPEN,
            side: Side::Server as u8,
            // When it was opened and accepted is not known.
            used: 1,
            tls: tls::DONE,
            srtt_us: tp.srtt(),
            mdev_us: tp.mdev(),
            flushed: nothing_yet(Side::Server),
            ..Conn::default()
        };
        let old = last_state(&conn, tp);
        closed_with_entry(&mut conn, tp, old);
    }
}

/// Whether a socket was used after all sockets had been visited.
#[inline(always)]
fn is_from_after_the_start(tp: TcpSock) -> bool {
    match STATUS.get(status::COMPLETE) {
        Some(&visited_ns) => visited_ns != 0 && tp.clock_ns() > visited_ns,
        None => false,
    }
}
