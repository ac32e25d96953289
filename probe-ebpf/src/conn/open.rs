//! How a connection gets its entry: with its SYN and at ESTABLISHED, or later,
//! where that was missed or lies before the start.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use probe_common::{
    abi::conn::{CLOSED, CONNECTING, Conn, MAYBE_COOKIE, OPEN, STATUS_COMPLETE, STATUS_COOKIES},
    abi::series::{Closed, Kind, Side},
    abi::tls,
    hooks::{Cause, Hook},
};

use super::{
    fill, get, insert, is_closed, is_connecting, is_listening, now_ns, overflowed, side, side_of,
    status, syn, table,
};
use crate::{
    globals::global,
    kernel::{
        sock::{Sock, TcpSock, state},
        watched,
    },
    lost,
    maps::{HandshakeKey, SYNACKS},
    series::{RowRef, row_of_tcp},
};

/// A handshake begins: the side is known from here on, and to a client when.
#[inline(always)]
pub fn begins(sk: Sock, side: Side) {
    let stale = get(sk);
    match &stale {
        Some(conn) if conn.flags & (CONNECTING | CLOSED) == 0 => abandoned(conn),
        _ => {}
    }
    // Where there is no place it is tried again at ESTABLISHED.
    // SAFETY: as in `get`.
    let place = stale.or_else(|| unsafe { table::claim(sk.id()).as_mut() });
    if let Some(place) = place {
        let conn = Conn {
            since_ns: match side {
                Side::Client => now_ns(),
                _ => 0,
            },
            flags: match side {
                Side::Server if may_send_cookies(sk) => CONNECTING | MAYBE_COOKIE,
                _ => CONNECTING,
            },
            side: side as u32,
            pid: match side {
                Side::Client => caller(),
                _ => 0,
            },
            ..Conn::default()
        };
        fill(place, conn);
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
        copy.overflowed_lately() || (copy.shares_port() && status(STATUS_COOKIES))
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
    lost::count(Hook::SockSetState, Cause::Limit);
    if let Some(row) = RowRef::get(conn.row) {
        if conn.flags & OPEN != 0 {
            row.open(u64::MAX);
        }
        row.closed(Closed::Other);
    }
}

/// ESTABLISHED. `fallback` is the side where there is no entry: the connection
/// was in SYN_SENT before the start, or found no place when it began. Returns
/// the new entry, or null where there is no place for one.
#[inline(never)]
pub fn established(tp: TcpSock, fallback: Side) -> *mut Conn {
    const HOOK: Hook = Hook::SockSetState;
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
    let number = row_of_tcp(tp, side, HOOK);
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
        Some(ns) => row.observe(Kind::Handshake, ns),
        None if with_cookie => row.syn_cookies(1),
        None => lost::count(Hook::TcpRetransmitSynack, Cause::Limit),
    }
    let Some(entry) = known.or_else(|| insert(sk)) else {
        lost::count(HOOK, Cause::MapFull);
        return core::ptr::null_mut();
    };
    row.open(1);
    let conn = Conn {
        since_ns: now_ns,
        sent_bytes: syn(side),
        received_bytes: 0,
        row: number,
        flags: OPEN,
        srtt_us: tp.srtt(),
        mdev_us: tp.mdev(),
        // A SYN was counted when it was sent again, a SYN-ACK likewise.
        retransmits: tp.total_retrans(),
        segs_in: 0,
        segs_out: 0,
        dsack_dups: 0,
        out_of_order: 0,
        side: side as u32,
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
pub fn settled(tp: TcpSock) -> Option<&'static mut Conn> {
    settle(tp, get(tp.sock()))
}

/// [`settled`] for a socket whose entry has been looked for.
#[inline(always)]
pub fn settle(tp: TcpSock, found: Option<&'static mut Conn>) -> Option<&'static mut Conn> {
    match found {
        Some(conn) if conn.flags & (CONNECTING | CLOSED) == 0 => Some(conn),
        // SAFETY: as in `get`.
        other => unsafe { late(tp, other.is_some_and(|conn| is_connecting(conn))).as_mut() },
    }
}

/// The rare part of [`settled`]: the start of the connection was missed.
#[inline(always)]
fn late(tp: TcpSock, has_entry: bool) -> *mut Conn {
    if has_entry {
        return established(tp, Side::Server);
    }
    if status(STATUS_COMPLETE) && !overflowed() && watched(tp.sock().netns()) {
        // Its namespace has been visited, so it is not from before the start.
        // Elsewhere a client has an entry: its SYN interrupts nothing.
        if is_listening(tp) || global!(CONFIG.preempts) != 0 {
            return established(tp, side_of(tp));
        }
    }
    core::ptr::null_mut()
}

/// An entry that takes the socket as it is: what it sent and received so far
/// does not count.
#[inline(always)]
fn from_here(tp: TcpSock, row: u32, side: Side, state: u8) -> Conn {
    let (sent_bytes, received_bytes) = (tp.sent(state), tp.received());
    Conn {
        since_ns: 0,
        sent_bytes,
        received_bytes,
        row,
        flags: 0,
        srtt_us: tp.srtt(),
        mdev_us: tp.mdev(),
        retransmits: tp.total_retrans(),
        segs_in: tp.segs_in(),
        segs_out: tp.segs_out(),
        dsack_dups: tp.dsack_dups(),
        out_of_order: tp.out_of_order(),
        side: side as u32,
        tls: tls::DONE,
        write_seq: tp.write_seq(),
        data_segs: tp.data_segs_in(),
        used: 1,
        ..Conn::default()
    }
}

/// Takes in a connection that was open before the start, or that found no place
/// when it was opened.
#[inline(always)]
pub fn adopt(tp: TcpSock, state: u8, hook: Hook) -> Option<&'static mut Conn> {
    let sk = tp.sock();
    let side = side_of(tp);
    let number = row_of_tcp(tp, side, hook);
    let mut conn = from_here(tp, number, side, state);
    let overflowed = overflowed();
    if overflowed {
        // It was opened after the start and nothing of it has been counted.
        conn.sent_bytes = syn(side);
        conn.received_bytes = 0;
        conn.retransmits = 0;
        conn.segs_in = 0;
        conn.segs_out = 0;
        conn.dsack_dups = 0;
        conn.out_of_order = 0;
    }
    let Some(place) = get(sk).or_else(|| insert(sk)) else {
        // If one was lost before, this one has been counted as such.
        if !overflowed {
            lost::count(hook, Cause::MapFull);
        }
        return None;
    };
    fill(place, conn);
    if matches!(state, state::ESTABLISHED | state::CLOSE_WAIT)
        && let Some(row) = RowRef::get(number)
    {
        place.flags = OPEN;
        row.open(1);
    }
    Some(place)
}
