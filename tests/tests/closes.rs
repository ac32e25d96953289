//! Each way in which a connection ends, at both ends: how it counts, which
//! resets go with it, and why.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use probe_tests::{
    daemon::Daemon,
    netns::Pair,
    poll, skip,
    truth::{self, Table},
};
use probe_user::snapshot::Snapshot;
use socket2::SockRef;

/// A connection, and what it goes through.
struct Connection<'a> {
    pair: &'a Pair,
    client: TcpStream,
    server: TcpStream,
    /// The server's end.
    at: SocketAddr,
    // Kept: its port tells which side a reset without an entry is of.
    _listener: TcpListener,
}

/// Which end does it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Client,
    Server,
}

impl<'a> Connection<'a> {
    fn new(pair: &'a Pair, at: SocketAddr) -> Self {
        let listener = pair.server.run(|| TcpListener::bind(at)).expect("a port");
        let client = pair
            .client
            .run(|| TcpStream::connect(at))
            .expect("it is open");
        let (server, _) = listener.accept().expect("it is open");
        for stream in [&client, &server] {
            let patience = Some(Duration::from_secs(60));
            stream.set_read_timeout(patience).expect("a timeout");
        }
        Self {
            pair,
            client,
            server,
            at,
            _listener: listener,
        }
    }

    /// The end that acts and the other one.
    fn ends(self, first: End) -> (TcpStream, TcpStream) {
        match first {
            End::Client => (self.client, self.server),
            End::Server => (self.server, self.client),
        }
    }

    /// Drops segments of this connection that `from` sends, where they arrive.
    fn lose(&self, from: End, which: &str) {
        let (netns, port) = match from {
            End::Client => (&self.pair.server, "dport"),
            End::Server => (&self.pair.client, "sport"),
        };
        let number = self.at.port();
        let table = format!("ep{number}{}", if self.at.is_ipv4() { "v4" } else { "v6" });
        let family = if self.at.is_ipv4() { "ip" } else { "ip6" };
        netns.nft(&format!(
            "table {family} {table} {{ chain pre {{ type filter hook prerouting priority raw; \
             tcp {port} {number} {which} drop; }}; }}"
        ));
    }
}

/// Reads until the other end has closed or reset.
fn wait_for_end(mut stream: &TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

fn abort(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("no linger");
    drop(stream);
}

/// `first` closes, then the other end.
fn in_order(connection: Connection<'_>, first: End) {
    let (first, second) = connection.ends(first);
    drop(first);
    wait_for_end(&second);
}

/// `first` closes with `SO_LINGER` 0.
fn aborted(connection: Connection<'_>, first: End) {
    let (first, second) = connection.ends(first);
    abort(first);
    wait_for_end(&second);
}

/// `first` closes with data that it has not read.
fn unread(connection: Connection<'_>, first: End) {
    let (first, mut second) = connection.ends(first);
    second.write_all(b"unread").expect("it is sent");
    poll::until("the data is there", || {
        let mut byte = [0];
        (first.peek(&mut byte).expect("data") == 1).then_some(())
    });
    drop(first);
    wait_for_end(&second);
}

/// `first` closes, its FIN is lost, and the other end sends.
fn data_before_the_fin_arrives(connection: Connection<'_>, first: End) {
    connection.lose(first, "tcp flags & fin == fin");
    let (first, mut second) = connection.ends(first);
    drop(first);
    second.write_all(&[7; 200]).expect("it is sent");
    wait_for_end(&second);
}

/// `first` closes and gets the acknowledgment of its FIN with data in the same
/// segment: those without are lost.
fn data_with_the_acknowledgment(connection: Connection<'_>, first: End) {
    let other = match first {
        End::Client => End::Server,
        End::Server => End::Client,
    };
    connection.lose(other, "meta length < 120");
    let (first, mut second) = connection.ends(first);
    drop(first);
    let mut nothing = [0];
    assert_eq!(second.read(&mut nothing).expect("a FIN"), 0);
    second.write_all(&[7; 200]).expect("it is sent");
    wait_for_end(&second);
}

/// `first` shuts one direction down, gets data and reads it, and then the other
/// end aborts.
fn reset_in_fin_wait(connection: Connection<'_>, first: End) {
    let (mut first, mut second) = connection.ends(first);
    first.shutdown(Shutdown::Write).expect("a FIN is sent");
    let mut nothing = [0];
    assert_eq!(second.read(&mut nothing).expect("a FIN"), 0);
    second.write_all(&[7; 200]).expect("it is sent");
    first.read_exact(&mut [0; 200]).expect("the data");
    abort(second);
    let error = first.read(&mut nothing).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// What `first` sends is lost, until it gives up.
fn timed_out(connection: Connection<'_>, first: End) {
    connection.lose(first, "");
    let (mut first, second) = connection.ends(first);
    SockRef::from(&first)
        .set_tcp_user_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout");
    first.write_all(b"lost").expect("it is sent");
    let error = first.read(&mut [0]).expect_err("nothing is answered");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    drop(first);
    abort(second);
}

/// How one end of a connection ends, and the reset that it sends.
type Ending = (&'static str, Option<&'static str>);

type Way = fn(Connection<'_>, End);

const FIN: Ending = ("fin", None);
const RECEIVED: Ending = ("reset_received", None);

/// The ways, each with how it ends for the end that is first and for the other.
/// `TCP_STATE` is what the kernel gives for no linger (`tcp.c:tcp_disconnect`).
const WAYS: [(Way, Ending, Ending); 7] = [
    (in_order, FIN, FIN),
    (aborted, ("reset_sent", Some("TCP_STATE")), RECEIVED),
    (unread, ("reset_sent", Some("TCP_ABORT_ON_CLOSE")), RECEIVED),
    (
        data_before_the_fin_arrives,
        ("reset_sent", Some("TCP_ABORT_ON_DATA")),
        RECEIVED,
    ),
    (
        data_with_the_acknowledgment,
        ("reset_sent", Some("TCP_ABORT_ON_DATA")),
        RECEIVED,
    ),
    (
        reset_in_fin_wait,
        RECEIVED,
        ("reset_sent", Some("TCP_STATE")),
    ),
    (
        timed_out,
        ("timeout", None),
        ("reset_sent", Some("TCP_STATE")),
    ),
];

/// Side, port, and the reason of the end or direction and reason of a reset.
type Counts = BTreeMap<(String, String, String), u64>;

fn ends(snapshot: &Snapshot) -> Counts {
    let mut counts = Counts::new();
    for one in &snapshot.tcp {
        for (reason, &count) in one.closed.iter().filter(|(_, count)| **count != 0) {
            let key = (
                one.labels.side.clone(),
                one.labels.svc.clone(),
                reason.clone(),
            );
            *counts.entry(key).or_default() += count;
        }
    }
    counts
}

fn resets(snapshot: &Snapshot) -> Counts {
    let mut counts = Counts::new();
    for one in &snapshot.resets {
        let what = format!("{} {}", one.direction, one.reason);
        let key = (one.labels.side.clone(), one.labels.svc.clone(), what);
        *counts.entry(key).or_default() += one.count;
    }
    counts
}

#[test]
fn each_way_to_end_is_told_at_both_ends() {
    let Some(_turn) = skip::turn("each_way_to_end_is_told_at_both_ends") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.counters();
    let tells_reasons = skip::kernel() >= (6, 10);
    let (mut ended, mut reset) = (Counts::new(), Counts::new());
    let mut port = 9000;
    for (way, of_first, of_other) in WAYS {
        for first in [End::Client, End::Server] {
            port += 1;
            for address in Pair::SERVERS {
                way(
                    Connection::new(&pair, SocketAddr::new(address, port)),
                    first,
                );
            }
            let [client, server] = match first {
                End::Client => [of_first, of_other],
                End::Server => [of_other, of_first],
            };
            for (side, (reason, sent)) in [("client", client), ("server", server)] {
                let key = |what: &str| (side.to_owned(), port.to_string(), what.to_owned());
                let each = Pair::SERVERS.len() as u64;
                ended.insert(key(reason), each);
                if let Some(why) = sent {
                    let why = if tells_reasons { why } else { "unavailable" };
                    reset.insert(key(&format!("sent {why}")), each);
                }
                if reason == "reset_received" {
                    reset.insert(key("received unavailable"), each);
                }
            }
        }
    }
    let total: u64 = ended.values().sum();
    let snapshot = poll::until("all connections have ended", || {
        let snapshot = daemon.snapshot();
        (ends(&snapshot).values().sum::<u64>() == total).then_some(snapshot)
    });
    assert_eq!(ends(&snapshot), ended);
    assert_eq!(resets(&snapshot), reset);

    let theirs = &pair.counters() - &before;
    let mut table = Table::default();
    table.equal(
        "aborted = EstabResets",
        truth::sum(&snapshot, "", |one| one.aborted),
        theirs.get("Tcp.EstabResets"),
    );
    let sent = |wanted: &[&str]| -> u64 {
        let sent = reset.iter().filter_map(|((_, _, what), count)| {
            let why = what.strip_prefix("sent ")?;
            (wanted.is_empty() || wanted.contains(&why)).then_some(count)
        });
        sent.sum()
    };
    table.equal(
        "resets sent = OutRsts",
        sent(&[]),
        theirs.get("Tcp.OutRsts"),
    );
    if tells_reasons {
        // It counts an end without linger there too.
        table.equal(
            "data after close(), or no linger = TCPAbortOnData",
            sent(&["TCP_ABORT_ON_DATA", "TCP_STATE"]),
            theirs.get("TcpExt.TCPAbortOnData"),
        );
        table.equal(
            "closed with data unread = TCPAbortOnClose",
            sent(&["TCP_ABORT_ON_CLOSE"]),
            theirs.get("TcpExt.TCPAbortOnClose"),
        );
    }
    table.check();
    daemon.stop();
}

/// What comes once the FIN is acknowledged meets TIME_WAIT, and no connection.
#[test]
fn a_reset_from_time_wait_leaves_the_end_as_it_was() {
    let Some(_turn) = skip::turn("a_reset_from_time_wait_leaves_the_end_as_it_was") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.counters();
    let address: IpAddr = Pair::SERVER_V4;
    let connection = Connection::new(&pair, SocketAddr::new(address, 9000));
    let (first, mut second) = connection.ends(End::Client);
    drop(first);
    assert_eq!(second.read(&mut [0]).expect("a FIN"), 0);
    // It is in TIME_WAIT, as the list of sockets has it.
    poll::until("the FIN is acknowledged", || {
        let listed = pair.client.command("ss", &["-Htan", "dport = :9000"]);
        (listed.contains("TIME-WAIT") || listed.contains("FIN-WAIT-2")).then_some(())
    });
    second.write_all(b"late").expect("it is sent");
    wait_for_end(&second);
    drop(second);
    let snapshot = poll::until("both ends have ended", || {
        let snapshot = daemon.snapshot();
        (ends(&snapshot).values().sum::<u64>() == 2).then_some(snapshot)
    });
    let count = |side: &str, reason: &str| {
        let key = (side.to_owned(), "9000".to_owned(), reason.to_owned());
        ends(&snapshot).get(&key).copied()
    };
    assert_eq!(count("client", "fin"), Some(1));
    assert_eq!(count("server", "reset_received"), Some(1));
    let sent: u64 = (snapshot.resets.iter())
        .filter(|one| one.direction == "sent")
        .map(|one| one.count)
        .sum();
    let theirs = (&pair.counters() - &before).get("Tcp.OutRsts");
    if skip::kernel() >= (6, 10) {
        assert_eq!(i64::try_from(sent), Ok(theirs));
    } else {
        // There no event tells of a reset without a full socket.
        assert_eq!((sent, theirs), (0, 1));
    }
    daemon.stop();
}
