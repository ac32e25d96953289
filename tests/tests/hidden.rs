//! Events that the kernel hides from a program. What they should have told is made up
//! for by later ones. The kernel alone decides when it hides one, so here the program is
//! not attached at all.

use std::net::SocketAddr;

use probe_tests::{
    daemon::Daemon,
    load::{self, Clients, Server, on_port},
    netns::Pair,
    poll, refuse, skip,
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::Snapshot;

const PORT: u16 = 8080;
const EACH: u32 = 20;

/// A daemon that leaves out programs.
fn without(pair: &Pair, programs: &[&str]) -> Daemon {
    let arguments = programs.iter().flat_map(|name| ["--leave-out", name]);
    let arguments: Vec<&str> = arguments.collect();
    let daemon = Daemon::start(&pair.both(), &arguments);
    let snapshot = daemon.snapshot();
    for name in programs {
        let mut all = snapshot.programs.iter();
        let left_out = all.find(|one| one.program == *name);
        assert!(left_out.is_some_and(|one| !one.attached), "{name} runs");
    }
    daemon
}

/// A server's socket whose every event was hidden, but that it goes, was opened and
/// closed. Of clients this cannot happen: a process sends the SYN, and interrupts nothing.
#[test]
fn a_server_of_which_nothing_was_seen_counts_as_opened_and_closed() {
    const TEST: &str = "a_server_of_which_nothing_was_seen_counts_as_opened_and_closed";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if skip::kernel() >= (7, 0) {
        skip::impossible(
            TEST,
            "this kernel preempts programs: replicas take the events",
        );
        return;
    }
    let pair = Pair::new();
    let targets = on_port(&Pair::SERVERS, PORT);
    let server = Server::start(&pair.server, &targets, &[]);
    // Those that make an entry, and leave no way to know but the socket.
    let daemon = without(&pair, &["sock_set_state", "tcp_probe", "tcp_retransmit"]);
    let witness = Witness::start();
    let before = pair.server.counters();
    let clients = Clients {
        connections: skip::scaled(2_000),
        threads: 4,
        targets,
    };
    let totals = clients.run(&pair.client);
    load::quiet(&pair.both(), 0);
    let theirs = &pair.server.counters() - &before;
    let passive = theirs.get("Tcp.PassiveOpens");
    assert_eq!(
        passive, totals.connections as i64,
        "what the client has made"
    );
    let snapshot = daemon.snapshot();
    let of_server =
        |value: fn(&probe_user::model::TcpSeries) -> u64| truth::sum(&snapshot, "server", value);
    let mut table = Table::default();
    table.equal(
        "opened = PassiveOpens",
        of_server(|one| one.opened),
        passive,
    );
    table.equal(
        "closed = PassiveOpens",
        of_server(|one| one.closed.sum()),
        passive,
    );
    table.equal("open = CurrEstab", of_server(|one| one.open), 0);
    let received = of_server(|one| one.received_bytes);
    let sent = totals.sent as i64;
    table.equal_bytes("received", received, sent, load::MOST_BYTES);
    table.allow(witness.hidden());
    table.check();
    daemon.stop();
    server.stop();
}

/// SYNs that were sent again, and failures, of clients.
fn told(snapshot: &Snapshot) -> [u64; 3] {
    [
        truth::sum(snapshot, "client", |one| one.retransmits["syn"]),
        truth::sum(snapshot, "client", |one| one.opened),
        truth::sum(snapshot, "client", |one| one.connect_failures["timeout"]),
    ]
}

/// A client's SYNs that are sent again unseen count when the connection opens, or fails.
#[test]
fn syns_that_are_sent_again_unseen_count_in_the_end() {
    const TEST: &str = "syns_that_are_sent_again_unseen_count_in_the_end";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    let targets: Vec<SocketAddr> = on_port(&Pair::SERVERS, PORT);
    let server = Server::start(&pair.server, &targets, &[]);
    let daemon = without(&pair, &["tcp_retransmit"]);
    let witness = Witness::start();
    let before = pair.client.counters();
    let sent_again = || (&pair.client.counters() - &before).get("TcpExt.TCPSynRetrans");
    let ends = u64::from(EACH) * targets.len() as u64;
    let mut table = Table::default();

    pair.server.nft(
        "table inet ep { chain pre { type filter hook prerouting priority raw; tcp flags syn drop; }; }",
    );
    for &target in &targets {
        refuse::failing(&pair.client, target, EACH, Some(1), libc::ETIMEDOUT);
    }
    let snapshot = poll::until("all have failed", || {
        let snapshot = daemon.snapshot();
        (told(&snapshot)[2] == ends).then_some(snapshot)
    });
    let at_failure = sent_again();
    assert!(at_failure >= ends as i64, "no SYN was sent again");
    let [syns, opened, _] = told(&snapshot);
    assert_eq!(opened, 0);
    table.equal("SYNs of failures = TCPSynRetrans", syns, at_failure);

    let waiting: Vec<_> = (targets.iter())
        .flat_map(|&target| refuse::waiting(&pair.client, target, EACH, 6))
        .collect();
    poll::until("all SYNs are sent again", || {
        (sent_again() >= at_failure + ends as i64).then_some(())
    });
    pair.server.nft("delete table inet ep\n");
    let snapshot = poll::until("all are open", || {
        let snapshot = daemon.snapshot();
        (told(&snapshot)[1] == ends).then_some(snapshot)
    });
    let [syns, ..] = told(&snapshot);
    table.equal("all SYNs = TCPSynRetrans", syns, sent_again());
    table.allow(witness.hidden());
    table.check();
    drop(waiting);
    daemon.stop();
    server.stop();
}
