//! What `ss` and `TCP_INFO` say of open connections, beside what we say.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use probe_tests::{
    daemon::Daemon,
    load::on_port,
    netns::{Netns, Pair},
    poll, skip,
    tcp_info::tcp_info,
    truth::{self, Table},
};
use probe_user::model::TcpSeries;

const PORT: u16 = 8080;
/// Connections of each family.
const CONNECTIONS: usize = 10;
/// Bytes that each end sends in turn, several segments.
const MESSAGE: usize = 20_000;
const TURNS: usize = 10;

/// Both ends of a connection, the client's first.
fn connection(pair: &Pair, target: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = pair.client.run(|| TcpStream::connect(target));
    let (server, _) = listener.accept().expect("a connection");
    (client.expect("a connection"), server)
}

fn listener(netns: &Netns, target: SocketAddr) -> TcpListener {
    netns
        .run(|| TcpListener::bind(target))
        .expect("an address to listen on")
}

/// Sums of what `ss` shows of the established connections in a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shown {
    connections: u64,
    sent: u64,
    received: u64,
    retransmitted: u64,
    retransmitted_bytes: u64,
    unacknowledged: u64,
}

impl Shown {
    fn of(netns: &Netns) -> Self {
        let text = netns.command("ss", &["-HtinO", "state", "established"]);
        let mut sum = Self::default();
        for word in text.split_whitespace() {
            let number = |text: &str| text.parse::<u64>().expect("a number of ss");
            match word.split_once(':') {
                Some(("segs_out", count)) => sum.sent += number(count),
                Some(("segs_in", count)) => sum.received += number(count),
                Some(("bytes_retrans", count)) => sum.retransmitted_bytes += number(count),
                Some(("unacked", count)) => sum.unacknowledged += number(count),
                // Those on the way, and all in its life.
                Some(("retrans", counts)) => {
                    let (_, all) = counts.split_once('/').expect("two numbers of ss");
                    sum.retransmitted += number(all);
                }
                _ => {}
            }
        }
        sum.connections = text.lines().count() as u64;
        sum
    }
}

/// RTT, least RTT in microseconds and congestion window of each established
/// connection by its two ends, as `ss` shows them.
fn measured(netns: &Netns) -> BTreeMap<(String, String), [u64; 3]> {
    let text = netns.command("ss", &["-HtinO", "state", "established"]);
    let of = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let member = |name: &str| {
            let word = words.iter().find_map(|word| word.strip_prefix(name));
            let number = word.and_then(|word| word.split('/').next()?.parse::<f64>().ok());
            number.unwrap_or_else(|| panic!("no {name} in {line}"))
        };
        let us = |ms: f64| (ms * 1000.0).round() as u64;
        let numbers = [
            us(member("rtt:")),
            us(member("minrtt:")),
            member("cwnd:") as u64,
        ];
        ((words[2].to_owned(), words[3].to_owned()), numbers)
    };
    text.lines().map(of).collect()
}

#[test]
fn segments_of_open_connections_are_those_that_ss_shows() {
    const TEST: &str = "segments_of_open_connections_are_those_that_ss_shows";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    for netns in pair.both() {
        netns.nft(
            "table inet ep {
                chain pre { type filter hook prerouting priority raw;
                    meta l4proto tcp numgen random mod 20 == 0 drop
                };
            }",
        );
    }
    let targets = on_port(&Pair::SERVERS, PORT);
    let listeners: Vec<_> = (targets.iter())
        .map(|target| listener(&pair.server, *target))
        .collect();
    let daemon = Daemon::start(&pair.both(), &[]);
    let mut ends = Vec::new();
    for (target, listener) in targets.iter().zip(&listeners) {
        for _ in 0..CONNECTIONS {
            ends.push(connection(&pair, *target, listener));
        }
    }
    thread::scope(|scope| {
        for (client, server) in &mut ends {
            let turns = |mut stream: &TcpStream, speaks_first: bool| {
                let mut message = vec![0; MESSAGE];
                for turn in 0..TURNS {
                    if (turn % 2 == 0) == speaks_first {
                        stream.write_all(&message).expect("the other end reads");
                    } else {
                        stream.read_exact(&mut message).expect("an answer");
                    }
                }
            };
            scope.spawn(move || turns(client, true));
            scope.spawn(move || turns(server, false));
        }
    });
    // Until all that was sent is acknowledged and nothing is sent again.
    let mut last = Vec::new();
    let shown = poll::until("the connections are at rest", || {
        thread::sleep(Duration::from_secs(1));
        let shown = pair.both().map(Shown::of);
        let rests = shown.iter().all(|one| one.unacknowledged == 0) && last == shown;
        last = shown.to_vec();
        rests.then_some(shown)
    });
    let of = |netns: &Netns| {
        let n = pair
            .both()
            .iter()
            .position(|one| one.name() == netns.name());
        shown[n.expect("one of the two")]
    };
    let sides = [("server", of(&pair.server)), ("client", of(&pair.client))];
    let snapshot = daemon.visited(|snapshot| {
        sides.iter().all(|(side, shown)| {
            truth::sum(snapshot, side, |one| one.received_segments) >= shown.received
        })
    });
    let mut table = Table::default();
    for (side, shown) in sides {
        assert_eq!(shown.connections, ends.len() as u64, "{side}, by ss");
        assert!(shown.retransmitted > 0, "{side}: nothing was lost");
        let sum = |value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, side, value);
        let number = |count: u64| i64::try_from(count).expect("few enough");
        table.equal("open", sum(|one| one.open), number(shown.connections));
        table.equal("sent", sum(|one| one.sent_segments), number(shown.sent));
        table.equal(
            "received",
            sum(|one| one.received_segments),
            number(shown.received),
        );
        table.equal(
            "retransmitted",
            sum(|one| one.retransmits.sum()),
            number(shown.retransmitted),
        );
        table.equal(
            "bytes retransmitted",
            sum(|one| one.retransmitted_bytes),
            number(shown.retransmitted_bytes),
        );
    }
    table.check();

    // And one by one.
    let theirs: BTreeMap<_, _> = (pair.both().into_iter()).flat_map(measured).collect();
    let us = |seconds: f64| (seconds * 1e6).round() as u64;
    let shown = daemon.fresh_connections().connections;
    let ours: BTreeMap<_, _> = (shown.into_iter())
        .map(|one| {
            let least = one.min_rtt_seconds.expect("it has been measured");
            let numbers = [us(one.srtt_seconds), us(least), one.cwnd_segments.into()];
            ((one.local, one.remote), numbers)
        })
        .collect();
    assert_eq!(ours.len(), 2 * ends.len(), "all are shown");
    assert!(ours.keys().eq(theirs.keys()), "{ours:?} {theirs:?}");
    for (ends, ours) in &ours {
        // `ss` prints six digits.
        let same = (ours.iter().zip(theirs[ends]))
            .all(|(ours, theirs)| ours.abs_diff(theirs) * 100_000 <= theirs);
        assert!(same, "{ends:?}: {ours:?}, by ss {:?}", theirs[ends]);
    }
    daemon.stop();
}

#[test]
fn segments_with_the_mark_ce_are_those_that_the_kernel_counts() {
    const TEST: &str = "segments_with_the_mark_ce_are_those_that_the_kernel_counts";
    /// Bytes that a client sends on each connection.
    const STREAM: usize = 2_000_000;
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    for netns in pair.both() {
        netns.sysctl("ipv4/tcp_ecn", 1);
    }
    // A router between the two that is congested: it marks what may be marked.
    pair.client.nft(
        "table inet ep {
            chain post { type filter hook postrouting priority mangle;
                ip ecn ect0 numgen inc mod 10 == 0 ip ecn set ce
                ip6 ecn ect0 numgen inc mod 10 == 0 ip6 ecn set ce
            };
        }",
    );
    let targets = on_port(&Pair::SERVERS, PORT);
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.both().map(Netns::counters);
    let mut ends: Vec<_> = (targets.iter())
        .map(|target| connection(&pair, *target, &listener(&pair.server, *target)))
        .collect();
    thread::scope(|scope| {
        for (client, server) in &mut ends {
            let send = |mut stream: &TcpStream| stream.write_all(&vec![7; STREAM]);
            scope.spawn(move || send(client).expect("the other end reads"));
            scope.spawn(move || server.read_exact(&mut vec![0; STREAM]).expect("all of it"));
        }
    });
    poll::until("all is acknowledged", || {
        (Shown::of(&pair.client).unacknowledged == 0).then_some(())
    });
    let counted: Vec<_> = (pair.both().iter().zip(&before))
        .map(|(netns, before)| (netns.name(), &netns.counters() - before))
        .collect();
    let of = |netns: &Netns| {
        let found = counted.iter().find(|(name, _)| *name == netns.name());
        &found.expect("one of the two").1
    };
    let received = of(&pair.server).get("IpExt.InCEPkts") + of(&pair.server).get("Ip6InCEPkts");
    let delivered = of(&pair.client).get("TcpExt.TCPDeliveredCE");
    assert!(received > 0 && delivered > 0, "{received} {delivered}");
    let snapshot = daemon.visited(|snapshot| {
        let delivered_ce = truth::sum(snapshot, "client", |one| one.delivered_ce_segments);
        i64::try_from(delivered_ce).expect("few enough") >= delivered
    });
    let mut table = Table::default();
    let sum = |side, value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, side, value);
    table.equal(
        "received with CE = InCEPkts",
        sum("server", |one| one.received_ce_segments),
        received,
    );
    table.equal(
        "delivered with CE = TCPDeliveredCE",
        sum("client", |one| one.delivered_ce_segments),
        delivered,
    );
    table.equal(
        "nothing was marked on the way back",
        sum("client", |one| one.received_ce_segments),
        of(&pair.client).get("IpExt.InCEPkts"),
    );
    table.check();
    daemon.stop();
}

/// `tcpi_ca_state` of a connection.
fn congestion(stream: &TcpStream) -> u8 {
    tcp_info(stream).expect("TCP_INFO").tcpi_ca_state
}

#[test]
fn a_connection_shows_its_state_of_congestion_control() {
    const TEST: &str = "a_connection_shows_its_state_of_congestion_control";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    /// `TCP_CA_Open` and `TCP_CA_Loss` (`include/uapi/linux/tcp.h`).
    const STATES: [(u8, &str); 2] = [(0, "open"), (4, "loss")];
    let pair = Pair::new();
    let [target, ..] = on_port(&Pair::SERVERS, PORT)[..] else {
        panic!("there is a server");
    };
    let listener = listener(&pair.server, target);
    let daemon = Daemon::start(&pair.both(), &[]);
    let ends = [(); 2].map(|()| connection(&pair, target, &listener));
    let port = |stream: &TcpStream| stream.local_addr().expect("an address").port();
    // The second one's segments are lost from here on.
    pair.server.nft(&format!(
        "table inet ep {{
            chain pre {{ type filter hook prerouting priority raw;
                tcp sport {} drop
            }};
        }}",
        port(&ends[1].0)
    ));
    for (mut client, _) in ends.iter().map(|(client, server)| (client, server)) {
        client.write_all(b"question").expect("room for it");
    }
    poll::until("a timeout", || {
        (congestion(&ends[1].0) == STATES[1].0).then_some(())
    });
    let snapshot = daemon.fresh_connections();
    for ((client, _), (state, name)) in ends.iter().zip(STATES) {
        assert_eq!(congestion(client), state, "by TCP_INFO, {name}");
        let shown = (snapshot.connections.iter())
            .find(|one| one.local.ends_with(&format!(":{}", port(client))))
            .expect("the connection is shown");
        assert_eq!(shown.congestion, name);
    }
    for (client, _) in &ends {
        client.shutdown(Shutdown::Both).expect("it is open");
    }
    daemon.stop();
}
