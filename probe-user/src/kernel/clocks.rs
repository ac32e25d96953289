//! The clocks and the kernel's release.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Seconds since 1970-01-01 UTC.
pub fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of the programs.
pub fn monotonic_ns() -> u64 {
    // The kernel has had this clock since 2.6: asking for it cannot fail.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| Duration::from(now).as_nanos() as u64)
}

/// Release of the running kernel.
pub fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_is_that_of_the_standard_library() {
        // It keeps the same clock, and shows no more than differences of it.
        let before = std::time::Instant::now();
        let first = monotonic_ns();
        std::thread::sleep(Duration::from_millis(20));
        let passed = monotonic_ns() - first;
        let around = before.elapsed().as_nanos() as u64;
        assert!(first > 0);
        assert!((20_000_000..=around).contains(&passed), "{passed} {around}");
    }
}
