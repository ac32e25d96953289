//! More connections than are remembered: what finds no place is counted as
//! lost with its side, and nothing else is.

use std::net::SocketAddr;

use probe_tests::{
    daemon::Daemon,
    load::{self, Clients, Server, on_port},
    netns::Pair,
    skip::{self, scaled},
    truth::{self, Table},
    witness::Witness,
};
use probe_user::snapshot::{Snapshot, TcpSeries};

const PORT: u16 = 8080;
/// Places: ten buckets.
const PLACES: &str = "70";
/// Connections to each address that stay open: two ends, two addresses, so
/// more than there are places for.
const HELD: usize = 30;

fn lost(snapshot: &Snapshot, cause: &str) -> u64 {
    (snapshot.lost.iter())
        .filter(|lost| lost.cause == cause)
        .map(|lost| lost.count)
        .sum()
}

#[test]
fn more_connections_than_places_leave_the_sums_exact() {
    let Some(_turn) = skip::turn("more_connections_than_places_leave_the_sums_exact") else {
        return;
    };
    let pair = Pair::new();
    let targets: Vec<SocketAddr> = on_port(&Pair::SERVERS, PORT);
    let server = Server::start(&pair.server, &targets, &[]);
    let daemon = Daemon::start(&pair.both(), &["--connections", PLACES]);
    let witness = Witness::start();

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
    let no_place = lost(&snapshot, "map_full") as i64;
    println!("{no_place} ends of {ends} found no place");
    assert!(no_place > 0, "every connection found a place");

    let mut table = Table::default();
    table.equal("opened", sum(|one| one.opened), ends);
    table.equal("closed", sum(|one| one.closed.values().sum()), ends);
    table.equal("open", sum(|one| one.open), 0);
    table.equal("lost for another cause", lost(&snapshot, "limit"), 0);
    table.equal("received", sum(|one| one.received_bytes), sent_twice);
    // Of an end without a side it is not known whether its SYN is a byte.
    table.at_most("sent", sum(|one| one.sent_bytes), sent_twice + no_place);
    table.at_most(
        "sent at the least",
        sent_twice as u64,
        sum(|one| one.sent_bytes) as i64,
    );
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    daemon.stop();
    server.stop();
}
