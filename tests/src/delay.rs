//! A wire of known length: two tap devices in two namespaces, and a forwarder
//! between them that holds every frame back for the same time. It works where
//! the kernel has no `netem`.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    netns::{DEVICE, Netns, Pair},
    tcp_info::smoothed_rtt,
};

/// Time that a frame is under way in one direction.
pub const ONE_WAY: Duration = Duration::from_millis(25);

const PORT: u16 = 8080;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// Two namespaces with addresses as in [`Pair`], and the wire between them.
pub struct DelayLine {
    server: Netns,
    client: Netns,
    one_way_ns: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// Frames under way in one direction, each with the time it arrives.
#[derive(Default)]
struct Wire {
    frames: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    more: Condvar,
}

impl DelayLine {
    /// Makes one.
    ///
    /// # Panics
    ///
    /// Where there are no tap devices.
    #[track_caller]
    pub fn new(one_way: Duration) -> Self {
        let (server, client) = (Netns::new(), Netns::new());
        let taps = [&server, &client].map(|netns| {
            let tap = netns.run(|| tap(DEVICE));
            tap.unwrap_or_else(|error| panic!("a tap device: {error}"))
        });
        Pair::configure(&server, 1);
        Pair::configure(&client, 2);
        let one_way_ns = Arc::new(AtomicU64::new(one_way.as_nanos() as u64));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            let wire = Arc::new(Wire::default());
            let from = taps[from].try_clone().expect("a descriptor");
            let to = taps[to].try_clone().expect("a descriptor");
            let (enter, leave) = (Arc::clone(&wire), wire);
            let (stop_enter, stop_leave) = (Arc::clone(&stop), Arc::clone(&stop));
            let one_way_ns = Arc::clone(&one_way_ns);
            threads.push(thread::spawn(move || {
                enter.take_in(from, &one_way_ns, &stop_enter)
            }));
            threads.push(thread::spawn(move || leave.hand_out(to, &stop_leave)));
        }
        Self {
            server,
            client,
            one_way_ns,
            stop,
            threads,
        }
    }

    /// Makes it another length, for the frames that enter from now on.
    pub fn set(&self, one_way: Duration) {
        (self.one_way_ns).store(one_way.as_nanos() as u64, Ordering::SeqCst);
    }

    /// Both namespaces.
    pub fn both(&self) -> [&Netns; 2] {
        [&self.server, &self.client]
    }

    /// Makes short questions and answers over both families; see [`talk`].
    ///
    /// # Panics
    ///
    /// Where a connection fails.
    #[track_caller]
    pub fn talk(&self, questions: usize) -> Vec<f64> {
        talk(&self.server, &self.client, questions)
    }
}

/// Makes short questions and answers over both families, some connections at a
/// time. Returns the smoothed RTT in seconds of `TCP_INFO` at the client after
/// each answer, sorted.
///
/// # Panics
///
/// Where a connection fails.
#[track_caller]
pub fn talk(server: &Netns, client: &Netns, questions: usize) -> Vec<f64> {
    const AT_ONCE: usize = 8;
    let each = questions.div_ceil(AT_ONCE);
    let listeners = Pair::SERVERS.map(|address| {
        let target = SocketAddr::new(address, PORT);
        let listener = server.run(|| TcpListener::bind(target));
        (target, listener.expect("a listener"))
    });
    let mut rtts: Vec<f64> = thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..AT_ONCE {
            let (target, listener) = &listeners[number % listeners.len()];
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().expect("a connection");
                stream.set_nodelay(true).expect("no delay of answers");
                let mut question = [0; 64];
                while stream.read_exact(&mut question).is_ok() {
                    stream.write_all(&question).expect("the client reads");
                }
            });
            threads.push(scope.spawn(move || {
                client.enter();
                let mut stream = TcpStream::connect(target).expect("a connection");
                stream.set_nodelay(true).expect("no delay of questions");
                let one = |_| {
                    let mut answer = [0; 64];
                    stream.write_all(&answer).expect("the server reads");
                    stream.read_exact(&mut answer).expect("the server writes");
                    smoothed_rtt(&stream).expect("TCP_INFO")
                };
                (0..each).map(one).collect::<Vec<_>>()
            }));
        }
        let joined = threads.into_iter().map(|thread| {
            let rtts = thread.join();
            rtts.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        joined.flatten().collect()
    });
    rtts.sort_by(f64::total_cmp);
    rtts
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Wire {
    fn take_in(&self, mut from: File, delay_ns: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
        let mut buffer = [0; 65536];
        while !stop.load(Ordering::SeqCst) {
            if !readable(&from)? {
                continue;
            }
            let length = from.read(&mut buffer)?;
            let delay = Duration::from_nanos(delay_ns.load(Ordering::SeqCst));
            let frame = (Instant::now() + delay, buffer[..length].to_vec());
            self.lock().push_back(frame);
            self.more.notify_one();
        }
        Ok(())
    }

    fn hand_out(&self, mut to: File, stop: &AtomicBool) -> io::Result<()> {
        while !stop.load(Ordering::SeqCst) {
            let mut frames = self.lock();
            let Some((due, _)) = frames.front() else {
                let waited = self.more.wait_timeout(frames, Duration::from_millis(100));
                drop(waited);
                continue;
            };
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let frame = frames.pop_front();
                drop(frames);
                if let Some((_, frame)) = frame {
                    to.write_all(&frame)?;
                }
            } else {
                drop(frames);
                thread::sleep(left);
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Vec<u8>)>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a frame, but not for long: the thread must see that it is to stop.
fn readable(tap: &File) -> io::Result<bool> {
    let mut polled = libc::pollfd {
        fd: tap.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `polled` is one entry, and outlives the call.
    match unsafe { libc::poll(&raw mut polled, 1, 100) } {
        -1 => Err(io::Error::last_os_error()),
        ready => Ok(ready == 1),
    }
}

/// A tap device in the namespace of the calling thread.
fn tap(name: &str) -> io::Result<File> {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: the request reads and writes an `ifreq`, which lives through it.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tap)
}
