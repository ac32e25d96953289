//! Connections from their SYN on until they close. Nearly all runs under the
//! socket's lock, so nothing else touches the same entry at the same time. What
//! does not (a reset, a send that has returned, `accept()`) only reads, or writes
//! the members that tell of requests, of TLS, of drops and of the first use, each in one
//! store or with an exchange. `flags`, `row` and `flushed` are written under the
//! lock only.
//!
//! The kernel skips a program that is interrupted on its CPU by its own event:
//! a process in `connect()` or `close()`, say, and a segment that arrives just
//! then. What such a skipped event should have told is reconciled at the next
//! one: an entry that is in its handshake, or missing, though its socket is
//! past it ([`open_entry`]), or one that is not closed though its socket is gone
//! (`tcp_destroy_sock`).
//!
//! So that a close is counted once, its entry stays until the socket goes. For
//! kernels that preempt programs see [`crate::preempt`].

mod adopt;
mod close;
mod deltas;
pub mod half_open;
mod open;
mod table;
mod why;

use core::mem::offset_of;

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use probe_common::{
    abi::{
        conn::{CLOSED, CONNECTING, Conn, MOST_DROPS, OPEN},
        drop::packed_reason,
        listener::listener_key,
        status,
    },
    labels::Side,
};

pub use self::{
    adopt::adopt,
    close::{closed, connect_failed, destroyed, is_abort, is_refused, left_established},
    deltas::{
        flush, flush_retransmits, flush_syns, observe_min_rtt, observe_newest_rtt, observe_rtt,
        observe_window,
    },
    open::{established, open_entry, open_entry_of, start_handshake},
    table::find,
};
use crate::{
    atomic,
    kernel::sock::{Sock, TcpSock},
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
fn is_listening(tp: TcpSock) -> bool {
    is_listener_port(tp.sock().netns(), tp.local_port())
}

/// Whether somebody listens on a port in a network namespace.
#[inline(always)]
pub fn is_listener_port(netns: u32, port: u16) -> bool {
    // SAFETY: the entry is only tested for.
    unsafe { LISTENERS.get(&listener_key(netns, port)) }.is_some()
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
pub fn status_is_set(element: u32) -> bool {
    STATUS.get(element).copied() != Some(0)
}

/// Whether a connection has ever found no slot.
#[inline(always)]
pub fn has_overflowed() -> bool {
    status_is_set(status::FULL)
}

/// The entry of a socket.
#[inline(always)]
pub fn get(sk: Sock) -> Option<&'static mut Conn> {
    get_numbered(sk.id())
}

/// The entry of the socket with a number, see [`Sock::id`].
#[inline(always)]
pub fn get_numbered(socket: u64) -> Option<&'static mut Conn> {
    // SAFETY: null or an element of `CONNS`, whose memory is never freed. What may be
    // written without the socket's lock is said above; the entry is removed under it.
    unsafe { find(socket).as_mut() }
}

/// A slot for a socket that has no entry. Where there is none it will be counted
/// when it closes.
#[inline(always)]
fn insert(sk: Sock) -> Option<&'static mut Conn> {
    // SAFETY: as in `get`.
    let slot = unsafe { table::claim(sk.id()).as_mut() };
    if slot.is_none()
        && let Some(full) = STATUS.get_ptr_mut(status::FULL)
    {
        // SAFETY: an element of `STATUS`; every writer writes the same word.
        unsafe { core::ptr::write_volatile(full, 1) };
    }
    slot
}

/// Fills a slot, word by word: for a row of zeros the compiler would call a
/// function that writes single bytes. Whose the slot is stays, and nothing of it has been
/// dropped yet.
#[inline(always)]
fn fill(slot: &mut Conn, conn: Conn) {
    const WORDS: usize = size_of::<Conn>() / 8;
    const KEPT: [usize; 2] = [offset_of!(Conn, socket) / 8, offset_of!(Conn, spilled) / 8];
    // SAFETY: a `Conn` is that many words, without padding, as `pod!` asserts.
    let words = unsafe { core::mem::transmute::<Conn, [u64; WORDS]>(conn) };
    for (n, word) in words.into_iter().enumerate() {
        if !KEPT.contains(&n) {
            // SAFETY: `n` is below the number of words of the slot.
            unsafe {
                core::ptr::from_mut(slot)
                    .cast::<u64>()
                    .add(n)
                    .write_volatile(word);
            }
        }
    }
    // SAFETY: a member of the slot, a whole word.
    unsafe { (&raw mut slot.drops).write_volatile(0) };
}

/// A packet to or from a connection was dropped.
#[inline(always)]
pub fn dropped(conn: &mut Conn, reason: u32) {
    if conn.flags & (CONNECTING | CLOSED) != 0 || conn.drops >= MOST_DROPS {
        return;
    }
    // SAFETY: members of an element of `CONNS`. Its socket may be closed meanwhile: then
    // they are of nobody, until the next one begins with 0.
    unsafe {
        (&raw mut conn.drop_reason).write_volatile(packed_reason(reason));
        atomic::add_u32(&raw mut conn.drops, 1);
    }
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

/// Whether a connection is of a side.
#[inline(always)]
pub fn is_side(conn: &Conn, side: Side) -> bool {
    conn.side == side as u8
}

/// Side of an entry.
#[inline(always)]
pub fn side(conn: &Conn) -> Side {
    const CLIENT: u8 = Side::Client as u8;
    const SERVER: u8 = Side::Server as u8;
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
