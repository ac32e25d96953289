//! Each way in which a connection ends, at both ends: how it counts, which
//! resets go with it, and why.

mod connection;
mod counts;
mod scenarios;

use std::{collections::BTreeSet, net::SocketAddr};

use probe_tests::{
    daemon::Daemon,
    netns::Pair,
    skip,
    truth::{self, Table},
};

use connection::{End, TestedConnection};
use counts::{Counts, differences, ends, go, once_ended};
use scenarios::{IN_FIN_WAIT, KILLED, SCENARIOS, send, wait_for_fin};

#[test]
fn each_way_to_end_is_told_at_both_ends() {
    let Some(_turn) = skip::turn("each_way_to_end_is_told_at_both_ends") else {
        return;
    };
    go(&SCENARIOS, 0);
}

/// What has come in FIN_WAIT2, and what of it was read, tells nothing by itself of
/// who resets the connection.
#[test]
fn resets_in_fin_wait_are_told_apart() {
    let Some(_turn) = skip::turn("resets_in_fin_wait_are_told_apart") else {
        return;
    };
    go(&IN_FIN_WAIT, 0);
}

#[test]
fn a_connection_that_an_administrator_kills_is_reset() {
    const TEST: &str = "a_connection_that_an_administrator_kills_is_reset";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    let (_listener, client, _server) = pair.connect(SocketAddr::new(Pair::SERVER_V4, 9000));
    let filter = ["-K", "-Htn", "state", "connected", "dport = :9000"];
    pair.client.command("ss", &filter);
    let shown = pair.client.command("ss", &filter[1..]);
    drop(client);
    if !shown.is_empty() {
        skip::impossible(TEST, "this kernel closes no socket for another program");
        return;
    }
    go(&KILLED, 4);
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
                let (connection, first, second) = TestedConnection::open(&pair, at, first);
                drop(first);
                wait_for_fin(&second);
                connection.wait_for_fin_wait2();
                waits = connection.shown(connection.first).contains("timewait");
                let of_second = if waits {
                    send(&second);
                    connection.wait_for_reset_of(second);
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
    let snapshot = once_ended(&daemon, &ended, &BTreeSet::new());
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
