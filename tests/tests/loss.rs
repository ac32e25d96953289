//! Short connections, resets with half a request, refused ports and bulk transfers while
//! one segment in 25 is lost: the kernel's counters at rest, line by line.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use probe_tests::{
    daemon::Daemon,
    load::{self, listen},
    netns::Pair,
    poll::PATIENCE,
    refuse, skip,
    truth::{self, Table},
    witness::Witness,
};
use socket2::{Protocol, Socket};

const PORT: u16 = 8080;
const CLOSED: u16 = 9999;
const THREADS: u32 = 16;
const CONNECTIONS: u32 = 60;
/// Of every other thread each connection of so many is reset by its client.
const RESET_ONE_OF: u32 = 8;
const REFUSED: u32 = 60;
const REPLY: [u8; 700] = [b'y'; 700];
const BULK: usize = 2_000_000;

const RULES: &str = "table inet ep {
    chain in {
        type filter hook input priority 0;
        tcp dport 8080 numgen random mod 25 < 1 drop
    }
}";

/// Answers a request and closes: with much, where much is asked for.
fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0; 4096];
    let length = stream.read(&mut request)?;
    if request[..length].starts_with(b"bulk") {
        return stream.write_all(&vec![b'x'; BULK]);
    }
    stream.write_all(&REPLY)?;
    stream.shutdown(Shutdown::Write)?;
    stream.read(&mut [0]).map(|_| ())
}

/// One connection; what is lost may end it with an error of either end.
fn request(server: SocketAddr, request: &[u8], resets: bool) -> io::Result<usize> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    if resets {
        let socket = Socket::from(stream);
        socket.set_linger(Some(Duration::ZERO))?;
        return Ok(0);
    }
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)
}

/// All connections of a round; returns how many were answered in full.
fn round(pair: &Pair, server: SocketAddr) -> usize {
    pair.client.run(|| {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..THREADS)
                .map(|thread| {
                    scope.spawn(move || {
                        let resets = |n: u32| thread % 2 == 1 && n.is_multiple_of(RESET_ONE_OF);
                        let requests =
                            (0..CONNECTIONS).map(|n| request(server, b"GET /\r\n", resets(n)));
                        requests
                            .filter(|reply| matches!(reply, Ok(length) if *length == REPLY.len()))
                            .count()
                    })
                })
                .collect();
            let closed = SocketAddr::new(server.ip(), CLOSED);
            refuse::failing(&pair.client, closed, REFUSED, None, libc::ECONNREFUSED);
            let bulk = request(server, b"bulk", false).expect("a bulk transfer");
            assert_eq!(bulk, BULK);
            (clients.into_iter())
                .map(|client| client.join().expect("a client"))
                .sum()
        })
    })
}

fn rounds(test: &str, rounds: u32) {
    let Some(_turn) = skip::turn(test) else {
        return;
    };
    let pair = Pair::new();
    pair.server.nft(RULES);
    let server = SocketAddr::new(Pair::SERVER_V4, PORT);
    let listener = pair
        .server
        .run(|| listen(server, Protocol::TCP, 4096))
        .expect("a listener");
    listener
        .set_read_timeout(None)
        .and_then(|()| listener.set_nonblocking(false))
        .expect("a listener that waits");
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();
    let is_over = AtomicBool::new(false);
    let answered = thread::scope(|scope| {
        scope.spawn(|| {
            let listener = std::net::TcpListener::from(listener);
            for stream in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                // A connection that was reset while it waited is none.
                if let Ok(stream) = stream {
                    thread::spawn(move || serve(stream));
                }
            }
        });
        let answered = (0..rounds).map(|_| round(&pair, server)).sum::<usize>();
        load::quiet(&pair.both(), 0);
        is_over.store(true, Ordering::SeqCst);
        pair.client
            .run(|| TcpStream::connect(server))
            .expect("the last one");
        answered
    });
    let after = load::quiet(&pair.both(), 0);

    let snapshot = daemon.snapshot();
    let theirs = &after - &before;
    let mut table = Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    let refused = truth::sum(&snapshot, "client", |one| one.connect_failures["refused"]);
    table.equal("refused", refused, i64::from(rounds * REFUSED));
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    let reset_by_client = THREADS / 2 * CONNECTIONS.div_ceil(RESET_ONE_OF);
    assert_eq!(
        answered,
        (rounds * (THREADS * CONNECTIONS - reset_by_client)) as usize,
        "connections answered in full"
    );
    daemon.stop();
}

#[test]
fn resets_and_refusals_amid_loss_are_all_counted() {
    rounds("resets_and_refusals_amid_loss_are_all_counted", 3);
}

#[test]
#[ignore = "takes a minute and more; `cargo xtask test long` runs it"]
fn twenty_rounds_of_resets_and_refusals_amid_loss() {
    rounds("twenty_rounds_of_resets_and_refusals_amid_loss", 20);
}
