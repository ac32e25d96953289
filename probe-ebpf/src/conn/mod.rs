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
//! kernels that preempt programs see [`crate::preempt`].

mod deltas;
mod open;
pub mod table;

use core::mem::offset_of;

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use probe_common::{
    abi::conn::{CLOSED, CONNECTING, Conn, OPEN, STATUS_FULL},
    abi::iter::listener_key,
    abi::series::Side,
};

pub use self::{
    deltas::{flush, flush_retransmits, observe_newest_rtt, observe_rtt, observe_window},
    open::{adopt, begins, established, settle, settled},
};
use crate::{
    kernel::sock::{Sock, TcpSock, state},
    maps::{LISTENERS, STATUS},
    series::RowRef,
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

/// What the kernel counts as sent by a side before its first byte: `bytes_acked`
/// of an active opener has its SYN.
#[inline(always)]
pub fn syn(side: Side) -> u64 {
    u64::from(matches!(side, Side::Client))
}

/// The connection left ESTABLISHED and CLOSE_WAIT.
#[inline(always)]
pub fn no_longer_open(conn: &mut Conn, row: RowRef) {
    if conn.flags & OPEN != 0 {
        conn.flags &= !OPEN;
        row.open(u64::MAX);
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
