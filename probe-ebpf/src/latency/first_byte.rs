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
//!
//! That a send has returned is told without the socket's lock, while segments arrive
//! and other threads send. So whoever takes or sets a request there does it with an
//! exchange, against what it had read *before* it looked at `write_seq`:
//!
//! - A request that still stands, at a server, and a `write_seq` that has moved since
//!   (it is noted before a request is): something was sent after the request came.
//!   Of all that see this one takes the request.
//! - A request of a client takes the place of what was there before, or of nothing: a
//!   segment that came meanwhile has changed that, since it saw `write_seq` move too.
//!   No value comes back, as a request that is answered stays, negated.
//! - `write_seq` is noted last, and only ever moves on.

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

/// A request as it was read, see [`Conn::request_ns`].
#[derive(Clone, Copy)]
struct Request(u64);

impl Request {
    #[inline(always)]
    fn of(conn: &Conn) -> Self {
        // SAFETY: a member of an element of `CONNS`, read as the whole word that it is.
        Self(unsafe { (&raw const conn.request_ns).read_volatile() })
    }

    #[inline(always)]
    fn is_awaited(self) -> bool {
        self.0.cast_signed() > 0
    }

    /// Puts another value in its place, if it still stands.
    #[inline(always)]
    fn replace(self, conn: &mut Conn, with: u64) -> bool {
        // SAFETY: a member of an element of `CONNS`, which is written without the
        // socket's lock with exchanges only.
        unsafe { atomic::compare_exchange(&raw mut conn.request_ns, self.0, with) == self.0 }
    }

    /// Its answer begins, if one is awaited; of several that see that one counts it.
    #[inline(always)]
    fn answered(self, conn: &mut Conn) {
        if self.is_awaited() {
            let now_ns = now_ns();
            if self.replace(conn, self.0.wrapping_neg())
                && let Some(row) = RowRef::get(conn.row)
            {
                row.observe(HistogramId::FirstByte, now_ns.saturating_sub(self.0));
            }
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
        } else if is_side(conn, Side::Client) {
            Request::of(conn).answered(conn);
        }
    }
}

/// A send that has not returned yet, or whose return is about to be told.
#[inline(always)]
fn sent_meanwhile(conn: &mut Conn, tp: TcpSock) {
    let request = Request::of(conn);
    let known = seen_up_to(conn);
    let write_seq = tp.write_seq();
    let length = write_seq.wrapping_sub(known);
    if length == 0 {
        return;
    }
    if is_side(conn, Side::Server) {
        request.answered(conn);
    } else if is_side(conn, Side::Client) {
        let sent_ns = tp.last_sent_ns();
        if request.replace(conn, sent_ns) {
            tls::sent(conn, sent_ns, length.into());
        }
    }
    seen_until(conn, known, write_seq);
}

/// [`Conn::write_seq`].
#[inline(always)]
fn seen_up_to(conn: &Conn) -> u32 {
    // SAFETY: a member of an element of `CONNS`, read as the whole word that it is.
    unsafe { (&raw const conn.write_seq).read_volatile() }
}

/// Sends have been seen up to `write_seq`, unless somebody has seen more than `known`.
#[inline(always)]
fn seen_until(conn: &mut Conn, known: u32, write_seq: u32) {
    // SAFETY: a member of an element of `CONNS`, which is written with exchanges only.
    unsafe { atomic::compare_exchange_u32(&raw mut conn.write_seq, known, write_seq) };
}

/// The program sends `length` bytes.
#[inline(always)]
pub fn sent(conn: &mut Conn, tp: TcpSock, length: u64) {
    accept_queue::used(conn);
    if global!(CONFIG.sends) == SENDS_AFTER {
        return has_sent(conn, tp, length);
    }
    if is_side(conn, Side::Server) {
        Request::of(conn).answered(conn);
    } else if is_side(conn, Side::Client) {
        conn.request_ns = now_ns();
        tls::sent(conn, conn.request_ns, length);
    }
}

/// A send has returned, and does not hold the socket any more.
#[inline(always)]
fn has_sent(conn: &mut Conn, tp: TcpSock, length: u64) {
    let request = Request::of(conn);
    let known = seen_up_to(conn);
    let write_seq = tp.write_seq();
    if write_seq == known {
        return;
    }
    if is_side(conn, Side::Server) {
        request.answered(conn);
    } else if is_side(conn, Side::Client) {
        let sent_ns = now_ns();
        // Else another one has told of this send, or will.
        if !request.replace(conn, sent_ns) {
            return;
        }
        tls::sent(conn, sent_ns, length);
    }
    seen_until(conn, known, write_seq);
}

/// The program uses a connection before the handshake has ended: it began with data in
/// its SYN (TCP Fast Open), and was accepted at once.
#[inline(never)]
pub fn used_early(conn: &mut Conn, tp: TcpSock, sends: bool) {
    if !is_side(conn, Side::Server) {
        return;
    }
    if conn.since_ns == 0 {
        // A program that answers without having read. Its send has returned, so the
        // handshake may be ending just now: that writes what is written here.
        if sends && global!(CONFIG.sends) == SENDS_AFTER {
            return;
        }
        let Some(synack_ns) = tp.early_synack_ns() else {
            return;
        };
        conn.since_ns = synack_ns;
        if tp.took_syn_data() {
            conn.request_ns = synack_ns;
        }
        conn.row = row_of_tcp(tp, Side::Server, loss!(sock_set_state, MapFull));
    }
    accept_queue::used(conn);
    if sends {
        Request::of(conn).answered(conn);
    }
}
