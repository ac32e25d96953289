//! Waiting for a condition instead of for a time.

use std::{
    os::fd::AsRawFd,
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

/// Waits until a read or an `accept()` would not wait, without doing it.
///
/// # Panics
///
/// After a minute, or where the socket has an error; `what` says what was to come.
#[track_caller]
pub fn readable(socket: &impl AsRawFd, what: &str) {
    let mut polled = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `polled` is one entry, and outlives the call.
    let ready = unsafe { libc::poll(&raw mut polled, 1, 60_000) };
    assert_eq!((ready, polled.revents), (1, libc::POLLIN), "{what}");
}

/// Whether a socket has an error that its program has not fetched.
///
/// # Panics
///
/// Where the kernel cannot be asked.
pub fn has_error(socket: &impl AsRawFd) -> bool {
    let mut polled = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: `polled` is one entry, and outlives the call.
    let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
    assert!(ready >= 0, "{}", std::io::Error::last_os_error());
    polled.revents & libc::POLLERR != 0
}
