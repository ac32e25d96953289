//! Options of sockets that the standard library does not have.

use std::{io, os::fd::AsRawFd};

/// Sets an option of TCP that is an `int`.
///
/// # Panics
///
/// Where the kernel does not take it.
#[track_caller]
pub fn set_tcp(socket: &impl AsRawFd, option: libc::c_int, value: libc::c_int) {
    set(socket, libc::IPPROTO_TCP, option, value);
}

/// Sets an option that is an `int`.
///
/// # Panics
///
/// Where the kernel does not take it.
#[track_caller]
pub fn set(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
    // SAFETY: the option takes an int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    let error = io::Error::last_os_error();
    assert_eq!(result, 0, "option {option} of level {level}: {error}");
}

/// An option of TCP that is an `int`.
///
/// # Panics
///
/// Where the socket does not have it.
#[track_caller]
pub fn tcp(socket: &impl AsRawFd, option: libc::c_int) -> libc::c_int {
    let mut value: libc::c_int = 0;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option fills an int, which lives through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    let error = io::Error::last_os_error();
    assert_eq!(result, 0, "option {option} of TCP: {error}");
    value
}
