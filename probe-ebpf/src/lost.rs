//! Counts what could not be counted where it belongs.

use probe_common::hooks::{Cause, Hook, slot};

use crate::{atomic, maps::LOST};

/// One event of `hook` was lost, or lost its labels, for `cause`.
#[inline(always)]
pub fn count(hook: Hook, cause: Cause) {
    if let Some(counter) = LOST.get_ptr_mut(slot(hook, cause)) {
        // SAFETY: an element of the map.
        unsafe { atomic::add(counter, 1) };
    }
}
