//! Which row an event belongs to, and how it is written.

mod key;
mod peer;
mod row;

use probe_common::{
    abi::series::{REASON_UNAVAILABLE, ResetKey},
    hooks::Loss,
    labels::Direction,
};

pub use self::{
    key::{owner, owner_of, row_of, row_of_sock, row_of_tcp},
    row::{RowRef, shard},
};
use crate::{
    atomic, lost,
    maps::{self, RESETS},
};

/// One reset; `full` counts one that finds no entry.
#[inline(always)]
pub fn reset(row: u32, direction: Direction, reason: Option<u32>, full: Loss) {
    let key = ResetKey {
        row,
        direction: direction as u32,
        reason: reason.unwrap_or(REASON_UNAVAILABLE),
    };
    let counter = maps::counter(&RESETS, &key).or_else(|| {
        lost::count(full, row.into());
        // The collector has made this one at the start.
        RESETS.get_ptr_mut(&ResetKey::overflow(direction))
    });
    if let Some(counter) = counter {
        // SAFETY: a value of `RESETS`, whose entries are never removed.
        unsafe { atomic::add(counter, 1) };
    }
}
