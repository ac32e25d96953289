//! The servers' side of the load.

use std::{
    io::{self, PipeReader, PipeWriter, Read},
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Ending, HEADER, Tally, Totals, read_exactly, read_to_end, write_exactly};
use crate::{
    netns::Netns,
    poll::{self, PATIENCE},
};

/// Connections that may wait for `accept()`: more than there are clients.
const BACKLOG: i32 = 4096;
const WORKERS: usize = 128;

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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
