//! Load that knows what it did: short connections at full speed, counted to
//! the byte by the two programs that made them.

mod server;

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use socket2::Socket;

pub use self::server::{Server, listen};
use crate::{
    netns::Netns,
    poll::{self, PATIENCE},
    snmp::Counters,
};

const HEADER: usize = 12;
/// What the larger requests and replies have on top.
const LARGE: [u32; 2] = [100_000, 150_000];
/// No connection of [`Clients`] sends or receives more.
pub const MOST_BYTES: u32 = 4_000 + LARGE[1] + HEADER as u32;

/// What one side of the load did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections that were established.
    pub connections: u64,
    /// Bytes written.
    pub sent: u64,
    /// Bytes read.
    pub received: u64,
}

#[derive(Default)]
struct Tally {
    connections: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Tally {
    fn totals(&self) -> Totals {
        Totals {
            connections: self.connections.load(Ordering::SeqCst),
            sent: self.sent.load(Ordering::SeqCst),
            received: self.received.load(Ordering::SeqCst),
        }
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Ending {
    /// The client has sent all and says so; the server answers and closes.
    ClientFirst = 0,
    /// The server answers and closes.
    ServerFirst = 1,
    /// The client has read the answer and aborts.
    Abort = 2,
    /// Both keep it open.
    Hold = 3,
}

impl Ending {
    fn from_number(number: u32) -> Option<Self> {
        [
            Self::ClientFirst,
            Self::ServerFirst,
            Self::Abort,
            Self::Hold,
        ]
        .into_iter()
        .find(|ending| *ending as u32 == number)
    }
}

static PATTERN: [u8; 16384] = [b'e'; 16384];

fn write_exactly(stream: &mut TcpStream, length: u64, count: &AtomicU64) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        let part = left.min(PATTERN.len() as u64) as usize;
        let written = stream.write(&PATTERN[..part])?;
        count.fetch_add(written as u64, Ordering::SeqCst);
        left -= written as u64;
    }
    Ok(())
}

fn read_exactly(stream: &mut TcpStream, length: u64, count: &AtomicU64) -> io::Result<()> {
    let mut buffer = [0; 16384];
    let mut left = length;
    while left > 0 {
        let part = left.min(buffer.len() as u64) as usize;
        let read = stream.read(&mut buffer[..part])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        count.fetch_add(read as u64, Ordering::SeqCst);
        left -= read as u64;
    }
    Ok(())
}

fn read_to_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more data than announced")),
    }
}

/// The clients' side of the load.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Connections to make.
    pub connections: u32,
    /// Threads that make them.
    pub threads: usize,
    /// Where to, in turn.
    pub targets: Vec<SocketAddr>,
}

impl Clients {
    /// Makes the connections from inside a namespace, as fast as they go.
    ///
    /// # Panics
    ///
    /// Where one of them fails.
    #[track_caller]
    pub fn run(&self, netns: &Netns) -> Totals {
        let tally = Tally::default();
        let next = AtomicU32::new(0);
        let result = netns.run(|| {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..self.threads)
                    .map(|_| scope.spawn(|| self.one_thread(&next, &tally)))
                    .collect();
                (threads.into_iter()).try_for_each(|thread| match thread.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
            })
        });
        result.unwrap_or_else(|(number, error)| panic!("connection {number}: {error}"));
        tally.totals()
    }

    fn one_thread(&self, next: &AtomicU32, tally: &Tally) -> Result<(), (u32, io::Error)> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.connections {
                return Ok(());
            }
            let target = self.targets[number as usize % self.targets.len()];
            let (request, reply, ending) = self.plan(number);
            exchange(target, request, reply, ending, tally).map_err(|error| (number, error))?;
        }
    }

    /// Length of the request and of the reply of a connection, and its end.
    fn plan(&self, number: u32) -> (u32, u32, Ending) {
        let ending = match number / self.targets.len() as u32 % 10 {
            0..=5 => Ending::ClientFirst,
            6..=8 => Ending::ServerFirst,
            _ => Ending::Abort,
        };
        // Mostly a segment or a few; now and then enough for a window.
        let mut request = number.wrapping_mul(7919) % 2000;
        let mut reply = number.wrapping_mul(104_729) % 4000;
        if number % 64 == 1 {
            request += LARGE[0];
        }
        if number % 97 == 1 {
            reply += LARGE[1];
        }
        (request, reply, ending)
    }

    /// Connections whose server has something to answer, and those of them
    /// whose client does not close its half before the answer.
    pub fn answered(&self) -> [u64; 2] {
        let plans = (0..self.connections).map(|number| self.plan(number));
        let answered: Vec<_> = plans.filter(|(_, reply, _)| *reply > 0).collect();
        let open = |(_, _, ending): &&(u32, u32, Ending)| *ending != Ending::ClientFirst;
        [
            answered.len() as u64,
            answered.iter().filter(open).count() as u64,
        ]
    }
}

/// Connections that stay open until dropped, with one exchange done.
///
/// # Panics
///
/// Where one fails.
#[track_caller]
pub fn hold(netns: &Netns, targets: &[SocketAddr], each: usize) -> (Vec<TcpStream>, Totals) {
    let tally = Tally::default();
    let held = netns.run(|| {
        targets
            .iter()
            .flat_map(|target| vec![*target; each])
            .map(|target| exchange(target, 100, 100, Ending::Hold, &tally))
            .collect::<io::Result<Vec<_>>>()
    });
    let held = held.unwrap_or_else(|error| panic!("a connection to hold: {error}"));
    (held.into_iter().flatten().collect(), tally.totals())
}

fn exchange(
    target: SocketAddr,
    request: u32,
    reply: u32,
    ending: Ending,
    tally: &Tally,
) -> io::Result<Option<TcpStream>> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    tally.connections.fetch_add(1, Ordering::SeqCst);
    let header = [request, reply, ending as u32].map(u32::to_be_bytes);
    stream.write_all(header.as_flattened())?;
    tally.sent.fetch_add(HEADER as u64, Ordering::SeqCst);
    write_exactly(&mut stream, u64::from(request), &tally.sent)?;
    if ending == Ending::ClientFirst {
        stream.shutdown(Shutdown::Write)?;
    }
    read_exactly(&mut stream, u64::from(reply), &tally.received)?;
    match ending {
        Ending::ClientFirst | Ending::ServerFirst => {
            read_to_end(&mut stream)?;
            Ok(None)
        }
        Ending::Abort => {
            let socket = Socket::from(stream);
            socket.set_linger(Some(Duration::ZERO))?;
            Ok(None)
        }
        Ending::Hold => Ok(Some(stream)),
    }
}

/// Addresses with a port.
pub fn on_port(addresses: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    addresses
        .iter()
        .map(|address| SocketAddr::new(*address, port))
        .collect()
}

/// Waits until nothing moves: no TCP socket of the namespaces is between two
/// states, none but `established` ends of connections are left open, and the
/// counters stand still. Returns the sum of the counters.
///
/// # Panics
///
/// Where that does not come.
#[track_caller]
pub fn quiet(namespaces: &[&Netns], established: usize) -> Counters {
    let sum = || {
        (namespaces.iter().map(|netns| netns.counters()))
            .fold(Counters::default(), |sum, one| sum + one)
    };
    poll::until("all connections have come to rest", || {
        let states: Vec<u8> = (namespaces.iter())
            .flat_map(|netns| netns.run(states_here))
            .collect();
        let open = states.iter().filter(|state| **state == 1).count();
        let resting = states.iter().all(|state| matches!(state, 1 | 6 | 10));
        if !resting || open != established {
            return None;
        }
        let first = sum();
        thread::sleep(Duration::from_millis(250));
        (first == sum()).then_some(first)
    })
}

/// TCP states of all sockets in the namespace of the calling thread.
fn states_here() -> Vec<u8> {
    ["tcp", "tcp6"]
        .into_iter()
        .filter_map(|file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok())
        .flat_map(|text| {
            text.lines()
                .skip(1)
                .filter_map(|line| u8::from_str_radix(line.split_whitespace().nth(3)?, 16).ok())
                .collect::<Vec<_>>()
        })
        .collect()
}
