//! Connections that begin otherwise than with three segments and then data.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use probe_tests::{
    daemon::Daemon,
    load,
    netns::Pair,
    options::{set_tcp, tcp},
    skip,
    truth::{self, Table},
};
use probe_user::model::{Histogram, Snapshot, TcpSeries, bucket_seconds};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// A pause that stands out from all that happens by itself.
fn pause() -> Duration {
    Duration::from_millis(if skip::is_emulated() { 600 } else { 100 })
}

fn histogram(
    snapshot: &Snapshot,
    side: &str,
    which: impl Fn(&TcpSeries) -> &Histogram,
) -> Histogram {
    let mut sum = Histogram::default();
    for one in snapshot.tcp.iter().filter(|one| one.labels.side == side) {
        sum.add(which(one));
    }
    sum
}

/// How many observations are about a pause long or longer.
fn long(histogram: &Histogram) -> u64 {
    let bound = pause().as_secs_f64() * 0.95;
    (histogram.slots.iter())
        .filter(|(slot, _)| bucket_seconds(*slot).1 > bound)
        .map(|(_, count)| count)
        .sum()
}

/// A listener with an option of TCP set.
fn listener(pair: &Pair, at: SocketAddr, option: libc::c_int, value: libc::c_int) -> TcpListener {
    pair.server.run(|| {
        let kind = Domain::for_address(at);
        let socket = Socket::new(kind, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        socket.bind(&at.into()).expect("a port");
        set_tcp(&socket, option, value);
        socket.listen(64).expect("it listens");
        socket.into()
    })
}

fn send(mut stream: &TcpStream, bytes: usize) {
    stream.write_all(&vec![7; bytes]).expect("it is sent");
}

fn receive(mut stream: &TcpStream, bytes: usize) {
    let mut buffer = vec![0; bytes];
    stream.read_exact(&mut buffer).expect("it arrives");
}

/// Sends with the SYN where this host knows the server's cookie.
fn connect_and_send(pair: &Pair, at: SocketAddr, bytes: usize) -> TcpStream {
    pair.client.run(|| {
        let kind = Domain::for_address(at);
        let socket = Socket::new(kind, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        let sent = socket.send_to_with_flags(&vec![7; bytes], &at.into(), libc::MSG_FASTOPEN);
        assert_eq!(sent.expect("it is sent"), bytes);
        socket.into()
    })
}

/// TCP Fast Open: the request comes with the SYN and the answer before the handshake's
/// last ACK, or with a delay.
#[test]
fn a_request_in_the_syn_counts_as_any_other() {
    const TEST: &str = "a_request_in_the_syn_counts_as_any_other";
    const EACH: u64 = 10;
    const REQUEST: usize = 300;
    const ANSWER: usize = 2000;
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    for netns in pair.both() {
        netns.sysctl("ipv4/tcp_fastopen", 3);
    }
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.counters();
    for address in Pair::SERVERS {
        let at = SocketAddr::new(address, 9000);
        let listener = listener(&pair, at, libc::TCP_FASTOPEN, 64);
        for n in 0..EACH {
            let client = connect_and_send(&pair, at, REQUEST);
            if n == 0 {
                // It has asked for the cookie.
                thread::sleep(pause());
            }
            let (server, _) = listener.accept().expect("it is open");
            receive(&server, REQUEST);
            if n % 2 == 1 {
                thread::sleep(pause());
            }
            send(&server, ANSWER);
            receive(&client, ANSWER);
            // Another one, as any.
            send(&client, REQUEST);
            receive(&server, REQUEST);
            send(&server, ANSWER);
            receive(&client, ANSWER);
            drop(client);
            assert_eq!((&server).read(&mut [0]).expect("a FIN"), 0);
        }
    }
    load::quiet(&pair.both(), 0);
    let snapshot = daemon.snapshot();
    let theirs = &pair.counters() - &before;
    let connections = 2 * EACH;
    let mut table = Table::default();
    table.equal(
        "with data in the SYN",
        connections - 2,
        theirs.get("TcpExt.TCPFastOpenPassive"),
    );
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    for (side, sent, received) in [("client", REQUEST, ANSWER), ("server", ANSWER, REQUEST)] {
        let all = |bytes: usize| 2 * (connections as usize * bytes) as i64;
        let sum = |value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, side, value);
        table.equal("bytes sent", sum(|one| one.sent_bytes), all(sent));
        table.equal(
            "bytes received",
            sum(|one| one.received_bytes),
            all(received),
        );
    }
    table.check();
    for side in ["client", "server"] {
        let handshakes = histogram(&snapshot, side, |one| &one.handshake);
        let counts = [handshakes.count(), long(&handshakes)];
        assert_eq!(counts, [connections, 0], "handshakes, {side}");
    }
    if skip::kernel() >= (6, 3) {
        for side in ["client", "server"] {
            let first_bytes = histogram(&snapshot, side, |one| &one.first_byte);
            // Those that asked for a cookie have waited for `accept()`, too.
            let slow = 2 * (EACH / 2 + 1);
            let counts = [first_bytes.count(), long(&first_bytes)];
            assert_eq!(counts, [2 * connections, slow], "first bytes, {side}");
        }
    }
    let accepts = histogram(&snapshot, "server", |one| &one.accept_queue);
    // Those that asked for a cookie have waited.
    assert_eq!([accepts.count(), long(&accepts)], [connections, 2]);
    daemon.stop();
}

/// `TCP_DEFER_ACCEPT`: the kernel ignores the handshake's last ACK and waits for data.
#[test]
fn a_deferred_accept_is_no_drop_and_no_slow_handshake() {
    const TEST: &str = "a_deferred_accept_is_no_drop_and_no_slow_handshake";
    const EACH: u64 = 5;
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if skip::kernel() < (6, 11) {
        skip::impossible(TEST, "this kernel does not tell whose a dropped packet is");
        return;
    }
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.counters();
    let mut open = Vec::new();
    for address in Pair::SERVERS {
        let at = SocketAddr::new(address, 9000);
        let listener = listener(&pair, at, libc::TCP_DEFER_ACCEPT, 30);
        for _ in 0..EACH {
            let client = pair
                .client
                .run(|| TcpStream::connect(at))
                .expect("it is open");
            thread::sleep(pause());
            send(&client, 100);
            let (server, _) = listener.accept().expect("it is open");
            receive(&server, 100);
            thread::sleep(pause());
            send(&server, 1000);
            receive(&client, 1000);
            open.push((client, server));
        }
    }
    let theirs = &pair.counters() - &before;
    let snapshot = daemon.snapshot();
    let connections = 2 * EACH;
    let deferred = theirs.get("TcpExt.TCPDeferAcceptDrop");
    assert_eq!(deferred, connections as i64, "the kernel's own count");
    let drops: Vec<_> = (snapshot.drops.iter())
        .filter(|drop| drop.protocol == "tcp" && drop.count != 0)
        .collect();
    assert!(drops.is_empty(), "{drops:?}");
    for side in ["client", "server"] {
        let handshakes = histogram(&snapshot, side, |one| &one.handshake);
        let counts = [handshakes.count(), long(&handshakes)];
        assert_eq!(counts, [connections, 0], "handshakes, {side}");
        let first_bytes = histogram(&snapshot, side, |one| &one.first_byte);
        let counts = [first_bytes.count(), long(&first_bytes)];
        assert_eq!(counts, [connections; 2], "first bytes, {side}");
        let bound = 1.9 * pause().as_secs_f64() * connections as f64;
        assert!(first_bytes.sum_seconds < bound, "{side}: {first_bytes:?}");
    }
    drop(open);
    daemon.stop();
}

/// Options of `TCP_REPAIR` (`include/uapi/linux/tcp.h`).
const REPAIR: libc::c_int = 19;
const REPAIR_QUEUE: libc::c_int = 20;
const QUEUE_SEQ: libc::c_int = 21;
const QUEUES: [libc::c_int; 2] = [1, 2];

/// Moves a connection to another socket, as live migration of a container does: no
/// segment is sent.
fn moved(pair: &Pair, from: TcpStream) -> TcpStream {
    set_tcp(&from, REPAIR, 1);
    let numbers = QUEUES.map(|queue| {
        set_tcp(&from, REPAIR_QUEUE, queue);
        tcp(&from, QUEUE_SEQ)
    });
    let local = from.local_addr().expect("an address");
    let remote = from.peer_addr().expect("an address");
    drop(from);
    pair.server.run(|| {
        let kind = Domain::for_address(local);
        let socket = Socket::new(kind, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        set_tcp(&socket, REPAIR, 1);
        socket.bind(&local.into()).expect("its port");
        for (queue, number) in QUEUES.into_iter().zip(numbers) {
            set_tcp(&socket, REPAIR_QUEUE, queue);
            set_tcp(&socket, QUEUE_SEQ, number);
        }
        socket.connect(&remote.into()).expect("it goes on");
        set_tcp(&socket, REPAIR, 0);
        socket.into()
    })
}

#[test]
fn a_restored_connection_is_open_and_was_not_opened() {
    const EACH: usize = 5;
    const BYTES: usize = 5000;
    let Some(_turn) = skip::turn("a_restored_connection_is_open_and_was_not_opened") else {
        return;
    };
    let pair = Pair::new();
    for netns in pair.both() {
        netns.sysctl("ipv4/tcp_timestamps", 0);
    }
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.counters();
    let mut ends = Vec::new();
    let mut listeners = Vec::new();
    for address in Pair::SERVERS {
        let at = SocketAddr::new(address, 9000);
        let bound = pair.server.run(|| {
            let socket = Socket::new(Domain::for_address(at), Type::STREAM, None);
            let socket = socket.expect("a socket");
            socket.set_reuse_address(true).expect("an option");
            socket.bind(&at.into()).expect("a port");
            socket.listen(64).expect("it listens");
            TcpListener::from(socket)
        });
        for _ in 0..EACH {
            let client = pair
                .client
                .run(|| TcpStream::connect(at))
                .expect("it is open");
            let (server, _) = bound.accept().expect("it is open");
            ends.push((client, server));
        }
        listeners.push(bound);
    }
    // The listeners have been met.
    let met = daemon.visited(|snapshot| {
        snapshot
            .listeners
            .iter()
            .any(|one| one.queues.accept_queue_limit == 128)
    });
    let measured = histogram(&met, "server", |one| &one.handshake).count();
    let ends: Vec<_> = ends
        .into_iter()
        .map(|(client, server)| (client, moved(&pair, server)))
        .collect();
    for (client, server) in &ends {
        send(server, BYTES);
        receive(client, BYTES);
        send(client, 100);
        receive(server, 100);
    }
    let all = 2 * ends.len();
    let theirs = &load::quiet(&pair.both(), all) - &before;
    let bytes = (ends.len() * (BYTES + 100)) as u64;
    let snapshot =
        daemon.visited(|snapshot| truth::sum(snapshot, "", |one| one.sent_bytes) >= bytes);
    let sum = |side: &str, value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, side, value);
    let mut table = Table::default();
    table.equal("opened", sum("", |one| one.opened), all as i64);
    table.equal(
        "opened = ActiveOpens, PassiveOpens",
        sum("", |one| one.opened),
        theirs.get("Tcp.ActiveOpens") + theirs.get("Tcp.PassiveOpens"),
    );
    table.equal("open", sum("", |one| one.open), all as i64);
    table.equal(
        "open, server",
        sum("server", |one| one.open),
        all as i64 / 2,
    );
    table.equal("bytes sent", sum("", |one| one.sent_bytes), bytes as i64);
    table.equal(
        "bytes received",
        sum("", |one| one.received_bytes),
        bytes as i64,
    );
    table.equal(
        "moved away",
        sum("server", |one| one.closed["other"]),
        ends.len() as i64,
    );
    table.equal(
        "aborted = EstabResets",
        sum("", |one| one.aborted),
        theirs.get("Tcp.EstabResets"),
    );
    table.equal("reset", sum("", |one| one.closed["reset_sent"]), 0);
    table.equal(
        "handshakes",
        histogram(&snapshot, "server", |one| &one.handshake).count(),
        measured as i64,
    );
    table.check();
    drop((ends, listeners));
    daemon.stop();
}

/// The handshake's last ACK is lost and, with data, the first segment too. Then the
/// client aborts: with data it is asked for another reset (RFC 5961).
#[test]
fn a_half_open_connection_fails_once_however_often_it_is_reset() {
    const TEST: &str = "a_half_open_connection_fails_once_however_often_it_is_reset";
    const EACH: u64 = 20;
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if skip::kernel() < (6, 11) {
        skip::impossible(TEST, "this kernel does not tell whose a dropped packet is");
        return;
    }
    let pair = Pair::new();
    pair.server.nft(
        "table inet ep { chain pre { type filter hook prerouting priority raw; \
         tcp dport 9000 tcp flags & (syn|rst|fin|ack) == ack drop; }; }",
    );
    let daemon = Daemon::start(&pair.both(), &[]);
    let mut before = pair.counters();
    let mut failed = 0;
    for with_data in [false, true] {
        for address in Pair::SERVERS {
            let at = SocketAddr::new(address, 9000);
            let listener = pair.server.run(|| TcpListener::bind(at)).expect("a port");
            for _ in 0..EACH {
                let client = pair
                    .client
                    .run(|| TcpStream::connect(at))
                    .expect("it is open");
                if with_data {
                    send(&client, 100);
                }
                let linger = Some(Duration::ZERO);
                SockRef::from(&client)
                    .set_linger(linger)
                    .expect("no linger");
            }
            load::quiet(&pair.both(), 0);
            drop(listener);
        }
        let after = pair.counters();
        let theirs = &after - &before;
        let counted = theirs.get("Tcp.AttemptFails");
        assert_eq!(counted, 2 * EACH as i64, "the kernel's own count");
        let challenges = theirs.get("TcpExt.TCPChallengeACK");
        assert_eq!(challenges > 0, with_data, "the kernel has asked again");
        let snapshot = daemon.snapshot();
        let ours = truth::sum(&snapshot, "server", |one| one.connect_failures["reset"]);
        assert_eq!(ours - failed, 2 * EACH, "with data: {with_data}");
        failed = ours;
        before = after;
    }
    daemon.stop();
}

/// Of a TLS handshake whose first segment does not hold the first record's header, the
/// rest cannot be followed: that is said.
#[test]
fn a_hello_that_comes_in_pieces_counts_as_lost() {
    const TEST: &str = "a_hello_that_comes_in_pieces_counts_as_lost";
    const RECORD: [u8; 12] = [22, 3, 1, 0, 7, 1, 0, 0, 3, 3, 3, 0];
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if skip::kernel() < (6, 12) {
        skip::impossible(TEST, "this kernel lets no program read a payload");
        return;
    }
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let lost = || {
        let snapshot = daemon.snapshot();
        let of_hook = snapshot
            .lost
            .into_iter()
            .filter(|one| one.hook == "tcp_probe");
        let parse = of_hook.filter(|one| one.cause == "parse");
        parse.map(|one| one.count).sum::<u64>()
    };
    let mut port = 9000;
    let mut in_pieces = |bytes: &[u8], first: usize| {
        port += 1;
        let (_listener, mut client, mut server) =
            pair.connect(SocketAddr::new(Pair::SERVER_V4, port));
        client.set_nodelay(true).expect("no delay");
        for piece in [&bytes[..first], &bytes[first..]] {
            client.write_all(piece).expect("it is sent");
            server
                .read_exact(&mut vec![0; piece.len()])
                .expect("it arrives");
        }
    };
    for first in 1..=5 {
        in_pieces(&RECORD, first);
        assert_eq!(lost(), first as u64, "{first} bytes first");
    }
    // What is no TLS is not missed.
    for first in 1..=5 {
        in_pieces(b"GET / HTTP/1.1\r\n\r\n", first);
    }
    assert_eq!(lost(), 5);
    daemon.stop();
}
