//! Rows: those that processors ask for at the same moment are given once, and none goes
//! missing.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Barrier,
    thread,
};

use probe_tests::{daemon::Daemon, netns::Netns, poll, skip, truth};
use probe_user::model::Snapshot;

/// Ports at which all threads arrive at once: each has a row for each side.
const RACES: u32 = 400;
/// Ports after that, one after the other: they take the rows that were left over.
const AFTER: u16 = 40;

/// Entries in use of the map of rows: as many for each row as it has shards.
fn entries(snapshot: &Snapshot) -> u64 {
    let mut maps = snapshot.maps.iter();
    let rows = maps.find(|map| map.map == "ROWS");
    rows.expect("the map of rows").entries
}

/// Rows that only tell whose dropped packets were: of a side and service without a
/// connection.
fn rows_of_drops(snapshot: &Snapshot) -> usize {
    let series: BTreeSet<_> = (snapshot.tcp.iter())
        .map(|one| (&one.labels.side, &one.labels.svc))
        .collect();
    let drops: BTreeSet<_> = (snapshot.drops.iter())
        .map(|drop| (&drop.side, &drop.svc))
        .filter(|(side, _)| !matches!(side.as_str(), "none" | "other"))
        .collect();
    drops.difference(&series).count()
}

#[test]
fn rows_that_are_asked_for_at_once_are_given_once() {
    const TEST: &str = "rows_that_are_asked_for_at_once_are_given_once";
    const THREADS: usize = 4;
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let netns = Netns::new();
    let daemon = Daemon::start(&[&netns], &["--rows", "2000"]);
    // The overflow row alone.
    let shards = entries(&daemon.snapshot());
    let races = u16::try_from(skip::scaled(RACES)).expect("a few ports");
    let ports = 10_000..10_000 + races + AFTER;
    let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    netns.run(|| {
        let listeners: Vec<_> = ports
            .clone()
            .map(|port| TcpListener::bind(address(port)).expect("a port"))
            .collect();
        let together = Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for port in ports.clone().take(races.into()) {
                        together.wait();
                        drop(TcpStream::connect(address(port)).expect("a connection"));
                    }
                });
            }
        });
        for port in ports.clone().skip(races.into()) {
            drop(TcpStream::connect(address(port)).expect("a connection"));
        }
        drop(listeners);
    });
    let ends = 2 * (THREADS as u64 * u64::from(races) + u64::from(AFTER));
    let snapshot = poll::until("all are closed", || {
        let snapshot = daemon.snapshot();
        let closed = truth::sum(&snapshot, "", |one| one.closed.sum());
        (closed == ends).then_some(snapshot)
    });
    assert_eq!(truth::sum(&snapshot, "", |one| one.opened), ends);
    assert_eq!(snapshot.tcp.len(), 2 * ports.len(), "a row for each side");
    let rows = snapshot.tcp.len() + rows_of_drops(&snapshot);
    assert_eq!(
        entries(&snapshot),
        shards * (rows as u64 + 1),
        "a row was taken and nobody has it: {:?}",
        truth::lost(&snapshot)
    );
    daemon.stop();
}
