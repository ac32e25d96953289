//! How connections are to end and what is to be counted, and the comparison.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use probe_tests::{
    daemon::Daemon,
    netns::Pair,
    poll, skip,
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::Snapshot;

use crate::{
    connection::{End, TestedConnection},
    scenarios::Scenario,
};

/// How one end of a connection ends, the reset that it sends, and whether that was
/// straight from ESTABLISHED or CLOSE_WAIT.
#[derive(Clone, Copy)]
pub struct Ending(pub &'static str, pub Option<&'static str>, pub bool);

pub const FIN: Ending = Ending("fin", None, false);
/// A reset that meets an end which has not sent a FIN, and one which has.
pub const RECEIVED: Ending = Ending("reset_received", None, true);
pub const RECEIVED_LATE: Ending = Ending("reset_received", None, false);
/// `TCP_STATE` is what the kernel gives for no linger (`tcp.c:tcp_disconnect`).
pub const ABORTED: Ending = Ending("reset_sent", Some("TCP_STATE"), true);
/// Data that nobody can read.
pub const ON_DATA: Ending = Ending("reset_sent", Some("TCP_ABORT_ON_DATA"), false);

pub const fn unread_data(is_abort: bool) -> Ending {
    Ending("reset_sent", Some("TCP_ABORT_ON_CLOSE"), is_abort)
}

/// Side, port, and the reason of the end or direction and reason of a reset.
pub type Counts = BTreeMap<(String, String, String), u64>;

/// How often a scenario is tried that the kernel hides a part of.
const TRIES: usize = 10;

/// What is of none of these ports.
fn without(counts: &Counts, ports: &BTreeSet<u16>) -> Counts {
    let is_other = |port: &str| port.parse().is_ok_and(|port| !ports.contains(&port));
    let all = counts.iter().filter(|((_, port, _), _)| is_other(port));
    all.map(|(key, count)| (key.clone(), *count)).collect()
}

pub fn ends(snapshot: &Snapshot) -> Counts {
    let mut counts = Counts::new();
    for one in &snapshot.tcp {
        for (reason, count) in one.closed.iter().filter(|(_, count)| *count != 0) {
            let key = (
                one.labels.side.clone(),
                one.labels.svc.clone(),
                reason.to_owned(),
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

/// The snapshot that has as many ends as there are connections, those of some ports
/// left out.
pub fn once_ended(daemon: &Daemon, ended: &Counts, except: &BTreeSet<u16>) -> Snapshot {
    let total = |counts: &Counts| without(counts, except).values().sum::<u64>();
    poll::until("all connections have ended", || {
        let snapshot = daemon.snapshot();
        (total(&ends(&snapshot)) == total(ended)).then_some(snapshot)
    })
}

/// Where counts are not those that are wanted.
pub fn differences(what: &str, ours: &Counts, wanted: &Counts) -> Vec<String> {
    let keys: BTreeSet<_> = ours.keys().chain(wanted.keys()).collect();
    (keys.into_iter())
        .map(|key| (key, [ours, wanted].map(|counts| counts.get(key).copied())))
        .filter(|(_, [ours, wanted])| ours != wanted)
        .map(|(key, [ours, wanted])| format!("{what} {key:?}: {ours:?}, not {wanted:?}"))
        .collect()
}

/// Runs all scenarios with either end as the first, and compares. The kernel counts as
/// many resets, those of `killed` sockets, in `OutRsts` only.
pub fn go(scenarios: &[(&str, Scenario, Ending, Ending)], killed: u64) {
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();
    let tells_reasons = skip::kernel() >= (6, 10);
    let [mut ended, mut reset, mut abort] = [(); 3].map(|()| Counts::new());
    // Where the kernel hid something, which says nothing of the tool.
    let mut hidden = BTreeSet::new();
    let mut port = 9000;
    for (name, scenario, of_first, of_other) in scenarios {
        for first in [End::Client, End::Server] {
            let [client, server] = match first {
                End::Client => [of_first, of_other],
                End::Server => [of_other, of_first],
            };
            for _ in 0..TRIES {
                port += 1;
                let seen = witness.hidden();
                // One at a time: what another one starts would hold its sockets open
                // for a moment longer.
                for address in Pair::SERVERS {
                    let at = SocketAddr::new(address, port);
                    println!("{name}, {first:?} first, {at}");
                    let (connection, first, second) = TestedConnection::open(&pair, at, first);
                    scenario(&connection, first, second);
                }
                for (side, ending) in [("client", client), ("server", server)] {
                    let key = |what: &str| (side.to_owned(), port.to_string(), what.to_owned());
                    let &Ending(reason, sent, is_abort) = ending;
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
                if witness.hidden() == seen {
                    break;
                }
                hidden.insert(port);
            }
        }
    }
    assert!(
        hidden.len() < scenarios.len(),
        "the kernel hides too much: {hidden:?}"
    );
    let snapshot = once_ended(&daemon, &ended, &hidden);
    let wrong = [
        ("ends", ends(&snapshot), &ended),
        ("aborts", aborts(&snapshot), &abort),
        ("resets", resets(&snapshot), &reset),
    ]
    .map(|(what, ours, wanted)| {
        differences(what, &without(&ours, &hidden), &without(wanted, &hidden))
    })
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
            sent(&["TCP_ABORT_ON_DATA", "TCP_STATE"]) - killed,
            theirs.get("TcpExt.TCPAbortOnData"),
        );
        table.equal(
            "closed with data unread = TCPAbortOnClose",
            sent(&["TCP_ABORT_ON_CLOSE"]),
            theirs.get("TcpExt.TCPAbortOnClose"),
        );
    }
    table.allow(witness.hidden());
    table.check();
    daemon.stop();
}
