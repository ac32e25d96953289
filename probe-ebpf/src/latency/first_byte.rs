//! Requests and answers: the time to the first byte of an answer.
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
    abi::{
        config::{SENDS_AFTER, SENDS_UNSEEN},
        conn::Conn,
    },
    labels::Side,
    loss,
    metrics::HistogramId,
};

use super::{accept_queue, tls};
use crate::{
    atomic,
    conn::{is_side, now_ns},
    globals::global,
    kernel::sock::TcpSock,
    series::{RowRef, row_of_tcp},
};

/// An answer begins, if a request has passed.
#[inline(always)]
fn answered(conn: &mut Conn, now_ns: u64) {
    let request_ns = conn.request_ns;
    if request_ns != 0 {
        // SAFETY: a member of an element of `CONNS`; of two that see the answer one
        // counts it.
        let before = unsafe { atomic::compare_exchange(&raw mut conn.request_ns, request_ns, 0) };
        if before == request_ns
            && let Some(row) = RowRef::get(conn.row)
        {
            row.observe(HistogramId::FirstByte, now_ns.saturating_sub(request_ns));
        }
    }
}

/// A segment arrived; `can_be_read` says whether with data for the program.
#[inline(always)]
pub fn arrived(conn: &mut Conn, tp: TcpSock, can_be_read: bool) {
    let sends = global!(CONFIG.sends);
    if sends == SENDS_AFTER {
        sent_meanwhile(conn, tp);
    }
    if can_be_read && sends != SENDS_UNSEEN {
        if is_side(conn, Side::Server) {
            conn.request_ns = now_ns();
        } else if is_side(conn, Side::Client) && conn.request_ns != 0 {
            answered(conn, now_ns());
        }
    }
}

/// A send that has not returned yet, or whose return is about to be told.
#[inline(always)]
fn sent_meanwhile(conn: &mut Conn, tp: TcpSock) {
    let write_seq = tp.write_seq();
    let length = write_seq.wrapping_sub(conn.write_seq);
    if length == 0 {
        return;
    }
    conn.write_seq = write_seq;
    if is_side(conn, Side::Server) {
        answered(conn, now_ns());
    } else if is_side(conn, Side::Client) {
        conn.request_ns = tp.last_sent_ns();
        tls::sent(conn, conn.request_ns, length.into());
    }
}

/// The program sends `length` bytes.
#[inline(always)]
pub fn sent(conn: &mut Conn, tp: TcpSock, length: u64) {
    accept_queue::used(conn);
    if global!(CONFIG.sends) == SENDS_AFTER {
        let write_seq = tp.write_seq();
        if write_seq == conn.write_seq {
            return;
        }
        conn.write_seq = write_seq;
    }
    if is_side(conn, Side::Server) {
        if conn.request_ns != 0 {
            answered(conn, now_ns());
        }
    } else if is_side(conn, Side::Client) {
        conn.request_ns = now_ns();
        tls::sent(conn, conn.request_ns, length);
    }
}

/// The program uses a connection before the handshake has ended: it began with data in
/// its SYN (TCP Fast Open), and was accepted at once.
#[inline(never)]
pub fn used_early(conn: &mut Conn, tp: TcpSock, sends: bool) {
    if !is_side(conn, Side::Server) {
        return;
    }
    if conn.since_ns == 0 {
        let Some(synack_ns) = tp.early_synack_ns() else {
            return;
        };
        conn.since_ns = synack_ns;
        if tp.took_syn_data() {
            conn.request_ns = synack_ns;
        }
    }
    conn.row = row_of_tcp(tp, Side::Server, loss!(sock_set_state, MapFull));
    accept_queue::used(conn);
    if sends {
        answered(conn, now_ns());
    }
}
