//! Connections from their SYN on until they close. Nearly all runs under the
//! socket's lock, so nothing else touches the same entry at the same time; what
//! does not (a reset, a send that has returned, `accept()`) reads, or writes
//! with an exchange.
//!
//! The kernel skips a program that is interrupted on its CPU by its own event:
//! a process in `connect()` or `close()`, say, and a segment that arrives just
//! then. What such a skipped event should have told is made up for by the next
//! one: an entry that is in its handshake, or missing, though its socket is
//! past it ([`settled`]), or one that is not closed though its socket is gone
//! (`tcp_destroy_sock`).
//!
//! So that a close is counted once, its entry stays until the socket goes. For
//! kernels that preempt programs see [`crate::once`].

use core::mem::offset_of;

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use probe_common::{
    conn::{
        CLOSED, CONNECTING, Conn, MAYBE_COOKIE, OPEN, STATUS_COMPLETE, STATUS_COOKIES, STATUS_FULL,
        ZERO_WINDOW,
    },
    lost::{Cause, Hook},
    series::{Closed, Kind, Retransmit, Side},
    sock::listener_key,
    tls,
};

use crate::{
    globals::global,
    kernel::{
        sock::{Sock, TcpSock, state},
        watched,
    },
    lost,
    maps::{HandshakeKey, LISTENERS, STATUS, SYNACKS},
    series::{RowRef, row_of_tcp},
    table,
};

/// CLOCK_MONOTONIC in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether somebody listens on the local port of a socket.
#[inline(always)]
pub fn is_listening(tp: TcpSock) -> bool {
    let key = listener_key(tp.sock().netns(), tp.local_port());
    // SAFETY: the entry is only read.
    unsafe { LISTENERS.get(&key) }.is_some()
}

/// The side of a socket of which no event has told: what a listener has accepted
/// is a copy of it (`sock.c:sk_clone_lock`), its backlog included, and a client
/// has none. Some programs listen with a backlog of 0.
#[inline(always)]
pub fn side_of(tp: TcpSock) -> Side {
    if tp.backlog() != 0 || is_listening(tp) {
        Side::Server
    } else {
        Side::Client
    }
}

/// Whether an element of `STATUS` is set.
#[inline(always)]
pub fn status(element: u32) -> bool {
    STATUS.get(element).copied() != Some(0)
}

/// Whether a connection has ever found no place.
#[inline(always)]
pub fn overflowed() -> bool {
    status(STATUS_FULL)
}

/// The entry of a socket.
#[inline(always)]
pub fn get(sk: Sock) -> Option<&'static mut Conn> {
    // SAFETY: only the holder of the socket's lock uses the entry, and it is
    // removed under the same lock.
    unsafe { table::find(sk.id()).as_mut() }
}

/// Forgets a socket.
#[inline(always)]
pub fn remove(sk: Sock) {
    table::remove(sk.id());
}

/// Whether the entry is of a connection in its handshake.
#[inline(always)]
pub fn is_connecting(conn: &Conn) -> bool {
    conn.flags & CONNECTING != 0
}

/// Whether the entry is of a connection that has been counted as closed.
#[inline(always)]
pub fn is_closed(conn: &Conn) -> bool {
    conn.flags & CLOSED != 0
}

/// A place for a socket that has no entry. Where there is none it will be counted
/// when it closes.
#[inline(always)]
fn insert(sk: Sock) -> Option<&'static mut Conn> {
    // SAFETY: as in `get`.
    let place = unsafe { table::claim(sk.id()).as_mut() };
    if place.is_none()
        && let Some(full) = STATUS.get_ptr_mut(STATUS_FULL)
    {
        // SAFETY: an element of the map; every writer writes the same.
        unsafe { core::ptr::write_volatile(full, 1) };
    }
    place
}

/// Fills a place, word by word: for a row of zeros the compiler would call a
/// function that writes single bytes. Whose the place is stays.
#[inline(always)]
fn fill(place: &mut Conn, conn: Conn) {
    const WORDS: usize = size_of::<Conn>() / 8;
    const KEPT: [usize; 2] = [offset_of!(Conn, socket) / 8, offset_of!(Conn, spilled) / 8];
    // SAFETY: a `Conn` is that many words, without padding.
    let words = unsafe { core::mem::transmute::<Conn, [u64; WORDS]>(conn) };
    for (n, word) in words.into_iter().enumerate() {
        if !KEPT.contains(&n) {
            // SAFETY: inside the place.
            unsafe {
                core::ptr::from_mut(place)
                    .cast::<u64>()
                    .add(n)
                    .write_volatile(word);
            }
        }
    }
}

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

/// Side of an entry.
#[inline(always)]
pub fn side(conn: &Conn) -> Side {
    const CLIENT: u32 = Side::Client as u32;
    const SERVER: u32 = Side::Server as u32;
    match conn.side {
        CLIENT => Side::Client,
        SERVER => Side::Server,
        _ => Side::Unknown,
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
        // Taken twice, see [`crate::once`].
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

/// What the kernel counts as sent by a side before its first byte: `bytes_acked`
/// of an active opener has its SYN.
#[inline(always)]
pub fn syn(side: Side) -> u64 {
    u64::from(matches!(side, Side::Client))
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

/// The connection left ESTABLISHED and CLOSE_WAIT.
#[inline(always)]
pub fn no_longer_open(conn: &mut Conn, row: RowRef) {
    if conn.flags & OPEN != 0 {
        conn.flags &= !OPEN;
        row.open(u64::MAX);
    }
}

/// Looks for a new RTT sample. The kernel has taken one exactly when `srtt_us`
/// or `mdev_us` changed, and at most one segment was handled since the last
/// look, so the sample follows from `srtt += (sample - srtt) / 8`
/// (`net/ipv4/tcp_input.c:tcp_rtt_estimator`).
#[inline(always)]
pub fn observe_rtt(conn: &mut Conn, tp: TcpSock) {
    let (srtt, mdev) = (tp.srtt(), tp.mdev());
    let old = conn.srtt_us;
    if srtt == old && mdev == conn.mdev_us {
        return;
    }
    conn.srtt_us = srtt;
    conn.mdev_us = mdev;
    // The first sample becomes `srtt` as it is.
    let sample_us = if old == 0 {
        srtt >> 3
    } else {
        srtt.wrapping_sub(old).wrapping_add(old >> 3)
    };
    // No sample is negative: a look was skipped, and two samples lie between.
    let sample_us = if sample_us.cast_signed() < 0 {
        tp.rack_rtt_us()
    } else {
        sample_us
    };
    if let Some(row) = RowRef::get(conn.row) {
        row.observe(Kind::Rtt, u64::from(sample_us) * 1000);
    }
}

/// Looks at the receive window: counts each time that it is found closed.
#[inline(always)]
pub fn observe_window(conn: &mut Conn, tp: TcpSock) {
    let is_closed = tp.rcv_wnd() == 0;
    if is_closed != (conn.flags & ZERO_WINDOW != 0) {
        conn.flags ^= ZERO_WINDOW;
        if is_closed && let Some(row) = RowRef::get(conn.row) {
            row.zero_window(1);
        }
    }
}

/// The same for a connection that has left ESTABLISHED: no event tells of its
/// segments and several may have been handled since the last look, so the newest
/// measurement is taken.
#[inline(always)]
pub fn observe_newest_rtt(conn: &mut Conn, tp: TcpSock, row: RowRef) {
    let (srtt, mdev) = (tp.srtt(), tp.mdev());
    if srtt != conn.srtt_us || mdev != conn.mdev_us {
        row.observe(Kind::Rtt, u64::from(tp.rack_rtt_us()) * 1000);
        conn.srtt_us = srtt;
        conn.mdev_us = mdev;
    }
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

/// Adds what the socket did since the last time to its row. `state` is the
/// state before the present transition.
#[inline(always)]
pub fn flush(conn: &mut Conn, tp: TcpSock, state: u8, row: RowRef) {
    let sent = tp.sent(state);
    if sent > conn.sent_bytes {
        row.sent_bytes(sent - conn.sent_bytes);
        conn.sent_bytes = sent;
    }
    let received = tp.received();
    if received > conn.received_bytes {
        row.received_bytes(received - conn.received_bytes);
        conn.received_bytes = received;
    }
    // These counters of the kernel are 32 bits wide and wrap.
    let segs_out = tp.segs_out();
    row.sent_segments(u64::from(segs_out.wrapping_sub(conn.segs_out)));
    conn.segs_out = segs_out;
    let segs_in = tp.segs_in();
    row.received_segments(u64::from(segs_in.wrapping_sub(conn.segs_in)));
    conn.segs_in = segs_in;
    let dups = tp.dsack_dups();
    if dups != conn.dsack_dups {
        row.spurious_retransmits(u64::from(dups.wrapping_sub(conn.dsack_dups)));
        conn.dsack_dups = dups;
    }
    let out_of_order = tp.out_of_order();
    if out_of_order != conn.out_of_order {
        row.out_of_order(u64::from(out_of_order.wrapping_sub(conn.out_of_order)));
        conn.out_of_order = out_of_order;
    }
}

/// Adds the segments that were sent again since the last time, for one cause.
#[inline(always)]
pub fn flush_retransmits(conn: &mut Conn, tp: TcpSock, why: Retransmit, row: RowRef) {
    let total = tp.total_retrans();
    if total > conn.retransmits {
        row.retransmits(why, total - conn.retransmits);
    }
    conn.retransmits = total;
}
