//! Waiting for a condition instead of for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything may take before the test gives up. Generous: it is only
/// spent where the test fails, and emulated processors are slow.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Asks until there is an answer.
///
/// # Panics
///
/// After [`PATIENCE`], with what was waited for.
#[track_caller]
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
