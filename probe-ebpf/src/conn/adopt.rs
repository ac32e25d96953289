//! Connections that were open before the start, that found no slot when they were
//! opened, or that another socket has opened (`TCP_REPAIR`).

use probe_common::{
    abi::conn::{Conn, OPEN, tls},
    hooks::Loss,
};

use super::{deltas::all_so_far, fill, get, has_overflowed, insert, open::nothing_yet, side_of};
use crate::{
    kernel::sock::{TcpSock, state},
    lost,
    series::{RowRef, row_of_tcp},
};

/// Makes an entry that takes the socket as it is: what it did so far does not
/// count, unless it was opened after the start. `full` counts one for which there
/// is no slot, or no row.
#[inline(always)]
pub fn adopt(tp: TcpSock, state: u8, full: Loss) -> Option<&'static mut Conn> {
    // SAFETY: as in `get`.
    unsafe { slot_for(tp, state, full).as_mut() }
}

/// The entry, or null. A function of its own, with a stack of its own: its callers have
/// much on theirs.
#[inline(never)]
fn slot_for(tp: TcpSock, state: u8, full: Loss) -> *mut Conn {
    let sk = tp.sock();
    let side = side_of(tp);
    let number = row_of_tcp(tp, side, full);
    let mut conn = Conn {
        row: number,
        srtt_us: tp.srtt(),
        mdev_us: tp.mdev(),
        retransmits: tp.total_retrans(),
        flushed: all_so_far(tp, state),
        side: side as u8,
        tls: tls::DONE,
        write_seq: tp.write_seq(),
        data_segs: tp.data_segs_in(),
        used: 1,
        ..Conn::default()
    };
    let has_overflowed = has_overflowed();
    if has_overflowed {
        // It was opened after the start and nothing of it has been counted.
        conn.flushed = nothing_yet(side);
        conn.retransmits = 0;
    }
    let Some(slot) = get(sk).or_else(|| insert(sk)) else {
        // If one was lost before, this one has been counted as such.
        if !has_overflowed {
            lost::count(full, sk.id());
        }
        return core::ptr::null_mut();
    };
    fill(slot, conn);
    if matches!(state, state::ESTABLISHED | state::CLOSE_WAIT)
        && let Some(row) = RowRef::get(number)
    {
        slot.flags = OPEN;
        row.open(1);
    }
    slot
}
