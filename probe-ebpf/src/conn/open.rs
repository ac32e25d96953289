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
    fill, flush_syns, get, half_open, has_overflowed, insert, is_closed, is_connecting,
    is_listening, now_ns, side, side_of, status_is_set, syn, table,
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
    child.surely_tcp().is_some_and(|copy| {
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
    let begun = match &known {
        Some(conn) if is_connecting(conn) => Begun::of(conn),
        // Taken twice, see [`crate::preempt`].
        Some(conn) if !is_closed(conn) => return core::ptr::from_ref(*conn).cast_mut(),
        _ => Begun::unseen(tp, fallback),
    };
    // A look at the kernel's clock takes 30 ns; the socket has just had one.
    let now_ns = tp.clock_ns();
    let side = begun.side;
    let number = row_of_tcp(tp, side, FULL);
    let Some(row) = RowRef::get(number) else {
        return core::ptr::null_mut();
    };
    row.opened(1);
    begun.observe_handshake(tp, now_ns, row);
    // Those that were sent again while the program was skipped.
    flush_syns(tp, side, begun.retransmits, row);
    let Some(entry) = known.or_else(|| insert(sk)) else {
        lost::count(FULL, sk.id());
        return core::ptr::null_mut();
    };
    row.open(1);
    let request_ns = begun.request_ns(tp, now_ns);
    let conn = Conn {
        since_ns: now_ns,
        request_ns,
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
        tls_ns: match side {
            Side::Client => request_ns,
            _ => 0,
        },
        used: begun.used,
        write_seq: tp.write_seq(),
        pid: begun.pid,
        ..Conn::default()
    };
    fill(entry, conn);
    entry
}

/// What the entry of a connection held when the handshake ended.
struct Begun {
    side: Side,
    /// As [`Conn::since_ns`].
    since_ns: u64,
    /// As [`Conn::request_ns`].
    request_ns: u64,
    flags: u16,
    pid: u32,
    used: u32,
    /// SYNs that are in the row already.
    retransmits: u32,
}

impl Begun {
    #[inline(always)]
    fn of(conn: &Conn) -> Self {
        Self {
            side: side(conn),
            since_ns: conn.since_ns,
            request_ns: conn.request_ns,
            flags: conn.flags,
            pid: conn.pid,
            used: conn.used,
            retransmits: conn.retransmits,
        }
    }

    /// Of a connection without an entry.
    #[inline(always)]
    fn unseen(tp: TcpSock, side: Side) -> Self {
        Self {
            side,
            since_ns: 0,
            request_ns: 0,
            flags: 0,
            pid: 0,
            used: 0,
            // Those of a handshake that began before the start are the past.
            retransmits: match has_overflowed() {
                true => 0,
                false => tp.total_retrans(),
            },
        }
    }

    #[inline(always)]
    fn observe_handshake(&self, tp: TcpSock, now_ns: u64, row: RowRef) {
        let resent = tp.total_retrans() != 0;
        let with_cookie = self.flags & MAYBE_COOKIE != 0 && !resent && is_cookie(tp);
        let ns = match self.side {
            _ if with_cookie => None,
            // An answer that was sent before the end would be timed instead.
            Side::Server if self.since_ns != 0 => Some(now_ns.saturating_sub(self.since_ns)),
            // The kernel's own measurement, which leaves out what was sent again.
            _ if !resent => Some(u64::from(tp.srtt() >> 3) * 1000),
            Side::Client if self.since_ns != 0 => Some(now_ns.saturating_sub(self.since_ns)),
            Side::Server => first_synack_ns(tp).map(|first| now_ns.saturating_sub(first)),
            _ => None,
        };
        match ns {
            Some(ns) if matches!(self.side, Side::Server) && status_is_set(status::DEFERS) => {
                let waited_ns = half_open::deferred_ns(tp, now_ns);
                row.observe(HistogramId::Handshake, ns.saturating_sub(waited_ns));
            }
            Some(ns) => row.observe(HistogramId::Handshake, ns),
            None if with_cookie => row.syn_cookies(1),
            None => lost::count(NO_HANDSHAKE_TIME, tp.sock().id()),
        }
    }

    /// When a request passed that came with the SYN or with the handshake's last
    /// segment, of which no other event tells; 0 where there is none to answer.
    #[inline(always)]
    fn request_ns(&self, tp: TcpSock, now_ns: u64) -> u64 {
        match self.side {
            Side::Client if !tp.sent_syn_data() => 0,
            // Without an acknowledgment it is sent again now.
            Side::Client if tp.bytes_acked() <= 1 => now_ns,
            Side::Client => self.since_ns,
            _ if self.since_ns != 0 => self.request_ns,
            // Counted as a segment before its data is.
            _ if tp.bytes_received() == 0 => match tp.data_segs_in() {
                0 => 0,
                _ => now_ns,
            },
            // It came with the SYN, and the program has not seen it yet.
            _ if tp.took_syn_data() && tp.bytes_acked() == 0 => {
                now_ns.saturating_sub(u64::from(tp.srtt() >> 3) * 1000)
            }
            _ => 0,
        }
    }
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
    let key = handshake_key(tp);
    // SAFETY: the value is copied at once.
    let first_us = unsafe { SYNACKS.get(&key) }.copied()?;
    let _ = SYNACKS.remove(&key);
    Some(first_us * 1000)
}

/// The key of a connection's handshake.
#[inline(always)]
pub fn handshake_key(tp: TcpSock) -> HandshakeKey {
    let sk = tp.sock();
    HandshakeKey {
        remote: sk.remote(),
        netns: sk.netns(),
        local_port: tp.local_port(),
        remote_port: sk.remote_port(),
    }
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
