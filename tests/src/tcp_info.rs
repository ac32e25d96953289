//! What the kernel says of a connection to the program that has it.

use std::{io, net::TcpStream, os::fd::AsRawFd};

/// `TCP_INFO` of a connection.
///
/// # Errors
///
/// Where the socket is no TCP socket.
pub fn tcp_info(stream: &TcpStream) -> io::Result<libc::tcp_info> {
    // SAFETY: all-zero is a valid `tcp_info`.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the option fills at most `length` bytes of `info`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(info),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `tcpi_rtt` in seconds.
///
/// # Errors
///
/// Where the socket is no TCP socket.
pub fn smoothed_rtt(stream: &TcpStream) -> io::Result<f64> {
    tcp_info(stream).map(|info| f64::from(info.tcpi_rtt) / 1e6)
}

/// `tcpi_min_rtt` in microseconds, which the C library's structure does not have.
///
/// # Errors
///
/// Where the socket is no TCP socket, or the kernel tells of none.
pub fn least_rtt_us(stream: &TcpStream) -> io::Result<u32> {
    /// Where it is in `struct tcp_info` (`include/uapi/linux/tcp.h`).
    const OFFSET: usize = 148;
    let mut info = [0u8; OFFSET + 4];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the option fills at most `length` bytes of `info`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if length as usize != info.len() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let [.., a, b, c, d] = info;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}
