//! Whose the packets were that the kernel dropped.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
};

use probe_tests::{
    daemon::Daemon, filter::Filter, load, netns::Pair, poll, refuse, skip, truth::Table,
};
use probe_user::model::{Connection, Snapshot, TcpSeries};
use socket2::Protocol;

/// Drops of TCP that are a loss, by reason, side and service.
fn count(snapshot: &Snapshot, reason: &str, side: &str, svc: &str) -> u64 {
    (snapshot.drops.iter())
        .filter(|drop| drop.class == "loss" && drop.subsystem == "core" && drop.protocol == "tcp")
        .filter(|drop| (drop.reason.as_str(), drop.side.as_str()) == (reason, side))
        .filter(|drop| drop.svc == svc)
        .map(|drop| drop.count)
        .sum()
}

/// The same whosever they were.
fn of_all(snapshot: &Snapshot, reason: &str) -> u64 {
    (snapshot.drops.iter())
        .filter(|drop| drop.reason == reason && drop.protocol == "tcp")
        .map(|drop| drop.count)
        .sum()
}

/// A snapshot of a daemon that knows the listeners of a port.
fn knowing(daemon: &Daemon, svc: &str) -> Snapshot {
    let knows = |snapshot: &Snapshot| snapshot.listeners.iter().any(|one| one.svc == svc);
    let snapshot = daemon.visited(knows);
    assert!(knows(&snapshot), "the listeners have been visited");
    snapshot
}

fn send(mut stream: &TcpStream) {
    stream.write_all(b"lost").expect("it is sent");
}

#[test]
fn what_a_filter_drops_is_the_connections_or_the_listeners() {
    let Some(_turn) = skip::turn("what_a_filter_drops_is_the_connections_or_the_listeners") else {
        return;
    };
    const REASON: &str = "NETFILTER_DROP";
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let mut table = Table::default();
    let mut all = 0;
    for (address, port) in Pair::SERVERS.into_iter().zip([8080, 8081]) {
        let svc = port.to_string();
        let at = SocketAddr::new(address, port);
        let (listener, client, server) = pair.connect(at);
        let before = knowing(&daemon, &svc);
        let mut dropped = |filter: Filter<'_>, least| {
            let dropped = filter.until(least);
            all += dropped;
            dropped as i64
        };

        // What is on its way to a socket, and what has left one.
        let payload = |ports: &str| format!("tcp {ports} {port} tcp flags & psh == psh");
        let filter = Filter::new(&pair.server, "input", &payload("dport"));
        send(&client);
        let to_server = dropped(filter, 4);
        let filter = Filter::new(&pair.client, "input", &payload("sport"));
        send(&server);
        let to_client = dropped(filter, 4);
        let filter = Filter::new(&pair.client, "output", &payload("dport"));
        send(&client);
        let from_client = dropped(filter, 3);

        // What has met no socket yet.
        let syns = |port: u16| format!("tcp dport {port} tcp flags & syn == syn");
        let filter = Filter::new(&pair.server, "prerouting", &syns(port));
        let begun = refuse::waiting(&pair.client, at, 5, 1);
        let to_listener = dropped(filter, 5);
        let filter = Filter::new(&pair.server, "prerouting", &syns(9));
        let nowhere = SocketAddr::new(address, 9);
        let lost = refuse::waiting(&pair.client, nowhere, 5, 1);
        let to_nobody = dropped(filter, 5);

        let after = daemon.fresh_connections();
        let drops_of = |side: &str| -> u64 {
            let is_it = |one: &&Connection| one.labels.side == side && one.labels.svc == svc;
            let one = after.connections.iter().find(is_it);
            let one = one.unwrap_or_else(|| panic!("no {side}: {:?}", after.connections));
            assert_eq!(one.drop_reason.as_deref(), Some(REASON), "{one:?}");
            one.drops
        };
        table.equal("connection of the server", drops_of("server"), to_server);
        table.equal(
            "connection of the client",
            drops_of("client"),
            to_client + from_client,
        );
        let ours = |side: &str, svc: &str| {
            count(&after, REASON, side, svc) - count(&before, REASON, side, svc)
        };
        table.equal("server", ours("server", &svc), to_server + to_listener);
        table.equal("client", ours("client", &svc), to_client + from_client);
        table.equal("nobody", ours("none", "none"), to_nobody);
        drop((listener, client, server, begun, lost));
    }
    let snapshot = daemon.snapshot();
    table.equal("all", of_all(&snapshot, REASON), all as i64);
    table.check();
    daemon.stop();
}

#[test]
fn a_refused_connection_has_nobody() {
    let Some(_turn) = skip::turn("a_refused_connection_has_nobody") else {
        return;
    };
    const REFUSED: u32 = 20;
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    for address in Pair::SERVERS {
        let target = SocketAddr::new(address, 9);
        refuse::failing(&pair.client, target, REFUSED, None, libc::ECONNREFUSED);
    }
    let snapshot = daemon.snapshot();
    let mut table = Table::default();
    let resets = pair.counters().get("Tcp.OutRsts");
    table.equal(
        "nobody",
        count(&snapshot, "NO_SOCKET", "none", "none"),
        resets,
    );
    table.equal(
        "all",
        of_all(&snapshot, "NO_SOCKET"),
        i64::from(2 * REFUSED),
    );
    table.check();
    daemon.stop();
}

#[test]
fn what_a_full_accept_queue_drops_is_its_services() {
    let Some(_turn) = skip::turn("what_a_full_accept_queue_drops_is_its_services") else {
        return;
    };
    const CONFIG: &str = "[[service]]\nname = \"web\"\nside = \"server\"\nports = [8080]\n";
    let pair = Pair::new();
    // Without the receiving socket the namespace of these packets is not known: then all
    // are watched.
    let both = pair.both();
    let is_receiver_known = skip::kernel() >= (6, 11);
    let watched = if is_receiver_known { &both[..] } else { &[] };
    let daemon = Daemon::configured(watched, CONFIG, &[]);
    let at = SocketAddr::new(Pair::SERVER_V4, 8080);
    // Nobody accepts.
    let listener = pair.server.run(|| load::listen(at, Protocol::TCP, 2));
    let listener = listener.expect("a listener");
    let before = knowing(&daemon, "web");
    // The ends of the handshakes are held back until more are half open than fit.
    let filter = Filter::new(&pair.server, "input", "tcp dport 8080 tcp flags == ack");
    let clients: Vec<TcpStream> = (0..8)
        .map(|_| {
            pair.client
                .run(|| TcpStream::connect(at))
                .expect("it is open")
        })
        .collect();
    let filtered = filter.until(8);
    clients.iter().for_each(send);
    let overflows = || pair.counters().get("TcpExt.ListenOverflows");
    poll::until("the queue is full", || (overflows() >= 5).then_some(()));
    // What does not fit is sent again and dropped again.
    poll::until("both agree", || {
        let after = daemon.snapshot();
        let ours = |reason: &str| {
            count(&after, reason, "server", "web") - count(&before, reason, "server", "web")
        };
        // The name of the reason depends on the kernel and on what completes the handshake.
        let names = ["TCP_LISTEN_OVERFLOW", "NO_SOCKET", "NOT_SPECIFIED"].map(ours);
        let overflows = overflows();
        println!("{overflows} overflows, by reason {names:?}");
        assert_eq!(ours("NETFILTER_DROP"), filtered);
        // There a drop without a reason is nobody's.
        let nobodys = match is_receiver_known {
            true => 0,
            false => of_all(&after, "NOT_SPECIFIED") - of_all(&before, "NOT_SPECIFIED"),
        };
        for drop in after.drops.iter().filter(|drop| drop.protocol == "tcp") {
            println!(
                "  {} {} {}: {}",
                drop.reason, drop.side, drop.svc, drop.count
            );
        }
        (names.iter().sum::<u64>() + nobodys == overflows as u64).then_some(())
    });
    drop((listener, clients));
    daemon.stop();
}

#[test]
fn more_services_than_rows_leave_the_sum_exact() {
    let Some(_turn) = skip::turn("more_services_than_rows_leave_the_sum_exact") else {
        return;
    };
    const EACH: u32 = 3;
    let pair = Pair::new();
    let ports = 8080..8090;
    let daemon = Daemon::start(&pair.both(), &["--rows", "3"]);
    let at = |port| SocketAddr::new(Pair::SERVER_V4, port);
    let listen = |port| pair.server.run(|| load::listen(at(port), Protocol::TCP, 8));
    let listeners: Vec<_> = (ports.clone())
        .map(|port| listen(port).expect("a listener"))
        .collect();
    knowing(&daemon, "8089");
    let filter = Filter::new(&pair.server, "prerouting", "tcp dport 8080-8089");
    let clients: Vec<_> = ports
        .clone()
        .flat_map(|port| refuse::waiting(&pair.client, at(port), EACH, 1))
        .collect();
    let sent = u64::from(EACH) * ports.len() as u64;
    poll::until("all are dropped", || {
        (filter.dropped() >= sent).then_some(())
    });
    // Nobody sends a SYN again that would be let through.
    drop(clients);
    let dropped = filter.until(sent);
    let snapshot = daemon.snapshot();
    let own: Vec<u64> = ports
        .map(|port| count(&snapshot, "NETFILTER_DROP", "server", &port.to_string()))
        .collect();
    let folded = count(&snapshot, "NETFILTER_DROP", "unknown", "other");
    println!("{own:?} with a row of their own, {folded} folded");
    assert!(own.iter().any(|&count| count > 0) && folded > 0);
    assert_eq!(own.iter().sum::<u64>() + folded, dropped);
    // A row that only tells whose drops are is no series of connections.
    let is_server = |one: &TcpSeries| one.labels.side == "server";
    assert!(!snapshot.tcp.iter().any(is_server), "{:?}", snapshot.tcp);
    drop(listeners);
    daemon.stop();
}
