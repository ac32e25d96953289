//! A crowd of clients that behave badly, and others beside it whose waiting is
//! measured.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::options;

/// What Prometheus asks for where native histograms are wanted.
const PROMETHEUS: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
const TEXT: &str = "text/plain";
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Another client's address, also of this host.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// For the whole of an answer; far more than any may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Silent and deaf clients stay for so long, then as many come again.
const STAY: Duration = Duration::from_secs(4);

/// How a page is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Its path.
    pub path: &'static str,
    /// The formats that are wanted.
    pub accept: &'static str,
    /// Whether it may be compressed.
    pub gzip: bool,
    /// The client's own address.
    pub from: Ipv4Addr,
}

/// What came of it; the body is read and left.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Bytes of the body, all of them.
    pub length: u64,
    /// Whether it was compressed.
    pub gzip: bool,
}

impl Request {
    /// Connects, asks and reads the answer to its end, as announced.
    ///
    /// # Errors
    ///
    /// There is no connection, or the answer is no whole one.
    pub fn send(&self, address: SocketAddr) -> io::Result<Answer> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if self.from != LOOPBACK {
            // The port is chosen for this server alone, as it is without an address.
            options::set(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
            socket.bind(&SocketAddr::from((self.from, 0)).into())?;
        }
        socket.connect(&address.into())?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(self.head(address).as_bytes())?;
        read(&mut stream)
    }

    fn head(&self, address: SocketAddr) -> String {
        let encoding = if self.gzip {
            "Accept-Encoding: gzip\r\n"
        } else {
            ""
        };
        format!(
            "GET {} HTTP/1.1\r\nHost: {address}\r\nAccept: {}\r\n{encoding}\r\n",
            self.path, self.accept
        )
    }
}

fn read(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut buffer = vec![0; 64 << 10];
    let mut filled = 0;
    let end = loop {
        let more = stream.read(&mut buffer[filled..])?;
        if more == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += more;
        let found = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(end) = found {
            break end;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let broken = || io::Error::other(format!("no answer of ours: {head}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let length = value("content-length: ").and_then(|length| length.parse().ok());
    let answer = Answer {
        status: status.ok_or_else(broken)?,
        length: length.ok_or_else(broken)?,
        gzip: value("content-encoding: ") == Some("gzip"),
    };
    let mut left = answer.length.saturating_sub((filled - end - 4) as u64);
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => left = left.saturating_sub(more as u64),
        }
    }
    Ok(answer)
}

/// How long those waited who asked one page again and again, one at a time.
#[derive(Clone, Debug)]
pub struct Waits {
    /// Which page, how and from where.
    pub name: &'static str,
    /// Of each answer.
    pub answered: Vec<Duration>,
    /// Those that were not answered with 200 and a whole body.
    pub failed: usize,
    /// The last answer.
    pub last: Option<Answer>,
    /// Why the last of those that failed did.
    pub failure: Option<String>,
}

impl Waits {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            answered: Vec::new(),
            failed: 0,
            last: None,
            failure: None,
        }
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.answered.clone();
        sorted.sort_unstable();
        let at = |share: f64| {
            let index = (sorted.len() as f64 * share) as usize;
            let wait = sorted.get(index.min(sorted.len().saturating_sub(1)));
            wait.map_or(0.0, |wait| wait.as_secs_f64() * 1e3)
        };
        let length = self.last.map_or(0, |last| last.length);
        write!(
            f,
            "{:<36} {:>5} answered {:>3} failed   p50 {:>7.1}   p99 {:>7.1}   max {:>7.1} ms   {length} bytes",
            self.name,
            sorted.len(),
            self.failed,
            at(0.5),
            at(0.99),
            at(1.0)
        )?;
        match &self.failure {
            Some(failure) => write!(f, "; the last failure: {failure}"),
            None => Ok(()),
        }
    }
}

/// Who asks beside the crowd: what it is called, how, and with which pause.
const OTHERS: [(&str, Request, Duration); 6] = {
    const fn request(
        path: &'static str,
        accept: &'static str,
        gzip: bool,
        from: Ipv4Addr,
    ) -> Request {
        Request {
            path,
            accept,
            gzip,
            from,
        }
    }
    const OFTEN: Duration = Duration::from_millis(10);
    const SELDOM: Duration = Duration::from_millis(150);
    [
        (
            "/healthz",
            request("/healthz", TEXT, false, LOOPBACK),
            OFTEN,
        ),
        ("/readyz", request("/readyz", TEXT, false, LOOPBACK), OFTEN),
        (
            "/metrics as Prometheus",
            request("/metrics", PROMETHEUS, true, LOOPBACK),
            SELDOM,
        ),
        (
            "/metrics as Prometheus, elsewhere",
            request("/metrics", PROMETHEUS, true, ELSEWHERE),
            SELDOM,
        ),
        (
            "/metrics plain",
            request("/metrics", TEXT, false, LOOPBACK),
            SELDOM,
        ),
        (
            "/metrics plain, elsewhere",
            request("/metrics", TEXT, false, ELSEWHERE),
            SELDOM,
        ),
    ]
};

/// Clients that are there at a time.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// On the socket; they say nothing.
    pub silent_on_the_socket: usize,
    /// Over HTTP; they say nothing.
    pub silent: usize,
    /// They ask for the metrics and never read.
    pub deaf: usize,
    /// They ask for the metrics all at once, and once more when all are done.
    pub scrapes: usize,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Of the others.
    pub waits: Vec<Waits>,
    /// Scrapes of the crowd that got a whole answer.
    pub answered: u64,
    /// Those that did not.
    pub failed: u64,
    /// What the crowd took, in bytes.
    pub bytes: u64,
}

impl Crowd {
    /// Lets it loose on a server for some time; on the socket if there is one.
    ///
    /// # Panics
    ///
    /// Where the server no longer listens.
    pub fn beside_others(&self, address: SocketAddr, socket: &Path, lasting: Duration) -> Outcome {
        let [over, ended] = [const { AtomicBool::new(false) }; 2];
        let [answered, failed, bytes] = [const { AtomicU64::new(0) }; 3];
        let start = Barrier::new(self.scrapes);
        let waits = thread::scope(|scope| {
            scope.spawn(|| self.idle(address, socket, &over));
            for _ in 0..self.scrapes {
                scope.spawn(|| {
                    let scrape = Request {
                        path: "/metrics",
                        accept: TEXT,
                        gzip: false,
                        from: LOOPBACK,
                    };
                    loop {
                        // One decides for all, so that nobody is waited for in vain.
                        if start.wait().is_leader() {
                            ended.store(over.load(Ordering::SeqCst), Ordering::SeqCst);
                        }
                        start.wait();
                        if ended.load(Ordering::SeqCst) {
                            return;
                        }
                        match scrape.send(address) {
                            Ok(answer) if answer.status == 200 => {
                                answered.fetch_add(1, Ordering::Relaxed);
                                bytes.fetch_add(answer.length, Ordering::Relaxed);
                            }
                            _ => {
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
            let others: Vec<_> = OTHERS
                .iter()
                .map(|other| scope.spawn(|| ask(other, address, &over)))
                .collect();
            let machine = scope.spawn(|| sleep(&over));
            thread::sleep(lasting);
            over.store(true, Ordering::SeqCst);
            let join = |thread: thread::ScopedJoinHandle<'_, Waits>| thread.join();
            (others.into_iter().chain([machine]))
                .map(|thread| join(thread).unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        Outcome {
            waits,
            answered: answered.into_inner(),
            failed: failed.into_inner(),
            bytes: bytes.into_inner(),
        }
    }

    /// The silent and the deaf.
    fn idle(&self, address: SocketAddr, socket: &Path, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) {
            let on_the_socket: Vec<_> = (0..self.silent_on_the_socket)
                .map(|_| UnixStream::connect(socket).expect("it listens"))
                .collect();
            let silent: Vec<_> = (0..self.silent)
                .map(|_| TcpStream::connect(address).expect("it listens"))
                .collect();
            let deaf = (0..self.deaf).map(|_| {
                let mut stream = TcpStream::connect(address).expect("it listens");
                // It may have been evicted already.
                let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
                stream
            });
            let deaf: Vec<_> = deaf.collect();
            let came = Instant::now();
            while came.elapsed() < STAY && !over.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(50));
            }
            drop((on_the_socket, silent, deaf));
        }
    }
}

/// By how much a sleep is too long: what the machine adds to each wait.
fn sleep(over: &AtomicBool) -> Waits {
    const SLEEP: Duration = Duration::from_millis(10);
    let mut waits = Waits::new("(a sleep in this program is late by)");
    while !over.load(Ordering::SeqCst) {
        let begun = Instant::now();
        thread::sleep(SLEEP);
        waits.answered.push(begun.elapsed() - SLEEP);
    }
    waits
}

fn ask(
    &(name, request, pause): &(&'static str, Request, Duration),
    address: SocketAddr,
    over: &AtomicBool,
) -> Waits {
    let mut waits = Waits::new(name);
    while !over.load(Ordering::SeqCst) {
        let asked = Instant::now();
        match request.send(address) {
            Ok(answer) if answer.status == 200 => {
                waits.answered.push(asked.elapsed());
                waits.last = Some(answer);
            }
            other => {
                waits.failed += 1;
                waits.failure = Some(format!("{other:?}"));
            }
        }
        thread::sleep(pause);
    }
    waits
}
