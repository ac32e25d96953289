//! What a socket did since the last look, into its row.

use probe_common::{
    abi::conn::{Conn, ZERO_WINDOW},
    abi::series::{Kind, Retransmit},
};

use crate::{kernel::sock::TcpSock, series::RowRef};

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
