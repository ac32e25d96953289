//! Load that knows what it did: short connections at full speed, counted to
//! the byte by the two programs that made them.

use std::{
    io::{self, PipeReader, PipeWriter, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    netns::Netns,
    poll::{self, PATIENCE},
    snmp::Counters,
};

/// Connections that may wait for `accept()`: more than there are clients.
const BACKLOG: i32 = 4096;
const WORKERS: usize = 128;
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

/// Listeners and the threads that answer.
pub struct Server {
    tally: Arc<Tally>,
    held: Arc<Mutex<Vec<TcpStream>>>,
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Server {
    /// Listens on addresses inside a namespace: plain TCP, or MPTCP as Go
    /// programs do by default.
    ///
    /// # Panics
    ///
    /// Where an address cannot be had.
    #[track_caller]
    pub fn start(netns: &Netns, plain: &[SocketAddr], mptcp: &[SocketAddr]) -> Self {
        let (stopped, stop) = io::pipe().expect("a pipe");
        let tally = Arc::new(Tally::default());
        let held = Arc::new(Mutex::new(Vec::new()));
        let (accepted, work) = mpsc::channel();
        let work = Arc::new(Mutex::new(work));
        let mut threads = Vec::new();
        let protocols = (plain.iter().map(|address| (address, Protocol::TCP)))
            .chain(mptcp.iter().map(|address| (address, Protocol::MPTCP)));
        for (address, protocol) in protocols {
            let listener = netns
                .run(|| listen(*address, protocol, BACKLOG))
                .unwrap_or_else(|error| panic!("listening on {address}: {error}"));
            let stopped = stopped.try_clone().expect("a descriptor");
            let accepted = accepted.clone();
            threads.push(thread::spawn(move || {
                accept(&listener, &stopped, &accepted)
            }));
        }
        for _ in 0..WORKERS {
            let (work, tally, held) = (Arc::clone(&work), Arc::clone(&tally), Arc::clone(&held));
            threads.push(thread::spawn(move || {
                loop {
                    // The lock lasts for the wait alone: it ends with the statement.
                    let next = lock(&work).recv();
                    let Ok(stream) = next else { return Ok(()) };
                    if let Some(stream) = answer(stream, &tally)? {
                        lock(&held).push(stream);
                    }
                }
            }));
        }
        Self {
            tally,
            held,
            stop: Some(stop),
            threads,
        }
    }

    /// What it did so far.
    pub fn totals(&self) -> Totals {
        self.tally.totals()
    }

    /// Closes the connections that were to stay open, once all are there: a
    /// client has its answer a moment before the server puts its end aside.
    ///
    /// # Panics
    ///
    /// Where they are not as many.
    #[track_caller]
    pub fn release(&self, connections: usize) {
        let held = poll::until("all connections are held", || {
            let mut held = lock(&self.held);
            (held.len() >= connections).then(|| std::mem::take(&mut *held))
        });
        assert_eq!(held.len(), connections, "connections held");
    }

    /// Closes the listeners and ends the threads.
    ///
    /// # Panics
    ///
    /// Where one of them met an error.
    #[track_caller]
    pub fn stop(mut self) -> Totals {
        for result in self.end() {
            result
                .expect("no thread panicked")
                .expect("all were served");
        }
        self.totals()
    }

    fn end(&mut self) -> Vec<thread::Result<io::Result<()>>> {
        drop(self.stop.take());
        lock(&self.held).clear();
        self.threads.drain(..).map(JoinHandle::join).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// A listener in the namespace of the calling thread.
pub fn listen(address: SocketAddr, protocol: Protocol, backlog: i32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn accept(
    listener: &Socket,
    stopped: &PipeReader,
    accepted: &mpsc::Sender<TcpStream>,
) -> io::Result<()> {
    loop {
        let ready = wait_readable(&[listener.as_raw_fd(), stopped.as_raw_fd()])?;
        if ready[1] {
            return Ok(());
        }
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                if accepted.send(stream.into()).is_err() {
                    return Ok(());
                }
            }
            // Reset while it waited in the queue, or another took it.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

fn wait_readable(descriptors: &[RawFd; 2]) -> io::Result<[bool; 2]> {
    let mut polled = descriptors.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: `polled` is an array of two, and outlives the call.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) };
    if ready < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(polled.map(|one| one.revents != 0))
}

/// Serves a connection; returns it where it is to stay open.
fn answer(mut stream: TcpStream, tally: &Tally) -> io::Result<Option<TcpStream>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    tally.connections.fetch_add(1, Ordering::SeqCst);
    let mut header = [0; HEADER];
    match stream.read_exact(&mut header) {
        Ok(()) => {}
        // A client that only wanted the connection.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let mut words = header
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_be_bytes(*word));
    let mut word = || words.next().unwrap_or_default();
    let (request, reply) = (u64::from(word()), u64::from(word()));
    let ending = Ending::from_number(word()).ok_or(io::ErrorKind::InvalidData)?;
    tally.received.fetch_add(HEADER as u64, Ordering::SeqCst);
    read_exactly(&mut stream, request, &tally.received)?;
    if ending == Ending::ClientFirst {
        read_to_end(&mut stream)?;
    }
    write_exactly(&mut stream, reply, &tally.sent)?;
    match ending {
        Ending::ClientFirst | Ending::ServerFirst => Ok(None),
        Ending::Hold => Ok(Some(stream)),
        Ending::Abort => {
            // The reset may be lost on its way: then this end closes instead.
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            match stream.read(&mut [0]) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionReset | io::ErrorKind::WouldBlock
                    ) =>
                {
                    Ok(None)
                }
                Err(error) => Err(error),
                Ok(_) => Err(io::Error::other("data or FIN where a reset was due")),
            }
        }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
