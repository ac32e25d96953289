//! The time in the accept queue: ESTABLISHED to the first sign that a program has
//! accepted the connection.

use probe_common::{abi::conn::Conn, labels::Side, metrics::HistogramId};

use crate::{
    atomic,
    conn::{is_side, now_ns},
    series::RowRef,
};

/// The program uses the socket, so it has accepted it.
#[inline(always)]
pub fn used(conn: &mut Conn) {
    if conn.used == 0 {
        // SAFETY: a member of an element of `CONNS`; of two that see the first use
        // one counts it.
        let before = unsafe { atomic::compare_exchange_u32(&raw mut conn.used, 0, 1) };
        if before == 0
            && is_side(conn, Side::Server)
            && conn.since_ns != 0
            && let Some(row) = RowRef::get(conn.row)
        {
            let waited_ns = now_ns().saturating_sub(conn.since_ns);
            row.observe(HistogramId::AcceptQueue, waited_ns);
        }
    }
}
