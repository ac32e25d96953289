//! Counts what could not be counted where it belongs.

use aya_log_ebpf::debug;
use probe_common::hooks::Loss;

use crate::{atomic, globals::global, maps::LOST};

/// One event was lost, or lost its labels. `about` is a number that tells which:
/// the number of a socket, a port or a row.
#[inline(always)]
pub fn count(loss: Loss, about: u64) {
    if let Some(counter) = LOST.get_ptr_mut(loss.slot()) {
        // SAFETY: `LOST` has a slot for each loss, and the verifier checks that the
        // pointer is not null.
        unsafe { atomic::add(counter, 1) };
    }
    if global!(CONFIG.logs) != 0 {
        log_loss(loss.slot(), about);
    }
}

/// Tells user space of a loss, as the number of its slot and what it is about.
///
/// A function of numbers: the verifier looks at it once, whoever calls it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn log_loss(slot: u32, about: u64) -> u32 {
    debug!((), target: probe_common::hooks::LOSS_TARGET, "{} {}", slot, about);
    0
}
