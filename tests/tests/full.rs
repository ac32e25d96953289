//! More connections than are remembered, and more services than are tracked
//! separately: what finds no slot is counted as lost with its labels, and the sums
//! stay exact.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use probe_tests::{
    daemon::Daemon,
    load::{self, Clients, Server, on_port},
    netns::Pair,
    poll,
    skip::{self, scaled},
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::{Snapshot, TcpSeries};

const PORT: u16 = 8080;
/// Slots for connections.
const SLOTS: &str = "70";
/// Connections to each address that stay open: two ends, two addresses, so
/// more than there are slots for.
const HELD: usize = 30;

/// Rows, one of them the overflow.
const ROWS: &str = "3";

fn lost(snapshot: &Snapshot, cause: &str) -> u64 {
    (snapshot.lost.iter())
        .filter(|lost| lost.cause == cause)
        .map(|lost| lost.count)
        .sum()
}

/// Hooks and causes of what can be lost.
fn lost_series(snapshot: &Snapshot) -> Vec<(&str, &str)> {
    let lost = snapshot.lost.iter();
    lost.map(|lost| (lost.hook.as_str(), lost.cause.as_str()))
        .collect()
}

#[test]
fn more_connections_than_slots_leave_the_sums_exact() {
    let Some(_turn) = skip::turn("more_connections_than_slots_leave_the_sums_exact") else {
        return;
    };
    let pair = Pair::new();
    let targets: Vec<SocketAddr> = on_port(&Pair::SERVERS, PORT);
    let server = Server::start(&pair.server, &targets, &[]);
    let daemon = Daemon::start(&pair.both(), &["--connections", SLOTS]);
    let witness = Witness::start();
    let begin = daemon.snapshot();

    let (held, held_totals) = load::hold(&pair.client, &targets, HELD);
    let clients = Clients {
        connections: scaled(2_000),
        threads: 4,
        targets,
    };
    let totals = clients.run(&pair.client);
    let number = held.len();
    drop(held);
    server.release(number);
    load::quiet(&pair.both(), 0);

    let snapshot = daemon.snapshot();
    let sum = |value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, "", value);
    let ends = 2 * (totals.connections + held_totals.connections) as i64;
    let sent_twice =
        (totals.sent + totals.received + held_totals.sent + held_totals.received) as i64;
    let no_slot = lost(&snapshot, "map_full") as i64;
    println!("{no_slot} ends of {ends} found no slot");
    assert!(no_slot > 0, "every connection found a slot");

    let mut table = Table::default();
    table.equal("opened", sum(|one| one.opened), ends);
    table.equal("closed", sum(|one| one.closed.sum()), ends);
    for side in ["client", "server"] {
        let closed = truth::sum(&snapshot, side, |one| one.closed.sum());
        table.equal("closed, by side", closed, ends / 2);
    }
    table.equal("open", sum(|one| one.open), 0);
    table.equal("lost for another cause", lost(&snapshot, "limit"), 0);
    let received = sum(|one| one.received_bytes);
    table.equal_bytes("received", received, sent_twice, load::MOST_BYTES);
    let sent = sum(|one| one.sent_bytes);
    table.equal_bytes("sent", sent, sent_twice, load::MOST_BYTES);
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    // A series that first appears with a number would be a jump of a rate.
    assert_eq!(lost_series(&snapshot), lost_series(&begin));
    daemon.stop();
    server.stop();
}

#[test]
fn more_services_than_rows_leave_the_sums_exact() {
    let Some(_turn) = skip::turn("more_services_than_rows_leave_the_sums_exact") else {
        return;
    };
    let pair = Pair::new();
    let targets: Vec<SocketAddr> = (8080..8090)
        .flat_map(|port| on_port(&Pair::SERVERS, port))
        .collect();
    let server = Server::start(&pair.server, &targets, &[]);
    let daemon = Daemon::start(&pair.both(), &["--rows", ROWS]);
    let witness = Witness::start();
    let before = pair.counters();

    let clients = Clients {
        connections: scaled(2_000),
        threads: 4,
        targets,
    };
    let client = clients.run(&pair.client);
    let after = load::quiet(&pair.both(), 0);

    let snapshot = daemon.snapshot();
    let other = |one: &TcpSeries| one.labels.svc == "other";
    let folded: u64 = (snapshot.tcp.iter().filter(|one| other(one)))
        .map(|one| one.opened)
        .sum();
    let no_row = lost(&snapshot, "map_full");
    println!("{folded} connections in the overflow row, {no_row} events without a row");
    assert!(folded > 0, "every service found a row");
    assert!(no_row >= folded, "what lost its labels is not counted");
    assert_eq!(snapshot.tcp.len(), 3, "two rows and the overflow");

    let both = (client.connections * 2) as i64;
    let sum = |value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, "", value);
    let theirs = &after - &before;
    let bytes = (client.sent + client.received) as i64;
    let mut table = Table::default();
    table.equal("opened", sum(|one| one.opened), both);
    let kernel = theirs.get("Tcp.PassiveOpens") + theirs.get("Tcp.ActiveOpens");
    table.equal(
        "opened, as the kernel counts",
        sum(|one| one.opened),
        kernel,
    );
    table.equal("closed", sum(|one| one.closed.sum()), both);
    table.equal("durations", sum(|one| one.duration.count()), both);
    table.equal("open", sum(|one| one.open), 0);
    table.equal_bytes("sent", sum(|one| one.sent_bytes), bytes, load::MOST_BYTES);
    table.equal_bytes(
        "received",
        sum(|one| one.received_bytes),
        bytes,
        load::MOST_BYTES,
    );
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    daemon.stop();
    server.stop();
}

#[test]
fn each_loss_is_logged_where_that_is_asked_for() {
    let Some(_turn) = skip::turn("each_loss_is_logged_where_that_is_asked_for") else {
        return;
    };
    let pair = Pair::new();
    let targets: Vec<SocketAddr> = (8080..8084)
        .flat_map(|port| on_port(&Pair::SERVERS, port))
        .collect();
    let server = Server::start(&pair.server, &targets, &[]);
    let arguments = ["--rows", ROWS, "--log-level", "debug"];
    let daemon = Daemon::start(&pair.both(), &arguments);
    // Few enough for the ring buffer of the messages.
    let clients = Clients {
        connections: 40,
        threads: 1,
        targets,
    };
    clients.run(&pair.client);
    load::quiet(&pair.both(), 0);
    // What is lost between the reading and the messages comes with the next one.
    let (lost, logged) = poll::until("all losses are logged", || {
        let lost = lost(&daemon.snapshot(), "map_full");
        let messages = daemon.process().messages();
        let lines = messages.lines();
        let logged = lines.filter(|line| line.contains("lost an event (map_full)"));
        let logged = logged.count() as u64;
        (lost > 0 && logged >= lost).then_some((lost, logged))
    });
    assert_eq!(logged, lost);
    daemon.stop();
    server.stop();
}

#[test]
fn clients_of_many_ports_leave_rows_for_services() {
    let Some(_turn) = skip::turn("clients_of_many_ports_leave_rows_for_services") else {
        return;
    };
    const ROWS: usize = 40;
    const NAMED: u16 = 7000;
    let pair = Pair::new();
    let daemon = Daemon::configured(
        &pair.both(),
        &format!("[[service]]\nname = \"named\"\nports = [{NAMED}]\n"),
        &["--rows", &ROWS.to_string()],
    );
    let connect = |port: u16| {
        for address in on_port(&Pair::SERVERS, port) {
            let connected = pair
                .client
                .run(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)));
            let error = connected.expect_err("nobody listens there");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        }
    };
    (6000..6100).for_each(connect);
    connect(NAMED);
    let targets = on_port(&Pair::SERVERS, PORT);
    let server = Server::start(&pair.server, &targets, &[]);
    let clients = Clients {
        connections: 20,
        threads: 2,
        targets,
    };
    clients.run(&pair.client);
    load::quiet(&pair.both(), 0);

    let snapshot = daemon.snapshot();
    let of = |side: &str, svc: &str| -> Vec<&TcpSeries> {
        let fits = |one: &&TcpSeries| one.labels.side == side && one.labels.svc == svc;
        snapshot.tcp.iter().filter(fits).collect()
    };
    let refused = |series: &[&TcpSeries]| -> u64 {
        (series.iter().map(|one| one.connect_failures["refused"])).sum()
    };
    assert_eq!(refused(&of("client", "named")), 2, "it has a name");
    assert_eq!(
        refused(&of("unknown", "other")),
        200 - refused(&unnamed(&snapshot))
    );
    let server_side = of("server", &PORT.to_string());
    let opened: u64 = server_side.iter().map(|one| one.opened).sum();
    assert_eq!(opened, 20, "it listens here");
    // Half of the rows, less those of resets from closed ports.
    let rows = unnamed(&snapshot).len();
    assert!((ROWS / 2 - 2..=ROWS / 2).contains(&rows), "{rows} rows");
    assert!(
        lost(&snapshot, "map_full") > 0,
        "what lost its labels is counted"
    );
    daemon.stop();
    server.stop();
}

/// The series of clients whose service has no name.
fn unnamed(snapshot: &Snapshot) -> Vec<&TcpSeries> {
    let fits =
        |one: &&TcpSeries| one.labels.side == "client" && one.labels.svc.parse::<u16>().is_ok();
    snapshot.tcp.iter().filter(fits).collect()
}
