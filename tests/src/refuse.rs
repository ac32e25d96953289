//! Connections that come to nothing, each in its own way.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{frame, netns::Netns, poll::PATIENCE};

/// Sockets at once: well below the usual limit of open files.
const AT_ONCE: u32 = 200;

/// Makes `count` connections that must fail with `errno`; `syns` limits how
/// often the SYN is sent again.
///
/// # Panics
///
/// Where one ends in another way.
#[track_caller]
pub fn failing(netns: &Netns, target: SocketAddr, count: u32, syns: Option<i32>, errno: i32) {
    netns.run(|| {
        let mut left = count;
        while left > 0 {
            let batch = left.min(AT_ONCE);
            let sockets: Vec<_> = (0..batch)
                .map(|_| begin(target, syns).expect("a connection begins"))
                .collect();
            for socket in &sockets {
                decided(socket).expect("the outcome of a connection");
            }
            // The kernel shows the error a moment before it counts the failure;
            // who takes it then leaves a failure without one.
            thread::sleep(Duration::from_millis(20));
            for socket in sockets {
                let error = error_of(&socket).expect("the outcome of a connection");
                assert_eq!(error, errno, "connecting to {target}");
            }
            left -= batch;
        }
    });
}

/// The error number that a connection which is not waited for ends with, as Go, Node and
/// nginx learn it; 0 where it is made.
///
/// # Panics
///
/// Where it cannot begin.
#[track_caller]
pub fn told(netns: &Netns, target: SocketAddr) -> i32 {
    netns.run(|| {
        let socket = begin(target, None).expect("a connection begins");
        decided(&socket).expect("the outcome of a connection");
        // See `failing`.
        thread::sleep(Duration::from_millis(20));
        error_of(&socket).expect("the outcome of a connection")
    })
}

/// Closes `count` sockets while their SYN is unanswered.
///
/// # Panics
///
/// Where a connection cannot begin.
#[track_caller]
pub fn cancelled(netns: &Netns, target: SocketAddr, count: u32) {
    netns.run(|| {
        for _ in 0..count {
            drop(begin(target, None).expect("a connection begins"));
        }
    });
}

/// Uses up the local ports of the namespace and fails to connect `count` times
/// more; returns the connections that were made.
///
/// # Panics
///
/// Where connecting fails in another way, or does not fail.
#[track_caller]
pub fn ports_used_up(netns: &Netns, target: SocketAddr, count: u32) -> Vec<TcpStream> {
    const RANGE: &str = "ipv4/ip_local_port_range";
    const PORTS: u32 = 8;
    let usual = netns.command("cat", &["/proc/sys/net/ipv4/ip_local_port_range"]);
    netns.sysctl(RANGE, format!("62000 {}", 62000 + PORTS - 1));
    let held = netns.run(|| {
        let mut held = Vec::new();
        let mut failed = 0;
        while failed < count {
            match TcpStream::connect(target) {
                Ok(stream) => held.push(stream),
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => failed += 1,
                Err(error) => panic!("connecting to {target}: {error}"),
            }
            assert!(held.len() <= PORTS as usize, "more connections than ports");
        }
        held
    });
    netns.sysctl(RANGE, usual.trim());
    held
}

/// Sends `count` SYNs from ports where no socket is: the SYN-ACK is answered
/// with a reset, which ends the half-open connection.
///
/// # Panics
///
/// Where a packet cannot be sent.
#[track_caller]
pub fn half_open(netns: &Netns, source: IpAddr, target: SocketAddr, count: u16) {
    // Above the range that the clients' ports are chosen from.
    const FIRST_PORT: u16 = 63000;
    assert!(count <= u16::MAX - FIRST_PORT, "one port for each");
    netns.run(|| {
        for number in 0..count {
            let packet = frame::syn(SocketAddr::new(source, FIRST_PORT + number), target);
            frame::send_ip(&packet, target.ip()).expect("a SYN leaves");
        }
    });
}

/// A socket whose connection has begun.
fn begin(target: SocketAddr, syns: Option<i32>) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(target),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if let Some(syns) = syns {
        // SAFETY: the option takes an int, which lives through the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_SYNCNT,
                (&raw const syns).cast(),
                size_of_val(&syns) as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    socket.set_nonblocking(true)?;
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
        Ok(()) => Err(io::Error::other("it was there at once")),
    }
}

/// The error number of a connection that has failed, else 0.
fn error_of(socket: &Socket) -> io::Result<i32> {
    let error = socket.take_error()?;
    Ok(error.and_then(|error| error.raw_os_error()).unwrap_or(0))
}

/// Waits until the connection is made or has failed.
fn decided(socket: &Socket) -> io::Result<()> {
    let mut polled = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: `polled` is one entry, and outlives the call.
    let ready = unsafe { libc::poll(&raw mut polled, 1, PATIENCE.as_millis() as i32) };
    match ready {
        1 => Ok(()),
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Connections that were begun and are left to themselves.
///
/// # Panics
///
/// Where one cannot begin.
#[track_caller]
pub fn waiting(netns: &Netns, target: SocketAddr, count: u32, syns: i32) -> Vec<Socket> {
    netns.run(|| {
        (0..count)
            .map(|_| begin(target, Some(syns)).expect("a connection begins"))
            .collect()
    })
}
