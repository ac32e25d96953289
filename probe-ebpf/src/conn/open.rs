//! How a connection gets its entry: with its SYN, and at ESTABLISHED or at the
//! first event after that, where the one before was skipped.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use probe_common::{
    abi::{
        conn::{CLOSED, CONNECTING, Conn, Flushed, MAYBE_COOKIE, OPEN, tls},
        status,
    },
    hooks::Loss,
    labels::{Closed, Side},
    loss,
    metrics::HistogramId,
};

use super::{
    fill, get, has_overflowed, insert, is_closed, is_connecting, is_listening, now_ns, side,
    side_of, status_is_set, syn, table,
};
use crate::{
    globals::global,
    kernel::{
        sock::{Sock, TcpSock},
        watched,
    },
    lost,
    maps::{HandshakeKey, SYNACKS},
    series::{RowRef, row_of_tcp},
};

const FULL: Loss = loss!(sock_set_state, MapFull);
/// An entry whose socket has gone unseen.
const ABANDONED: Loss = loss!(sock_set_state, Limit);
/// The time of a handshake whose first SYN-ACK is not known.
const NO_HANDSHAKE_TIME: Loss = loss!(retrans_synack, Limit);

/// A handshake begins: the side is known from here on, and to a client when.
#[inline(always)]
pub fn start_handshake(sk: Sock, side: Side) {
    let stale = get(sk);
    match &stale {
        Some(conn) if conn.flags & (CONNECTING | CLOSED) == 0 => abandoned(conn),
        _ => {}
    }
    // Where there is no slot it is tried again at ESTABLISHED.
    // SAFETY: as in `get`.
    let slot = stale.or_else(|| unsafe { table::claim(sk.id()).as_mut() });
    if let Some(slot) = slot {
        let conn = Conn {
            since_ns: match side {
                Side::Client => now_ns(),
                _ => 0,
            },
            flags: match side {
                Side::Server if may_send_cookies(sk) => CONNECTING | MAYBE_COOKIE,
                _ => CONNECTING,
            },
            side: side as u8,
            pid: match side {
                Side::Client => caller(),
                _ => 0,
            },
            ..Conn::default()
        };
        fill(slot, conn);
    }
}

/// The process that is in a system call.
#[inline(always)]
fn caller() -> u32 {
    // SAFETY: the helper takes no arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// Whether the listener that a child is still a copy of may answer with SYN
/// cookies.
#[inline(always)]
fn may_send_cookies(child: Sock) -> bool {
    child.tcp().is_some_and(|copy| {
        copy.overflowed_lately() || (copy.shares_port() && status_is_set(status::COOKIES))
    })
}

/// Whether a handshake was completed with a SYN cookie. The kernel then takes
/// its time from timestamps of whole milliseconds, or not at all
/// (`tcp_input.c:tcp_ack_update_rtt`), while it times others in microseconds.
#[inline(always)]
fn is_cookie(tp: TcpSock) -> bool {
    (tp.srtt() >> 3).is_multiple_of(1000)
}

/// Neither the close nor the end of a socket was seen, and its address is in
/// use again.
#[inline(always)]
fn abandoned(conn: &Conn) {
    lost::count(ABANDONED, conn.socket);
    if let Some(row) = RowRef::get(conn.row) {
        if conn.flags & OPEN != 0 {
            row.open(u64::MAX);
        }
        row.closed(Closed::Other, 1);
    }
}

/// ESTABLISHED. `fallback` is the side where there is no entry: the connection
/// was in SYN_SENT before the start, or found no slot when it began. Returns
/// the new entry, or null where there is no slot for one.
#[inline(never)]
pub fn established(tp: TcpSock, fallback: Side) -> *mut Conn {
    let sk = tp.sock();
    let known = get(sk);
    let (side, first_syn_ns, flags, pid) = match &known {
        Some(conn) if is_connecting(conn) => (side(conn), conn.since_ns, conn.flags, conn.pid),
        // Taken twice, see [`crate::preempt`].
        Some(conn) if !is_closed(conn) => return core::ptr::from_ref(*conn).cast_mut(),
        _ => (fallback, 0, 0, 0),
    };
    // A look at the kernel's clock takes 30 ns; the socket has just had one.
    let now_ns = tp.clock_ns();
    let number = row_of_tcp(tp, side, FULL);
    let Some(row) = RowRef::get(number) else {
        return core::ptr::null_mut();
    };
    row.opened(1);
    let with_cookie = flags & MAYBE_COOKIE != 0 && tp.total_retrans() == 0 && is_cookie(tp);
    let handshake_ns = match side {
        _ if with_cookie => None,
        // The kernel's own measurement, which leaves out what was sent again.
        _ if tp.total_retrans() == 0 => Some(u64::from(tp.srtt() >> 3) * 1000),
        Side::Client if first_syn_ns != 0 => Some(now_ns.saturating_sub(first_syn_ns)),
        Side::Server => first_synack_ns(tp).map(|first| now_ns.saturating_sub(first)),
        _ => None,
    };
    match handshake_ns {
        Some(ns) => row.observe(HistogramId::Handshake, ns),
        None if with_cookie => row.syn_cookies(1),
        None => lost::count(NO_HANDSHAKE_TIME, sk.id()),
    }
    let Some(entry) = known.or_else(|| insert(sk)) else {
        lost::count(FULL, sk.id());
        return core::ptr::null_mut();
    };
    row.open(1);
    let conn = Conn {
        since_ns: now_ns,
        row: number,
        flags: OPEN,
        srtt_us: tp.srtt(),
        mdev_us: tp.mdev(),
        // A SYN was counted when it was sent again, a SYN-ACK likewise.
        retransmits: tp.total_retrans(),
        flushed: nothing_yet(side),
        side: side as u8,
        // What came before cannot be read any more.
        tls: match tp.bytes_received() {
            0 => tls::UNKNOWN,
            _ => tls::DONE,
        },
        write_seq: tp.write_seq(),
        pid,
        ..Conn::default()
    };
    fill(entry, conn);
    entry
}

/// What a connection has flushed whose socket has counted nothing but its SYN.
#[inline(always)]
pub fn nothing_yet(side: Side) -> Flushed {
    Flushed {
        sent_bytes: syn(side),
        ..Flushed::default()
    }
}

/// When the first SYN-ACK was sent, of a handshake whose SYN-ACK was sent again.
#[inline(always)]
fn first_synack_ns(tp: TcpSock) -> Option<u64> {
    let sk = tp.sock();
    let key = HandshakeKey {
        remote: sk.remote(),
        netns: sk.netns(),
        local_port: tp.local_port(),
        remote_port: sk.remote_port(),
    };
    // SAFETY: the value is copied at once.
    let first_us = unsafe { SYNACKS.get(&key) }.copied()?;
    let _ = SYNACKS.remove(&key);
    Some(first_us * 1000)
}

/// The entry of a socket that is past its handshake. Where its events told
/// otherwise, one was skipped: the connection counts as opened now. `None` where
/// the socket may be from before the start.
#[inline(always)]
pub fn open_entry(tp: TcpSock) -> Option<&'static mut Conn> {
    open_entry_of(tp, get(tp.sock()))
}

/// [`open_entry`] for a socket whose entry has been looked for.
#[inline(always)]
pub fn open_entry_of(tp: TcpSock, found: Option<&'static mut Conn>) -> Option<&'static mut Conn> {
    match found {
        Some(conn) if conn.flags & (CONNECTING | CLOSED) == 0 => Some(conn),
        // SAFETY: as in `get`.
        other => unsafe { missed_open(tp, other.is_some_and(|conn| is_connecting(conn))).as_mut() },
    }
}

/// The rare part of [`open_entry`]: the start of the connection was missed.
#[inline(always)]
fn missed_open(tp: TcpSock, has_entry: bool) -> *mut Conn {
    if has_entry {
        return established(tp, Side::Server);
    }
    if status_is_set(status::COMPLETE) && !has_overflowed() && watched(tp.sock().netns()) {
        // Its namespace has been visited, so it is not from before the start.
        // Elsewhere a client has an entry: its SYN interrupts nothing.
        if is_listening(tp) || global!(CONFIG.preempts) != 0 {
            return established(tp, side_of(tp));
        }
    }
    core::ptr::null_mut()
}
