//! PostgreSQL under pgbench.

use probe_tests::{
    daemon::Daemon,
    load,
    netns::Pair,
    postgres::{Postgres, programs_of},
    skip,
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::TcpSeries;

use crate::tls::sum;

const PORT: u16 = 5432;
const CLIENTS: u32 = 4;

/// Round trips until a connection can be used: the question for TLS, and the
/// start-up packet.
const GREETING: u64 = 2;

fn under_pgbench(test: &str, each: u32, reconnect: bool) {
    let Some(_turn) = skip::turn(test) else {
        return;
    };
    let (Some(programs), Some(_)) = (programs_of(test), skip::tool(test, "setpriv")) else {
        return;
    };
    let pair = Pair::new();
    let postgres = Postgres::start(&pair.server, &programs, Pair::SERVER_V4, PORT);
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();
    let transactions = postgres.bench(&pair, CLIENTS, each, reconnect);
    let theirs = &load::quiet(&pair.both(), 0) - &before;
    let snapshot = daemon.snapshot();
    assert_eq!(
        transactions,
        u64::from(CLIENTS * each),
        "pgbench's own count"
    );
    // pgbench looks first at whom it talks to.
    let connections = 1 + if reconnect {
        transactions
    } else {
        u64::from(CLIENTS)
    };
    assert_eq!(postgres.accepted(), connections, "PostgreSQL's own count");

    let mut table = Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    let number = |count: u64| i64::try_from(count).expect("few of them");
    for side in ["server", "client"] {
        let count = |value: fn(&TcpSeries) -> u64| sum(&snapshot, side, PORT, value);
        let opened = number(connections);
        table.equal(
            "opened = PostgreSQL's connections",
            count(|one| one.opened),
            opened,
        );
        let closed = count(|one| one.closed.sum());
        table.equal("closed = PostgreSQL's connections", closed, opened);
        table.equal(
            "handshakes = connections",
            count(|one| one.handshake.count()),
            opened,
        );
        // What becomes TLS later, if it does, is left out.
        let tls = count(|one| one.tls_handshake.count() + one.tls_failures.sum());
        table.equal("TLS handshakes = 0", tls, 0);
        if skip::kernel() >= (6, 12) {
            let turns = number(transactions + GREETING * connections);
            let first_bytes = count(|one| one.first_byte.count());
            table.equal("first bytes = round trips", first_bytes, turns);
        }
    }
    if skip::kernel() >= (6, 12) {
        let used = truth::sum(&snapshot, "server", |one| one.accept_queue.count());
        table.equal(
            "in the accept queue = connections",
            used,
            number(connections),
        );
    }
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    daemon.stop();
}

#[test]
fn postgresql_with_long_connections() {
    under_pgbench("postgresql_with_long_connections", 500, false);
}

#[test]
fn postgresql_with_a_connection_for_each_transaction() {
    under_pgbench(
        "postgresql_with_a_connection_for_each_transaction",
        100,
        true,
    );
}
