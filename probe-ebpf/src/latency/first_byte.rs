//! Requests and answers: the time to the first byte, the time in the accept
//! queue, and what a TLS handshake takes from both.
//!
//! A request is what comes before an answer: on a server the payload received
//! before something is sent, on a client what is sent before payload arrives.
//! Of several requests before an answer the last one counts, of an answer the
//! first byte. What has no request (a server that speaks first, a stream in one
//! direction) has no answer and is not observed.
//!
//! On kernels that tell of a send only when it has returned (before 6.16), an
//! answer or an acknowledgment can come before that: then `write_seq` has moved,
//! and the send counts as seen.

use probe_common::{
    abi::config::{SENDS_AFTER, SENDS_UNSEEN},
    abi::conn::Conn,
    abi::series::{Kind, Side},
};

use crate::{atomic, conn, globals::global, kernel::sock::TcpSock, latency::tls, series::RowRef};

#[inline(always)]
fn is(conn: &Conn, side: Side) -> bool {
    conn.side == side as u32
}

/// The program uses the socket, so it has accepted it.
#[inline(always)]
pub fn used(conn: &mut Conn) {
    if conn.used == 0 {
        // SAFETY: a member of a map value.
        let before = unsafe { atomic::compare_exchange(&raw mut conn.used, 0, 1) };
        if before == 0
            && is(conn, Side::Server)
            && conn.since_ns != 0
            && let Some(row) = RowRef::get(conn.row)
        {
            row.observe(
                Kind::AcceptQueue,
                conn::now_ns().saturating_sub(conn.since_ns),
            );
        }
    }
}

/// An answer begins, if a request has passed.
#[inline(always)]
fn answered(conn: &mut Conn, now_ns: u64) {
    let turn_ns = conn.turn_ns;
    if turn_ns != 0 {
        // SAFETY: a member of a map value.
        let before = unsafe { atomic::compare_exchange(&raw mut conn.turn_ns, turn_ns, 0) };
        if before == turn_ns
            && let Some(row) = RowRef::get(conn.row)
        {
            row.observe(Kind::FirstByte, now_ns.saturating_sub(turn_ns));
        }
    }
}

/// A segment arrived; `can_be_read` says whether with data for the program.
#[inline(always)]
pub fn arrived(conn: &mut Conn, tp: TcpSock, can_be_read: bool) {
    let sends = global!(CONFIG.sends);
    if sends == SENDS_AFTER {
        sending(conn, tp);
    }
    if can_be_read && sends != SENDS_UNSEEN {
        if is(conn, Side::Server) {
            conn.turn_ns = conn::now_ns();
        } else if is(conn, Side::Client) && conn.turn_ns != 0 {
            answered(conn, conn::now_ns());
        }
    }
}

/// A send that has not returned yet, or whose return is about to be told.
#[inline(always)]
fn sending(conn: &mut Conn, tp: TcpSock) {
    let write_seq = tp.write_seq();
    let length = write_seq.wrapping_sub(conn.write_seq);
    if length == 0 {
        return;
    }
    conn.write_seq = write_seq;
    if is(conn, Side::Server) {
        answered(conn, conn::now_ns());
    } else if is(conn, Side::Client) {
        conn.turn_ns = tp.last_sent_ns();
        tls::sent(conn, conn.turn_ns, length.into());
    }
}

/// The program sends `length` bytes.
#[inline(always)]
pub fn sent(conn: &mut Conn, tp: TcpSock, length: u64) {
    used(conn);
    if global!(CONFIG.sends) == SENDS_AFTER {
        let write_seq = tp.write_seq();
        if write_seq == conn.write_seq {
            return;
        }
        conn.write_seq = write_seq;
    }
    if is(conn, Side::Server) {
        if conn.turn_ns != 0 {
            answered(conn, conn::now_ns());
        }
    } else if is(conn, Side::Client) {
        conn.turn_ns = conn::now_ns();
        tls::sent(conn, conn.turn_ns, length);
    }
}
