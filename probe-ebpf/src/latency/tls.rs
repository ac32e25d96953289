//! TLS handshakes, told by the types of the records (RFC 8446 section 5.1,
//! RFC 5246 section 6.2.1) that arrive in the first segments of a connection.
//!
//! A server sees the ClientHello arrive, then the first record of application
//! data: with TLS 1.3 that is the client's Finished, with TLS 1.2 its first
//! request. A client's first send is looked at where it can be and may be one;
//! else it was the ClientHello if what arrives first is a ServerHello. Its
//! handshake is over when it sends again after the records that end the server's
//! part. Protocols that turn to TLS later (STARTTLS) are left out, and so is a
//! ClientHello in the segment that completes the TCP handshake
//! (`TCP_DEFER_ACCEPT`): no event tells of that one.

use probe_common::{
    abi::conn::{
        Conn,
        tls::{ANSWERED, DONE, GREETED, HELLO, RETRY, UNKNOWN},
    },
    hooks::Loss,
    labels::{Closed, Side, TlsFailed},
    loss,
    metrics::HistogramId,
};

use crate::{
    atomic,
    conn::{is_side, now_ns},
    globals::global,
    kernel::{kfunc::Bytes, msghdr::Message, skb::Skb, sock::TcpSock},
    lost,
    maps::SPEAKS_TLS,
    series::RowRef,
};

/// A handshake whose records cannot be followed.
const UNREADABLE: Loss = loss!(tcp_probe, Parse);

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const HEADER: u32 = 5;
/// The most that a record may hold, an encrypted one included.
const MOST: u32 = (1 << 14) + 2048;
/// Length of an encrypted alert in a TLS 1.3 record: two bytes, the real type
/// and a tag of 16 bytes. Nothing else that is due in a handshake is as short.
const ENCRYPTED_ALERT: u32 = 19;
/// What a client sends to refuse a handshake: such a record, or one that is not
/// encrypted yet (OpenSSL), alone or after a ChangeCipherSpec.
const SENT_ALERTS: [u64; 4] = [7, 13, 24, 30];
/// The first bytes of the random of a ServerHello that asks for another
/// ClientHello, and where they are in the record.
const RETRY_RANDOM: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];
const RANDOM: u32 = HEADER + 6;
/// Length of an alert that is not encrypted.
const PLAIN_ALERT: u32 = 2;
/// Of how many connections one is looked at where no TLS has been seen.
const SAMPLED: u32 = 16;
/// Records that are looked at in one segment.
const RECORDS: u32 = 8;

#[inline(always)]
fn failed(conn: &Conn, why: TlsFailed) {
    if let Some(row) = RowRef::get(conn.row) {
        row.tls_failures(why, 1);
    }
}

/// A handshake that began at `begun_ns` is complete.
#[inline(always)]
fn completed(conn: &Conn, begun_ns: u64, now_ns: u64) {
    if let Some(row) = RowRef::get(conn.row) {
        row.observe(HistogramId::TlsHandshake, now_ns.saturating_sub(begun_ns));
    }
}

/// Takes the begin of a handshake; of two threads that send at once, after whose sends
/// it is over, the second finds 0.
#[inline(always)]
fn take_begun(conn: &mut Conn) -> u64 {
    let begun_ns = conn.tls_ns;
    // SAFETY: a member of an element of `CONNS`.
    let found_ns = unsafe { atomic::compare_exchange(&raw mut conn.tls_ns, begun_ns, 0) };
    if found_ns == begun_ns { begun_ns } else { 0 }
}

/// A program is about to send. What a client sends first tells whether it speaks
/// TLS, where it can be read. That takes some 300 ns, so without a sign that TLS is
/// spoken here one connection in [`SAMPLED`] is looked at.
#[inline(always)]
pub fn sends(conn: &mut Conn, tp: TcpSock, message: Message) {
    if conn.tls == UNKNOWN
        && conn.tls_ns == 0
        && is_side(conn, Side::Client)
        && global!(CONFIG.payload) != 0
        // Sequence numbers begin at random.
        && (tp.write_seq().is_multiple_of(SAMPLED) || speaks_tls(conn.row))
    {
        let mut record = [0; HEADER as usize + 1];
        message.read(&mut record);
        if let [HANDSHAKE, 3, _, _, _, CLIENT_HELLO] = record {
            conn.tls = GREETED;
            learn(conn.row);
        }
    }
}

/// Whether clients of a row have been seen to speak TLS.
#[inline(always)]
fn speaks_tls(row: u32) -> bool {
    SPEAKS_TLS.get(row).copied() == Some(1)
}

/// Remembers that for the next ones.
#[inline(always)]
fn learn(row: u32) {
    if let Some(known) = SPEAKS_TLS.get_ptr_mut(row) {
        // SAFETY: an element of `SPEAKS_TLS`; every writer writes the same word.
        unsafe { known.write_volatile(1) };
    }
}

/// The client of a connection sends `length` bytes.
#[inline(always)]
pub fn sent(conn: &mut Conn, now_ns: u64, length: u64) {
    match conn.tls {
        UNKNOWN | GREETED if conn.tls_ns == 0 => conn.tls_ns = now_ns,
        ANSWERED => {
            conn.tls = DONE;
            match take_begun(conn) {
                0 => {}
                _ if SENT_ALERTS.contains(&length) => failed(conn, TlsFailed::Alert),
                begun_ns => completed(conn, begun_ns, now_ns),
            }
        }
        _ => {}
    }
}

/// The connection closes: what became of a handshake that was begun.
#[inline(always)]
pub fn closed(conn: &Conn, tp: TcpSock, how: Closed) {
    // A server that has the client's Finished lacks a request, no more.
    let is_open = match conn.tls {
        HELLO | RETRY => true,
        // Else the event of the answer was skipped.
        GREETED => tp.received() == 0,
        // A segment that came while the client sent may have put that back.
        ANSWERED => !is_side(conn, Side::Server) && conn.tls_ns != 0,
        _ => false,
    };
    if is_open {
        failed(
            conn,
            match how {
                Closed::ResetSent | Closed::ResetReceived => TlsFailed::Reset,
                Closed::Timeout => TlsFailed::Timeout,
                Closed::Fin | Closed::Other => TlsFailed::Closed,
            },
        );
    }
}

/// A segment with `payload` bytes arrived while the handshake is not [`DONE`].
#[inline(never)]
pub fn arrived(conn: &mut Conn, tp: TcpSock, skb: Skb, payload: u32) {
    let seq = skb.seq();
    if is_unanswered(conn) {
        // The first byte of the connection; one that comes early waits.
        if seq != tp.rcv_nxt() {
            return;
        }
        // The event of the first one was skipped.
        if tp.bytes_received() != 0 {
            return give_up(conn);
        }
        conn.tls_seq = seq;
    }
    let header = skb.len().wrapping_sub(payload);
    let mut room = Bytes::room();
    let bytes = Bytes::of(&mut room, skb);
    for _ in 0..RECORDS {
        let at = conn.tls_seq.wrapping_sub(seq);
        if at.cast_signed() < 0 {
            // Part of the record before this one came out of order.
            return give_up(conn);
        }
        if at >= payload {
            return;
        }
        let mut record = [0; HEADER as usize + 1];
        // SAFETY: `bytes` is from `Bytes::of`.
        if !unsafe { Bytes::read(bytes, header + at, &mut record) } {
            // SAFETY: as above.
            if conn.tls == UNKNOWN && unsafe { may_be_record(bytes, header + at, payload) } {
                lost::count(UNREADABLE, conn.socket);
            }
            return give_up(conn);
        }
        let [kind, major, _, high, low, first] = record;
        let body = u32::from(high) << 8 | u32::from(low);
        if major != 3 || !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind) || body > MOST {
            if conn.tls == GREETED {
                failed(conn, TlsFailed::Closed);
                conn.tls = DONE;
                return;
            }
            return give_up(conn);
        }
        let mut random = [0; RETRY_RANDOM.len()];
        if is_unanswered(conn) && (kind, first) == (HANDSHAKE, SERVER_HELLO) {
            // Where it is not there it is no such one.
            // SAFETY: `bytes` is from `Bytes::of`.
            let _ = unsafe { Bytes::read(bytes, header + at + RANDOM, &mut random) };
        }
        conn.tls_seq = conn.tls_seq.wrapping_add(HEADER + body);
        let record = Record {
            kind,
            first,
            body,
            is_retry: random == RETRY_RANDOM,
        };
        record_arrived(conn, tp, &record);
        if conn.tls == DONE {
            return;
        }
    }
}

/// Whether a connection whose first segment is too short to hold a record's first six
/// bytes, or cannot be read, may have begun with one.
///
/// # Safety
///
/// `bytes` is from [`Bytes::of`].
#[inline(always)]
unsafe fn may_be_record(bytes: *mut Bytes, at: u32, payload: u32) -> bool {
    let mut kind = [0];
    // SAFETY: the caller's promise.
    payload > HEADER || unsafe { Bytes::read(bytes, at, &mut kind) } && kind == [HANDSHAKE]
}

/// Whether nothing has arrived on the connection.
#[inline(always)]
fn is_unanswered(conn: &Conn) -> bool {
    matches!(conn.tls, UNKNOWN | GREETED)
}

/// It is not TLS, or its records can be followed no more.
#[inline(always)]
fn give_up(conn: &mut Conn) {
    // A client that is waiting to send needs no more of them.
    if conn.tls == ANSWERED && is_side(conn, Side::Client) {
        return;
    }
    if conn.tls != UNKNOWN {
        lost::count(UNREADABLE, conn.socket);
    }
    conn.tls = DONE;
}

/// What is told of a record.
struct Record {
    kind: u8,
    /// First byte of the body; of a handshake that is not encrypted its type.
    first: u8,
    /// Length of the body.
    body: u32,
    /// Whether it is a ServerHello that asks for another ClientHello.
    is_retry: bool,
}

#[inline(always)]
fn record_arrived(conn: &mut Conn, tp: TcpSock, record: &Record) {
    conn.tls = if is_side(conn, Side::Server) {
        at_server(conn, tp, record)
    } else {
        at_client(conn, record)
    };
}

/// The state after a record that arrived at a server.
#[inline(always)]
fn at_server(conn: &mut Conn, tp: TcpSock, record: &Record) -> u8 {
    match (conn.tls, record.kind) {
        (UNKNOWN, HANDSHAKE) if record.first == CLIENT_HELLO => {
            conn.tls_ns = now_ns();
            HELLO
        }
        (UNKNOWN, _) => DONE,
        // The one of TLS 1.2 is encrypted by now and may just say goodbye.
        (ANSWERED, ALERT) if record.body != PLAIN_ALERT => DONE,
        (_, ALERT) => {
            failed(conn, TlsFailed::Alert);
            DONE
        }
        // Early data, before the server has said anything.
        (HELLO, APPLICATION_DATA) if tp.bytes_acked() == 0 && tp.snd_nxt() == tp.snd_una() => HELLO,
        (_, APPLICATION_DATA) => {
            if record.body == ENCRYPTED_ALERT {
                failed(conn, TlsFailed::Alert);
            } else {
                completed(conn, conn.tls_ns, now_ns());
            }
            DONE
        }
        (HELLO, CHANGE_CIPHER_SPEC) => ANSWERED,
        // The second one after a retry.
        (ANSWERED, HANDSHAKE) if record.first == CLIENT_HELLO => HELLO,
        (state, _) => state,
    }
}

/// The state after a record that arrived at a client.
#[inline(always)]
fn at_client(conn: &Conn, record: &Record) -> u8 {
    match (conn.tls, record.kind) {
        // Of a client that has sent nothing the first send is not known.
        (UNKNOWN, HANDSHAKE | ALERT) if conn.tls_ns == 0 => DONE,
        (UNKNOWN | GREETED | RETRY, HANDSHAKE) if record.is_retry => RETRY,
        (UNKNOWN | GREETED | RETRY, HANDSHAKE) if record.first == SERVER_HELLO => {
            if conn.tls == UNKNOWN {
                learn(conn.row);
            }
            HELLO
        }
        (RETRY, CHANGE_CIPHER_SPEC) => RETRY,
        (_, ALERT) => {
            failed(conn, TlsFailed::Alert);
            DONE
        }
        (UNKNOWN, _) => DONE,
        (GREETED, _) => {
            failed(conn, TlsFailed::Closed);
            DONE
        }
        (HELLO, APPLICATION_DATA | CHANGE_CIPHER_SPEC) => ANSWERED,
        (state, _) => state,
    }
}
