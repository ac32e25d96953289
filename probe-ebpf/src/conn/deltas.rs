//! What a socket did since the last look, into its row.

use probe_common::{
    abi::conn::{Conn, Flushed, ZERO_WINDOW},
    labels::{Retransmit, Side},
    metrics::HistogramId,
    tcp_metrics,
};

use crate::{kernel::sock::TcpSock, series::RowRef};

/// The counters that the table of metrics takes from the socket.
macro_rules! flush_list {
    (
        counters {$(
            $(#[$help:meta])*
            $field:ident {
                name: $name:literal, type: $type:ident, unit: $unit:ident, $(by: $label:ident as $key:literal,)?
                from: $from:ident $(($getter:ident: $width:ident $(, $state:ident)?))?,
                kernel: $kernel:literal,
            }
        )*}
        $($histograms:tt)*
    ) => {
        /// Adds what the socket did since the last time to its row. `state` is the
        /// state before the present transition.
        #[inline(always)]
        pub fn flush(conn: &mut Conn, tp: TcpSock, state: u8, row: RowRef) {
            $($(
                let now: $width = flush_list!(@get tp state $getter $($state)?);
                let before = conn.flushed.$field;
                if flush_list!(@is_new $width now before) {
                    row.$field(now.wrapping_sub(before).into());
                    conn.flushed.$field = now;
                }
            )?)*
        }

        /// All that the socket did up to now.
        #[inline(always)]
        pub fn all_so_far(tp: TcpSock, state: u8) -> Flushed {
            Flushed {
                $($($field: flush_list!(@get tp state $getter $($state)?),)?)*
                ..Flushed::default()
            }
        }
    };
    (@get $tp:ident $now:ident $getter:ident) => { $tp.$getter() };
    (@get $tp:ident $now:ident $getter:ident state) => { $tp.$getter($now) };
    // What is made of several fields may for a moment seem to go back.
    (@is_new u64 $now:ident $before:ident) => { $now > $before };
    // The kernel's own are 32 bits wide and wrap.
    (@is_new u32 $now:ident $before:ident) => { $now != $before };
}
tcp_metrics!(flush_list);

/// Adds the segments that were sent again since the last time, for one cause.
#[inline(always)]
pub fn flush_retransmits(conn: &mut Conn, tp: TcpSock, why: Retransmit, row: RowRef) {
    let total = tp.total_retrans();
    if total > conn.retransmits {
        row.retransmits(why, (total - conn.retransmits).into());
    }
    conn.retransmits = total;
}

/// Adds a client's SYNs that were sent again and are not among the `known` ones.
#[inline(always)]
pub fn flush_syns(tp: TcpSock, side: Side, known: u32, row: RowRef) {
    if matches!(side, Side::Client) {
        let unseen = tp.total_retrans().saturating_sub(known);
        if unseen != 0 {
            row.retransmits(Retransmit::Syn, unseen.into());
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
    // No sample is negative: a look was skipped, and two samples lie between.
    let sample_us = if sample_us.cast_signed() < 0 {
        tp.rack_rtt_us()
    } else {
        sample_us
    };
    if let Some(row) = RowRef::get(conn.row) {
        row.observe(HistogramId::Rtt, u64::from(sample_us) * 1000);
    }
}

/// The same for a connection that has left ESTABLISHED: no event tells of its
/// segments and several may have been handled since the last look, so the newest
/// measurement is taken.
#[inline(always)]
pub fn observe_newest_rtt(conn: &mut Conn, tp: TcpSock, row: RowRef) {
    let (srtt, mdev) = (tp.srtt(), tp.mdev());
    if srtt != conn.srtt_us || mdev != conn.mdev_us {
        row.observe(HistogramId::Rtt, u64::from(tp.rack_rtt_us()) * 1000);
        conn.srtt_us = srtt;
        conn.mdev_us = mdev;
    }
}

/// The least RTT of a connection, if there is a sample.
#[inline(always)]
pub fn observe_min_rtt(tp: TcpSock, row: RowRef) {
    let least_us = tp.min_rtt_us();
    if least_us != u32::MAX {
        row.observe(HistogramId::MinRtt, u64::from(least_us) * 1000);
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
