//! Each way in which a connection ends, at both ends: how it counts, which
//! resets go with it, and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    time::Duration,
};

use probe_tests::{
    daemon::Daemon,
    netns::{Netns, Pair},
    poll, skip,
    truth::{self, Table},
};
use probe_user::snapshot::Snapshot;
use socket2::SockRef;

/// Which end it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Client,
    Server,
}

impl End {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Where a connection is, and which end is the first to do something.
struct Place<'a> {
    pair: &'a Pair,
    /// The server's end.
    at: SocketAddr,
    first: End,
}

impl<'a> Place<'a> {
    /// Opens a connection: its ends, the first one first.
    fn open(pair: &'a Pair, at: SocketAddr, first: End) -> (Self, TcpStream, TcpStream) {
        let (_, client, server) = pair.connect(at);
        let place = Self { pair, at, first };
        match first {
            End::Client => (place, client, server),
            End::Server => (place, server, client),
        }
    }

    fn other(&self) -> End {
        self.first.other()
    }

    fn netns(&self, end: End) -> &'a Netns {
        match end {
            End::Client => &self.pair.client,
            End::Server => &self.pair.server,
        }
    }

    /// The table with the rules of this connection.
    fn table(&self) -> String {
        let (family, number) = match self.at {
            SocketAddr::V4(_) => ("ip", 4),
            SocketAddr::V6(_) => ("ip6", 6),
        };
        format!("{family} ep{}v{number}", self.at.port())
    }

    /// Drops segments that `from` sends, where they arrive.
    fn lose(&self, from: End, which: &str) {
        let port = match from {
            End::Client => "dport",
            End::Server => "sport",
        };
        self.netns(from.other()).nft(&format!(
            "table {} {{ chain pre {{ type filter hook prerouting priority raw; \
             tcp {port} {} {which} drop; }}; }}",
            self.table(),
            self.at.port()
        ));
    }

    /// Ends that.
    fn lose_no_more(&self, from: End) {
        let rules = format!("delete table {}\n", self.table());
        self.netns(from.other()).nft(&rules);
    }

    /// What `ss` shows of one end.
    fn shown(&self, end: End) -> String {
        let port = match end {
            End::Client => "dport",
            End::Server => "sport",
        };
        let family = if self.at.is_ipv4() { "-4" } else { "-6" };
        let filter = format!("{port} = :{}", self.at.port());
        // The listener is not an end.
        let arguments = ["-Hno", family, "state", "connected", &filter];
        self.netns(end)
            .command("ss", &[&["-t"][..], &arguments].concat())
    }

    /// Waits until the first end has its FIN acknowledged.
    fn wait_for_fin_wait2(&self) {
        // Without its own module in the kernel `ss` shows TIME_WAIT as such, not as
        // the state that it stands for.
        let states = ["FIN-WAIT-2", "TIME-WAIT"];
        poll::until("the FIN is acknowledged", || {
            let shown = self.shown(self.first);
            states
                .iter()
                .any(|state| shown.contains(state))
                .then_some(())
        });
    }

    /// Waits until one end is no more.
    fn wait_for_none(&self, end: End) {
        poll::until("it is gone", || self.shown(end).is_empty().then_some(()));
    }

    /// Waits until the other end is no more, then closes it. It has had a FIN: a
    /// read does not wait for what comes after that.
    fn wait_for_reset_of(&self, second: TcpStream) {
        self.wait_for_none(self.other());
        drop(second);
    }
}

/// Reads until the other end has closed or reset, then closes.
fn wait_for_end(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
    drop(stream);
}

/// Waits until there is something to read, without a look at it.
fn wait_for_data(stream: &TcpStream) {
    let mut polled = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `polled` is one entry, and outlives the call.
    let ready = unsafe { libc::poll(&raw mut polled, 1, 60_000) };
    assert_eq!((ready, polled.revents), (1, libc::POLLIN), "data comes");
}

fn wait_for_fin(mut stream: &TcpStream) {
    assert_eq!(stream.read(&mut [0]).expect("a FIN"), 0);
}

/// Waits for it, then closes.
fn wait_for_reset(mut stream: TcpStream) {
    let error = stream.read(&mut [0]).expect_err("a reset");
    drop(stream);
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

fn send(mut stream: &TcpStream) {
    stream.write_all(&[7; 200]).expect("it is sent");
}

fn receive(mut stream: &TcpStream) {
    stream.read_exact(&mut [0; 200]).expect("the data");
}

fn abort(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("no linger");
    drop(stream);
}

/// The first closes, then the other end.
fn in_order(_: &Place<'_>, first: TcpStream, second: TcpStream) {
    drop(first);
    wait_for_end(second);
}

/// Both close before they know of each other's FIN.
fn at_once(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    place.lose(place.first, "tcp flags & fin == fin");
    drop(first);
    drop(second);
    poll::until("both FINs cross", || {
        place.shown(place.first).contains("CLOSING").then_some(())
    });
    place.lose_no_more(place.first);
}

/// The first closes with `SO_LINGER` 0.
fn aborted(_: &Place<'_>, first: TcpStream, second: TcpStream) {
    abort(first);
    wait_for_end(second);
}

/// The first closes with data that it has not read.
fn unread(_: &Place<'_>, first: TcpStream, second: TcpStream) {
    send(&second);
    wait_for_data(&first);
    drop(first);
    wait_for_end(second);
}

/// The same in FIN_WAIT2: it has shut its own direction down before.
fn unread_in_fin_wait(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("a FIN is sent");
    wait_for_fin(&second);
    place.wait_for_fin_wait2();
    send(&second);
    wait_for_data(&first);
    drop(first);
    place.wait_for_reset_of(second);
}

/// The first closes, its FIN is lost, and the other end sends.
fn data_before_the_fin_arrives(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    place.lose(place.first, "tcp flags & fin == fin");
    drop(first);
    send(&second);
    wait_for_end(second);
}

/// The first closes and gets the acknowledgment of its FIN with data in the same
/// segment: those without are lost.
fn data_with_the_acknowledgment(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    place.lose(place.other(), "meta length < 120");
    drop(first);
    wait_for_fin(&second);
    send(&second);
    place.wait_for_reset_of(second);
}

/// The first closes and gets data in FIN_WAIT2. The kernel replaces a socket that
/// is to be there for a minute at most by one of TIME_WAIT, so it is told more.
fn data_in_fin_wait2(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    const TIME: &str = "ipv4/tcp_fin_timeout";
    let netns = place.netns(place.first);
    netns.sysctl(TIME, 120);
    drop(first);
    wait_for_fin(&second);
    place.wait_for_fin_wait2();
    send(&second);
    place.wait_for_reset_of(second);
    netns.sysctl(TIME, 60);
}

/// The first shuts both directions down, keeps the socket, and gets data.
fn data_after_shutdown(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Both).expect("a FIN is sent");
    wait_for_fin(&second);
    place.wait_for_fin_wait2();
    send(&second);
    place.wait_for_reset_of(second);
    drop(first);
}

/// The same, and the FIN of the other end comes with the data.
fn data_and_fin_after_shutdown(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Both).expect("a FIN is sent");
    wait_for_fin(&second);
    place.wait_for_fin_wait2();
    let sent = SockRef::from(&second).send_with_flags(&[7; 200], libc::MSG_MORE);
    assert_eq!(sent.expect("it waits for more"), 200);
    second.shutdown(Shutdown::Write).expect("a FIN is sent");
    place.wait_for_reset_of(second);
    drop(first);
}

/// The first shuts one direction down, gets data and reads it, and then the other
/// end aborts.
fn reset_in_fin_wait(_: &Place<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("a FIN is sent");
    wait_for_fin(&second);
    send(&second);
    receive(&first);
    abort(second);
    wait_for_reset(first);
}

/// The first shuts both directions down, and then the other end aborts.
fn reset_after_shutdown(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    send(&second);
    receive(&first);
    first.shutdown(Shutdown::Both).expect("a FIN is sent");
    wait_for_fin(&second);
    place.wait_for_fin_wait2();
    abort(second);
    place.wait_for_none(place.first);
    drop(first);
}

/// What the first sends is lost, until it gives up.
fn timed_out(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    place.lose(place.first, "");
    SockRef::from(&first)
        .set_tcp_user_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout");
    send(&first);
    let error = (&first).read(&mut [0]).expect_err("nothing is answered");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    drop(first);
    abort(second);
}

/// The first closes and its FIN is lost, until the kernel gives up.
fn timed_out_in_fin_wait(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    const RETRIES: &str = "ipv4/tcp_orphan_retries";
    let netns = place.netns(place.first);
    netns.sysctl(RETRIES, 1);
    place.lose(place.first, "");
    drop(first);
    place.wait_for_none(place.first);
    netns.sysctl(RETRIES, 0);
    abort(second);
}

/// How one end of a connection ends, the reset that it sends, and whether that was
/// straight from ESTABLISHED or CLOSE_WAIT.
#[derive(Clone, Copy)]
struct Ending(&'static str, Option<&'static str>, bool);

type Way = fn(&Place<'_>, TcpStream, TcpStream);

const FIN: Ending = Ending("fin", None, false);
/// A reset that meets an end which has not sent a FIN, and one which has.
const RECEIVED: Ending = Ending("reset_received", None, true);
const RECEIVED_LATE: Ending = Ending("reset_received", None, false);
/// `TCP_STATE` is what the kernel gives for no linger (`tcp.c:tcp_disconnect`).
const ABORTED: Ending = Ending("reset_sent", Some("TCP_STATE"), true);
/// Data that nobody can read.
const ON_DATA: Ending = Ending("reset_sent", Some("TCP_ABORT_ON_DATA"), false);

const fn unread_data(is_abort: bool) -> Ending {
    Ending("reset_sent", Some("TCP_ABORT_ON_CLOSE"), is_abort)
}

/// The ways, each with how it ends for the end that is first and for the other.
const WAYS: [(&str, Way, Ending, Ending); 14] = [
    ("in order", in_order, FIN, FIN),
    ("at once", at_once, FIN, FIN),
    ("aborted", aborted, ABORTED, RECEIVED),
    ("unread", unread, unread_data(true), RECEIVED),
    (
        "unread in FIN_WAIT2",
        unread_in_fin_wait,
        unread_data(false),
        RECEIVED,
    ),
    (
        "data before the FIN arrives",
        data_before_the_fin_arrives,
        ON_DATA,
        RECEIVED,
    ),
    (
        "data with the acknowledgment",
        data_with_the_acknowledgment,
        ON_DATA,
        RECEIVED,
    ),
    ("data in FIN_WAIT2", data_in_fin_wait2, ON_DATA, RECEIVED),
    (
        "data after shutdown()",
        data_after_shutdown,
        ON_DATA,
        RECEIVED,
    ),
    (
        "data and FIN after shutdown()",
        data_and_fin_after_shutdown,
        ON_DATA,
        RECEIVED_LATE,
    ),
    (
        "reset in FIN_WAIT2",
        reset_in_fin_wait,
        RECEIVED_LATE,
        ABORTED,
    ),
    (
        "reset after shutdown()",
        reset_after_shutdown,
        RECEIVED_LATE,
        ABORTED,
    ),
    (
        "timed out",
        timed_out,
        Ending("timeout", None, true),
        ABORTED,
    ),
    (
        "timed out in FIN_WAIT1",
        timed_out_in_fin_wait,
        Ending("timeout", None, false),
        ABORTED,
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

fn aborts(snapshot: &Snapshot) -> Counts {
    let mut counts = Counts::new();
    for one in snapshot.tcp.iter().filter(|one| one.aborted != 0) {
        let key = (
            one.labels.side.clone(),
            one.labels.svc.clone(),
            "aborted".to_owned(),
        );
        *counts.entry(key).or_default() += one.aborted;
    }
    counts
}

/// Where counts are not those that are wanted.
fn differences(what: &str, ours: &Counts, wanted: &Counts) -> Vec<String> {
    let keys: BTreeSet<_> = ours.keys().chain(wanted.keys()).collect();
    (keys.into_iter())
        .map(|key| (key, [ours, wanted].map(|counts| counts.get(key).copied())))
        .filter(|(_, [ours, wanted])| ours != wanted)
        .map(|(key, [ours, wanted])| format!("{what} {key:?}: {ours:?}, not {wanted:?}"))
        .collect()
}

/// Goes all ways with either end as the first, and compares.
fn go(ways: &[(&str, Way, Ending, Ending)]) {
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.counters();
    let tells_reasons = skip::kernel() >= (6, 10);
    let [mut ended, mut reset, mut abort] = [(); 3].map(|()| Counts::new());
    let mut port = 9000;
    for (name, way, of_first, of_other) in ways {
        for first in [End::Client, End::Server] {
            port += 1;
            // One at a time: what another one starts would hold its sockets open for a
            // moment longer.
            for address in Pair::SERVERS {
                let at = SocketAddr::new(address, port);
                println!("{name}, {first:?} first, {at}");
                let (place, first, second) = Place::open(&pair, at, first);
                way(&place, first, second);
            }
            let [client, server] = match first {
                End::Client => [of_first, of_other],
                End::Server => [of_other, of_first],
            };
            for (side, &Ending(reason, sent, is_abort)) in [("client", client), ("server", server)]
            {
                let key = |what: &str| (side.to_owned(), port.to_string(), what.to_owned());
                let each = Pair::SERVERS.len() as u64;
                ended.insert(key(reason), each);
                if is_abort {
                    abort.insert(key("aborted"), each);
                }
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
    let wrong = [
        differences("ends", &ends(&snapshot), &ended),
        differences("aborts", &aborts(&snapshot), &abort),
        differences("resets", &resets(&snapshot), &reset),
    ]
    .concat();
    assert!(wrong.is_empty(), "{wrong:#?}");

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

#[test]
fn each_way_to_end_is_told_at_both_ends() {
    let Some(_turn) = skip::turn("each_way_to_end_is_told_at_both_ends") else {
        return;
    };
    go(&WAYS);
}

/// The first shuts its own direction down, gets data, and shuts the other one down
/// without having read. Then the other end aborts.
fn reset_after_unread_data(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("a FIN is sent");
    wait_for_fin(&second);
    place.wait_for_fin_wait2();
    send(&second);
    wait_for_data(&first);
    first.shutdown(Shutdown::Read).expect("it is open");
    abort(second);
    place.wait_for_none(place.first);
    drop(first);
}

/// The first closes and has asked not to wait in FIN_WAIT2 (`TCP_LINGER2`).
fn no_fin_wait2(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    let none: libc::c_int = -1;
    // SAFETY: the option takes an int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            first.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_LINGER2,
            (&raw const none).cast(),
            size_of_val(&none) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "TCP_LINGER2");
    drop(first);
    place.wait_for_reset_of(second);
}

/// The first shuts its own direction down, reads a part of what comes, and closes
/// with the rest unread.
fn half_read_in_fin_wait(place: &Place<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("a FIN is sent");
    wait_for_fin(&second);
    place.wait_for_fin_wait2();
    send(&second);
    (&first).read_exact(&mut [0; 100]).expect("the data");
    drop(first);
    place.wait_for_reset_of(second);
}

/// What has come in FIN_WAIT2, and what of it was read, tells nothing by itself of
/// who resets the connection.
#[test]
fn resets_in_fin_wait_are_told_apart() {
    let Some(_turn) = skip::turn("resets_in_fin_wait_are_told_apart") else {
        return;
    };
    go(&[
        ("no FIN_WAIT2", no_fin_wait2, ON_DATA, RECEIVED),
        (
            "half read in FIN_WAIT2",
            half_read_in_fin_wait,
            unread_data(false),
            RECEIVED,
        ),
        (
            "reset after unread data",
            reset_after_unread_data,
            RECEIVED_LATE,
            ABORTED,
        ),
    ]);
}

/// What comes once the FIN is acknowledged meets TIME_WAIT, and no connection: it
/// has ended in order, and the reset is no event of its side.
#[test]
fn a_reset_from_time_wait_leaves_the_end_as_it_was() {
    let Some(_turn) = skip::turn("a_reset_from_time_wait_leaves_the_end_as_it_was") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.counters();
    let mut ended = Counts::new();
    for (first, port) in [(End::Client, 9000), (End::Server, 9001)] {
        let (of_first, of_other) = match first {
            End::Client => ("client", "server"),
            End::Server => ("server", "client"),
        };
        for address in Pair::SERVERS {
            let at = SocketAddr::new(address, port);
            // Where the acknowledgment meets the program that is closing, the kernel
            // may keep the socket: then there is no TIME_WAIT yet, and another try.
            let mut waits = false;
            while !waits {
                let (place, first, second) = Place::open(&pair, at, first);
                drop(first);
                wait_for_fin(&second);
                place.wait_for_fin_wait2();
                waits = place.shown(place.first).contains("timewait");
                let of_second = if waits {
                    send(&second);
                    place.wait_for_reset_of(second);
                    "reset_received"
                } else {
                    drop(second);
                    "fin"
                };
                for (side, reason) in [(of_first, "fin"), (of_other, of_second)] {
                    let key = (side.to_owned(), port.to_string(), reason.to_owned());
                    *ended.entry(key).or_default() += 1;
                }
            }
        }
    }
    let total: u64 = ended.values().sum();
    let snapshot = poll::until("all connections have ended", || {
        let snapshot = daemon.snapshot();
        (ends(&snapshot).values().sum::<u64>() == total).then_some(snapshot)
    });
    let wrong = differences("ends", &ends(&snapshot), &ended);
    assert!(wrong.is_empty(), "{wrong:#?}\n{:#?}", snapshot.resets);
    let sent = |why: &str| -> u64 {
        let sent = (snapshot.resets.iter())
            .filter(|one| one.direction == "sent" && (why.is_empty() || one.reason == why));
        sent.map(|one| one.count).sum()
    };
    let theirs = &pair.counters() - &before;
    let mut table = Table::default();
    if skip::kernel() >= (6, 10) {
        table.equal("resets sent = OutRsts", sent(""), theirs.get("Tcp.OutRsts"));
        table.equal(
            "by TIME_WAIT",
            sent("TCP_TIMEWAIT_SOCKET"),
            theirs.get("Tcp.OutRsts"),
        );
    }
    table.equal(
        "aborted = EstabResets",
        truth::sum(&snapshot, "", |one| one.aborted),
        theirs.get("Tcp.EstabResets"),
    );
    table.check();
    daemon.stop();
}
