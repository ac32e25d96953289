//! Connections while they are open. Every function here runs under the socket's
//! lock, so nothing else touches the same entry at the same time.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_ns};
use probe_common::{
    conn::{CONNECTING, Conn, OPEN},
    lost::{Cause, Hook},
    series::{Kind, Retransmit, Side},
};

use crate::{
    kernel::sock::{TcpSock, state},
    lost,
    maps::{CONNS, CONNS_FULL, LISTENERS},
    series::{RowRef, row_of_sock},
};

/// CLOCK_MONOTONIC in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Key of a listener in `LISTENERS`.
#[inline(always)]
pub fn listener_key(netns: u32, port: u16) -> u64 {
    u64::from(netns) << 16 | u64::from(port)
}

/// The entry of a socket.
#[inline(always)]
pub fn get(tp: TcpSock) -> Option<&'static mut Conn> {
    // SAFETY: only the holder of the socket's lock uses the entry, and it is
    // removed under the same lock.
    CONNS
        .get_ptr_mut(&tp.id())
        .map(|conn| unsafe { &mut *conn })
}

/// Remembers a socket. Where the map is full, what is known of it is lost: it
/// will be counted when it closes.
#[inline(always)]
pub fn insert(tp: TcpSock, conn: &Conn, hook: Hook) -> bool {
    const EEXIST: i32 = -17;

    match CONNS.insert(&tp.id(), conn, u64::from(BPF_NOEXIST)) {
        Ok(()) => return true,
        Err(EEXIST) => {
            // Its close was missed of a socket that had this address before.
            if let Some(stale) = get(tp) {
                no_longer_open(stale);
                *stale = *conn;
                lost::count(hook, Cause::Limit);
                return true;
            }
        }
        Err(_) => {}
    }
    if let Some(full) = CONNS_FULL.get_ptr_mut(0) {
        // SAFETY: an element of the map; every writer writes the same.
        unsafe { core::ptr::write_volatile(full, 1) };
    }
    lost::count(hook, Cause::MapFull);
    false
}

/// Forgets a socket.
#[inline(always)]
pub fn remove(tp: TcpSock) {
    // Not there: then there is nothing to forget.
    let _ = CONNS.remove(&tp.id());
}

/// Whether an insert has ever failed.
#[inline(always)]
pub fn overflowed() -> bool {
    CONNS_FULL.get(0).copied() != Some(0)
}

/// An entry that takes the socket as it is: what it sent and received so far
/// does not count.
#[inline(always)]
pub fn from_here(tp: TcpSock, row: u32, side: Side, state: u8) -> Conn {
    let (sent_bytes, received_bytes) = (tp.sent(state), tp.received());
    Conn {
        since_ns: 0,
        first_sent_bytes: sent_bytes,
        first_received_bytes: received_bytes,
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
    }
}

/// Takes in a connection that was open before the start, or whose entry found
/// no place when it was opened.
#[inline(always)]
pub fn adopt(tp: TcpSock, netns: u32, state: u8, hook: Hook) {
    let sk = tp.sock();
    // SAFETY: the entry is only read.
    let listening = unsafe { LISTENERS.get(&listener_key(netns, sk.local_port())) }.is_some();
    let side = if listening {
        Side::Server
    } else {
        Side::Unknown
    };
    let row = row_of_sock(sk, side, netns, hook);
    let mut conn = from_here(tp, row, side, state);
    if overflowed() {
        // It was opened after the start and nothing of it has been counted.
        conn.sent_bytes = 0;
        conn.received_bytes = 0;
        conn.first_sent_bytes = 0;
        conn.first_received_bytes = 0;
        conn.retransmits = 0;
        conn.segs_in = 0;
        conn.segs_out = 0;
    }
    let is_open = matches!(state, state::ESTABLISHED | state::CLOSE_WAIT);
    if is_open {
        conn.flags = OPEN;
    }
    if insert(tp, &conn, hook)
        && is_open
        && let Some(row) = RowRef::get(row)
    {
        row.open(1);
    }
}

/// The connection left ESTABLISHED and CLOSE_WAIT.
#[inline(always)]
pub fn no_longer_open(conn: &mut Conn) {
    if conn.flags & OPEN != 0 {
        conn.flags &= !OPEN;
        if let Some(row) = RowRef::get(conn.row) {
            row.open(u64::MAX);
        }
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
    record_rtt(conn, sample_us);
}

/// The last look at a connection that is closing: several segments may have
/// been handled since the one before, so the newest measurement is taken.
#[inline(always)]
pub fn observe_last_rtt(conn: &mut Conn, tp: TcpSock) {
    if tp.srtt() != conn.srtt_us || tp.mdev() != conn.mdev_us {
        record_rtt(conn, tp.rack_rtt_us());
    }
}

#[inline(always)]
fn record_rtt(conn: &Conn, sample_us: u32) {
    if let Some(row) = RowRef::get(conn.row) {
        row.observe(Kind::Rtt, u64::from(sample_us) * 1000);
    }
}

/// Adds what the socket did since the last time to its row. `state` is the
/// state before the present transition.
#[inline(always)]
pub fn flush(conn: &mut Conn, tp: TcpSock, state: u8) {
    let Some(row) = RowRef::get(conn.row) else {
        return;
    };
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
pub fn flush_retransmits(conn: &mut Conn, tp: TcpSock, why: Retransmit) {
    let total = tp.total_retrans();
    if total != conn.retransmits {
        if let Some(row) = RowRef::get(conn.row) {
            row.retransmits(why, total.wrapping_sub(conn.retransmits));
        }
        conn.retransmits = total;
    }
}

/// Whether the entry is of a connection in SYN_SENT.
#[inline(always)]
pub fn is_connecting(conn: &Conn) -> bool {
    conn.flags & CONNECTING != 0
}
