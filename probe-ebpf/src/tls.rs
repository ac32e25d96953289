//! TLS handshakes, told by the types of the records (RFC 8446 section 5.1,
//! RFC 5246 section 6.2.1) that arrive in the first segments of a connection.
//!
//! A server sees the ClientHello arrive, then the first record of application
//! data: with TLS 1.3 that is the client's Finished, with TLS 1.2 its first
//! request. A client's first send was the ClientHello if what arrives first is a
//! ServerHello; its handshake is over when it sends again after the records
//! that end the server's part. Protocols that turn to TLS later (STARTTLS) are
//! left out.

use probe_common::{
    conn::Conn,
    lost::{Cause, Hook},
    series::{Closed, Kind, Side, TlsFailed},
    tls::{ANSWERED, DONE, HELLO, UNKNOWN},
};

use crate::{
    conn,
    kernel::{kfunc::Bytes, skb::Skb, sock::TcpSock},
    lost,
    series::RowRef,
};

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
/// Records that are looked at in one segment.
const RECORDS: u32 = 8;

#[inline(always)]
fn failed(conn: &Conn, why: TlsFailed) {
    if let Some(row) = RowRef::get(conn.row) {
        row.tls_failed(why);
    }
}

#[inline(always)]
fn completed(conn: &Conn, now_ns: u64) {
    if let Some(row) = RowRef::get(conn.row) {
        row.observe(Kind::Tls, now_ns.saturating_sub(conn.tls_ns));
    }
}

/// The client of a connection sends `length` bytes; 0 where that is not known.
#[inline(always)]
pub fn sent(conn: &mut Conn, now_ns: u64, length: u64) {
    match conn.tls {
        UNKNOWN if conn.tls_ns == 0 => conn.tls_ns = now_ns,
        ANSWERED => {
            conn.tls = DONE;
            if SENT_ALERTS.contains(&length) {
                failed(conn, TlsFailed::Alert);
            } else {
                completed(conn, now_ns);
            }
        }
        _ => {}
    }
}

/// The connection closes: what became of a handshake that was begun.
#[inline(always)]
pub fn closed(conn: &Conn, how: Closed) {
    if matches!(conn.tls, HELLO | ANSWERED) {
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
    if conn.tls == UNKNOWN {
        // The first byte of the connection; one that comes early waits.
        if seq != tp.rcv_nxt() {
            return;
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
        // SAFETY: the bytes are from `of`.
        if !unsafe { Bytes::read(bytes, header + at, &mut record) } {
            return give_up(conn);
        }
        let [kind, major, _, high, low, first] = record;
        let body = u32::from(high) << 8 | u32::from(low);
        if major != 3 || !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind) || body > MOST {
            return give_up(conn);
        }
        conn.tls_seq = conn.tls_seq.wrapping_add(HEADER + body);
        record_arrived(conn, kind, first, body);
        if conn.tls == DONE {
            return;
        }
    }
}

/// It is not TLS, or its records can be followed no more.
#[inline(always)]
fn give_up(conn: &mut Conn) {
    if conn.tls != UNKNOWN {
        lost::count(Hook::TcpProbe, Cause::Parse);
    }
    conn.tls = DONE;
}

#[inline(always)]
fn record_arrived(conn: &mut Conn, kind: u8, first: u8, body: u32) {
    let is_server = conn.side == Side::Server as u32;
    conn.tls = match (conn.tls, kind) {
        (UNKNOWN, HANDSHAKE) if is_server && first == CLIENT_HELLO => {
            conn.tls_ns = conn::now_ns();
            HELLO
        }
        // Of a client that has sent nothing the first send is not known.
        (UNKNOWN, HANDSHAKE) if !is_server && first == SERVER_HELLO && conn.tls_ns != 0 => HELLO,
        (UNKNOWN, ALERT) if !is_server && conn.tls_ns != 0 => {
            failed(conn, TlsFailed::Alert);
            DONE
        }
        (UNKNOWN, _) => DONE,
        (_, ALERT) => {
            failed(conn, TlsFailed::Alert);
            DONE
        }
        (HELLO, APPLICATION_DATA) if is_server => {
            if body == ENCRYPTED_ALERT {
                failed(conn, TlsFailed::Alert);
            } else {
                completed(conn, conn::now_ns());
            }
            DONE
        }
        (HELLO, APPLICATION_DATA | CHANGE_CIPHER_SPEC) if !is_server => ANSWERED,
        (state, _) => state,
    };
}
