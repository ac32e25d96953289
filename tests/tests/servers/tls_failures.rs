//! TLS handshakes that come to nothing, each in its own way.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{self, IoSlice, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use probe_tests::{
    daemon::Daemon,
    load,
    netns::{Netns, Pair},
    programs::{self, Certificate},
    skip,
};
use probe_user::model::Snapshot;
use socket2::Socket;

use crate::tls::{VERSIONS, nginx, sum};

/// Connections of each kind.
const EACH: u64 = 3;

const SIDES: [&str; 2] = ["server", "client"];

/// Handshakes of a side and a service: failed ones by reason, and `completed`.
fn handshakes(snapshot: &Snapshot, side: &str, port: u16) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for series in &snapshot.tcp {
        if series.labels.side == side && series.labels.svc == port.to_string() {
            for (reason, count) in series.tls_failures.iter() {
                *all.entry(reason.to_owned()).or_default() += count;
            }
        }
    }
    let completed = sum(snapshot, side, port, |one| one.tls_handshake.count());
    all.insert("completed".to_owned(), completed);
    all
}

/// Runs `openssl s_client` from inside a namespace; returns whether the
/// handshake and a request went well.
fn s_client(netns: &Netns, openssl: &Path, target: SocketAddr, options: &[&str]) -> bool {
    let output = netns.run(|| {
        let mut client = Command::new(openssl)
            .args(["s_client", "-quiet", "-connect", &target.to_string()])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        // It may have ended before it reads.
        let mut stdin = client.stdin.take().expect("a pipe");
        let _ = stdin.write_all(b"GET / HTTP/1.0\r\n\r\n");
        let output = client.wait_with_output();
        drop(stdin);
        output
    });
    let output = output.expect("openssl runs");
    String::from_utf8_lossy(&output.stdout).contains("200 OK")
}

/// The ClientHello of `openssl s_client`: the first record of a connection.
fn client_hello(netns: &Netns, openssl: &Path, version: &str) -> Vec<u8> {
    let option = format!("-{}", version.to_lowercase().replace(['v', '.'], "_"));
    let option = option.replace("tls_", "tls");
    let hello = netns.run(|| -> io::Result<Vec<u8>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut client = Command::new(openssl)
            .args(["s_client", &option, "-connect"])
            .arg(listener.local_addr()?.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let (mut stream, _) = listener.accept()?;
        let mut hello = vec![0; 5];
        stream.read_exact(&mut hello)?;
        let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
        hello.resize(5 + length, 0);
        stream.read_exact(&mut hello[5..])?;
        drop(stream);
        client.wait()?;
        Ok(hello)
    });
    let hello = hello.expect("a ClientHello");
    assert_eq!(
        (hello[0], hello[5]),
        (22, 1),
        "a handshake record of type 1"
    );
    hello
}

/// Connects, sends a ClientHello and waits for what the server says to it.
fn begun(target: SocketAddr, hello: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(target)?;
    stream.write_all(hello)?;
    stream.read_exact(&mut [0])?;
    // To the end of the server's part, so that nothing is left unread.
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut buffer = [0; 16384];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(stream),
            Err(error) => return Err(error),
        }
    }
}

/// What the two ends may call it, server first: whoever is told by an alert
/// says so, the other end sees the connection close. Nothing where it cannot be
/// known to that end that it was TLS.
type Reasons = [&'static [&'static str]; 2];

struct Scene {
    pair: Pair,
    daemon: Daemon,
    port: u16,
    /// What was seen before.
    last: RefCell<Snapshot>,
}

impl Scene {
    fn target(&self) -> SocketAddr {
        SocketAddr::new(Pair::SERVER_V4, self.port)
    }

    /// Does something [`EACH`] times at once and compares what the ends count.
    #[track_caller]
    fn each(&self, what: &str, expected: Reasons, make: impl Fn() + Sync) {
        let before = self.last.take();
        thread::scope(|scope| {
            for _ in 0..EACH {
                scope.spawn(&make);
            }
        });
        load::quiet(&self.pair.both(), 0);
        let after = self.daemon.snapshot();
        for (side, expected) in SIDES.into_iter().zip(expected) {
            let before = handshakes(&before, side, self.port);
            let mut seen = handshakes(&after, side, self.port);
            for (reason, count) in &mut seen {
                *count -= before.get(reason).copied().unwrap_or_default();
            }
            seen.retain(|_, count| *count > 0);
            println!("{}: {what}: {side}: {seen:?}", self.port);
            assert_eq!(
                seen.values().sum::<u64>(),
                if expected.is_empty() { 0 } else { EACH },
                "{what}: each is counted once at the {side}: {seen:?}"
            );
            assert!(
                seen.keys()
                    .all(|reason| expected.contains(&reason.as_str())),
                "{what}: {side} says {seen:?} instead of {expected:?}"
            );
        }
        self.last.replace(after);
    }
}

#[test]
fn tls_handshakes_that_fail_are_told_apart() {
    const TEST: &str = "tls_handshakes_that_fail_are_told_apart";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let (Some(program), Some(openssl)) = (skip::tool(TEST, "nginx"), skip::tool(TEST, "openssl"))
    else {
        return;
    };
    if skip::kernel() < (6, 12) {
        skip::impossible(TEST, "this kernel shows no payload");
        return;
    }
    let folder = programs::folder();
    let made = Certificate::make(&openssl, folder.path());
    // Most of the time is waiting.
    thread::scope(|scope| {
        for served in VERSIONS {
            let [program, openssl] = [&program, &openssl];
            let made = &made;
            scope.spawn(move || each_failure(served, program, openssl, made));
        }
    });
}

/// Lets handshakes fail with a server of one version.
fn each_failure(
    (version, port): (&'static str, u16),
    program: &Path,
    openssl: &Path,
    made: &Certificate,
) {
    let pair = Pair::new();
    // Three retransmissions that nobody answers: some three seconds.
    for netns in pair.both() {
        netns.sysctl("ipv4/tcp_retries2", 3);
    }
    let nginx = nginx(&pair, program, made);
    let hello = client_hello(&pair.client, openssl, version);
    let daemon = Daemon::start(&pair.both(), &[]);
    let scene = Scene {
        pair,
        daemon,
        port,
        last: RefCell::default(),
    };
    let (client, target) = (&scene.pair.client, scene.target());
    let made_well = |options: &[&str]| s_client(client, openssl, target, options);
    scene.each("completed", [&["completed"]; 2], || {
        assert!(made_well(&[]), "nginx answers");
    });
    let other = if version == "TLSv1.3" {
        "-tls1_2"
    } else {
        "-tls1_3"
    };
    scene.each(
        "a version refused",
        [&["alert", "closed", "reset"], &["alert"]],
        || {
            assert!(!made_well(&[other]), "a version that the server refuses");
        },
    );
    scene.each(
        "a certificate refused",
        [&["alert"], &["alert", "closed", "reset"]],
        || {
            assert!(
                !made_well(&["-verify_return_error"]),
                "a certificate nobody vouches for"
            );
        },
    );
    let begin = || {
        client
            .run(|| begun(target, &hello))
            .expect("a handshake begins")
    };
    scene.each("reset", [&["reset"]; 2], || {
        let socket = Socket::from(begin());
        socket.set_linger(Some(Duration::ZERO)).expect("an option");
    });
    scene.each("closed", [&["closed"]; 2], || drop(begin()));
    // The server's part is lost on its way to the client for ever. Where sends
    // cannot be looked at, a client that has read nothing is not known to
    // speak TLS.
    let unanswered = |reasons: &'static [&'static str]| match skip::kernel() >= (6, 16) {
        true => reasons,
        false => &[],
    };
    client.nft(
        "table inet ep { chain pre { type filter hook prerouting priority raw;
            tcp flags & (syn|rst) == 0 drop
        }; }",
    );
    scene.each("timeout", [&["timeout"], unanswered(&["timeout"])], || {
        client.run(|| {
            let mut stream = TcpStream::connect(target).expect("a connection");
            stream.write_all(&hello).expect("the kernel takes it");
            let error = stream.read(&mut [0]).expect_err("nothing comes");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    });
    drop(nginx);

    client.nft("delete table inet ep");
    // Somebody else has the port now.
    let listener = scene.pair.server.run(|| TcpListener::bind(target));
    let listener = listener.expect("a port");
    scene.each("not TLS", [&["closed"], unanswered(&["closed"])], || {
        let mut stream = client.run(|| TcpStream::connect(target)).expect("a port");
        let (mut server, _) = listener.accept().expect("a connection");
        // From two pieces of memory.
        let (first, second) = hello.split_at(6);
        let pieces = [first, second].map(IoSlice::new);
        let written = stream.write_vectored(&pieces).expect("the server reads");
        assert_eq!(written, hello.len());
        server.read_exact(&mut vec![0; hello.len()]).expect("it");
        server
            .write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            .expect("the client reads");
        drop(server);
        stream.read_to_end(&mut Vec::new()).expect("all of it");
    });
    scene.daemon.stop();
}
