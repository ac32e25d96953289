//! Handshakes that lost their first packet, and connections that were there
//! before the daemon.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

use probe_tests::{
    daemon::Daemon,
    load::{self, Server, on_port},
    netns::Pair,
    skip, truth,
};
use probe_user::model::{Histogram, Snapshot, bucket_seconds};

const PORT: u16 = 8080;

fn handshakes(snapshot: &Snapshot, side: &str) -> Histogram {
    (snapshot.tcp.iter())
        .filter(|series| series.labels.side == side)
        .fold(Histogram::default(), |mut sum, series| {
            sum.add(&series.handshake);
            sum
        })
}

/// Number of observations of a second or so: the first retransmission.
fn of_a_second(histogram: &Histogram) -> u64 {
    (histogram.slots.iter())
        .filter(|(slot, _)| {
            let (low, high) = bucket_seconds(*slot);
            high > 0.98 && low < 2.9
        })
        .map(|(_, count)| count)
        .sum()
}

#[test]
fn a_handshake_shows_the_second_that_its_lost_packet_cost() {
    let Some(_turn) = skip::turn("a_handshake_shows_the_second_that_its_lost_packet_cost") else {
        return;
    };
    for (lost, client_port, at_server, slow_sides) in [
        ("syn", "sport", true, &["client"][..]),
        ("syn|ack", "dport", false, &["client", "server"][..]),
    ] {
        let pair = Pair::new();
        let receiver = if at_server {
            &pair.server
        } else {
            &pair.client
        };
        // The first of each connection is lost, which its port tells.
        receiver.nft(&format!(
            "table inet ep {{
                set seen {{ typeof meta nfproto . tcp {client_port}; size 1000; flags dynamic; }};
                chain pre {{ type filter hook prerouting priority raw;
                    tcp flags & (syn|ack) == {lost} meta nfproto . tcp {client_port} != @seen \
                    add @seen {{ meta nfproto . tcp {client_port} }} drop
                }};
            }}"
        ));
        let server = Server::start(&pair.server, &on_port(&Pair::SERVERS, PORT), &[]);
        let daemon = Daemon::start(&pair.both(), &[]);
        let mut made = 0;
        for target in on_port(&Pair::SERVERS, PORT) {
            for _ in 0..2 {
                drop(load::hold(&pair.client, &[target], 1));
                server.release(1);
                load::quiet(&pair.both(), 0);
                made += 1;
            }
        }
        let snapshot = daemon.snapshot();
        for side in ["client", "server"] {
            let handshakes = handshakes(&snapshot, side);
            assert_eq!(handshakes.count(), made, "{side}, {lost} lost");
            let slow = if slow_sides.contains(&side) { made } else { 0 };
            assert_eq!(
                of_a_second(&handshakes),
                slow,
                "{side}, {lost} lost: {:?}",
                handshakes.slots
            );
        }
        daemon.stop();
        server.stop();
    }
}

#[test]
fn connections_from_before_the_start_count_from_the_start_on() {
    let Some(_turn) = skip::turn("connections_from_before_the_start_count_from_the_start_on")
    else {
        return;
    };
    const EARLIER: usize = 10_000;
    const LATER: usize = 70_000;
    let pair = Pair::new();
    let mut ends: Vec<(TcpStream, TcpStream)> = Vec::new();
    let mut listeners = Vec::new();
    for address in Pair::SERVERS {
        let target = SocketAddr::new(address, PORT);
        let listener = pair.server.run(|| TcpListener::bind(target));
        let listener = listener.expect("a listener");
        for _ in 0..5 {
            let client = pair.client.run(|| TcpStream::connect(target));
            let (server, _) = listener.accept().expect("a connection");
            ends.push((client.expect("a connection"), server));
        }
        listeners.push(listener);
    }
    let exchange = |ends: &mut [(TcpStream, TcpStream)], length: usize| {
        for (client, server) in ends {
            let mut buffer = vec![1; length];
            client.write_all(&buffer).expect("the server reads");
            server.read_exact(&mut buffer).expect("the client writes");
            server.write_all(&buffer).expect("the client reads");
            client.read_exact(&mut buffer).expect("the server writes");
        }
    };
    exchange(&mut ends, EARLIER);
    load::quiet(&pair.both(), 2 * ends.len());
    // A listener that is gone has left its mark on what it accepted.
    listeners.pop();

    let daemon = Daemon::start(&pair.both(), &[]);
    let number = 2 * ends.len() as u64;
    let snapshot = daemon.snapshot();
    assert_eq!(truth::sum(&snapshot, "", |one| one.open), number);
    assert_eq!(truth::sum(&snapshot, "", |one| one.sent_bytes), 0);
    assert_eq!(truth::sum(&snapshot, "", |one| one.received_bytes), 0);
    let svc = PORT.to_string();
    for side in ["server", "client"] {
        let open = (snapshot.tcp.iter())
            .filter(|one| one.labels.side == side && one.labels.svc == svc)
            .map(|one| one.open)
            .sum::<u64>();
        assert_eq!(open, number / 2, "{side}");
    }

    exchange(&mut ends, LATER);
    load::quiet(&pair.both(), 2 * ends.len());
    let expected = number * LATER as u64;
    // What is written while a connection lives shows before its end.
    let live = daemon.connections();
    assert_eq!(live.connections.len() as u64, number);
    let live_sum = |value: fn(&probe_user::model::Connection) -> u64| {
        live.connections.iter().map(value).sum::<u64>()
    };
    let since_opened = number * (EARLIER + LATER) as u64;
    assert_eq!(live_sum(|one| one.sent_bytes), since_opened);
    assert_eq!(live_sum(|one| one.received_bytes), since_opened);
    assert!(live.connections.iter().all(|one| one.age_seconds.is_none()));
    let snapshot = daemon.snapshot();
    assert!(truth::sum(&snapshot, "", |one| one.rtt.count()) >= number);

    drop(ends);
    load::quiet(&pair.both(), 0);
    let snapshot = daemon.snapshot();
    let sum = |value: fn(&probe_user::model::TcpSeries) -> u64| truth::sum(&snapshot, "", value);
    assert_eq!(sum(|one| one.sent_bytes), expected);
    assert_eq!(sum(|one| one.received_bytes), expected);
    assert_eq!(
        sum(|one| one.opened),
        0,
        "they were opened before the start"
    );
    assert_eq!(sum(|one| one.open), 0);
    assert_eq!(sum(|one| one.closed.sum()), number);
    drop(listeners);
    daemon.stop();
}
