//! The table of truth: 20 000 short connections with failures and loss, and
//! every number that the kernel or the programs themselves can confirm.

use std::net::SocketAddr;

use probe_tests::{
    daemon::Daemon,
    load::{self, Clients, Server, Totals, on_port},
    netns::Pair,
    refuse,
    skip::{self, scaled},
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::TcpSeries;

const PLAIN: u16 = 8080;
const OTHER: u16 = 8081;
const MPTCP: u16 = 8082;
const CLOSED: u16 = 9;
const BLACK_HOLE: u16 = 10;

/// Ends of connections that are kept open to the end: two for each.
const HELD: usize = 10;

/// Rules of the receivers: one packet of 50 is lost, and some ports have their
/// own fate.
const RULES: &str = "table inet ep {
    chain pre {
        type filter hook prerouting priority raw;
        tcp dport 10 drop
        LOSS
    }
}";

fn all(ports: &[u16]) -> Vec<SocketAddr> {
    (ports.iter())
        .flat_map(|port| on_port(&Pair::SERVERS, *port))
        .collect()
}

/// Everything at once; with loss, or without.
fn everything(test: &str, loss: Option<u32>) {
    let Some(_turn) = skip::turn(test) else {
        return;
    };
    let pair = Pair::new();
    // Ports above are for those that are used up and for half-open connections.
    pair.client.sysctl("ipv4/ip_local_port_range", "1024 61999");
    let lose = loss.map_or(String::new(), |one_of| {
        format!("meta l4proto tcp numgen random mod {one_of} == 0 drop")
    });
    for netns in pair.both() {
        netns.nft(&RULES.replace("LOSS", &lose));
    }
    let server = Server::start(&pair.server, &all(&[PLAIN, OTHER]), &all(&[MPTCP]));
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();

    let ports = all(&[PLAIN, OTHER, MPTCP]);
    let clients = Clients {
        connections: scaled(20_000),
        threads: 64,
        targets: ports.clone(),
    };
    let (some, few) = (scaled(500), scaled(100));
    let (totals, held, held_totals) = std::thread::scope(|scope| {
        scope.spawn(|| {
            for address in Pair::SERVERS {
                let at = |port| SocketAddr::new(address, port);
                refuse::failing(&pair.client, at(CLOSED), some, None, libc::ECONNREFUSED);
                refuse::cancelled(&pair.client, at(BLACK_HOLE), some);
                refuse::failing(&pair.client, at(BLACK_HOLE), few, Some(1), libc::ETIMEDOUT);
            }
            for nobody in on_port(&Pair::NOBODY, PLAIN) {
                refuse::failing(&pair.client, nobody, few, None, libc::EHOSTUNREACH);
            }
        });
        scope.spawn(|| {
            let half = some as u16;
            let at = |address| SocketAddr::new(address, PLAIN);
            refuse::half_open(&pair.client, Pair::CLIENT_V4, at(Pair::SERVER_V4), half);
            refuse::half_open(&pair.client, Pair::CLIENT_V6, at(Pair::SERVER_V6), half);
        });
        let totals = clients.run(&pair.client);
        let (held, held_totals) = load::hold(&pair.client, &ports, HELD);
        (totals, held, held_totals)
    });
    let stuck: Vec<_> = (ports.iter())
        .flat_map(|target| refuse::ports_used_up(&pair.client, *target, few))
        .collect();

    let open = held.len() + stuck.len();
    let after = load::quiet(&pair.both(), 2 * open);

    let client = Totals {
        connections: totals.connections + held_totals.connections + stuck.len() as u64,
        sent: totals.sent + held_totals.sent,
        received: totals.received + held_totals.received,
    };
    // What open connections sent shows when they are visited.
    let sent = |snapshot: &_| truth::sum(snapshot, "client", |one| one.sent_bytes);
    let snapshot = daemon.visited(|snapshot| sent(snapshot) >= client.sent);
    let mut table = Table::default();
    let theirs = &after - &before;
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    truth::against_programs(&mut table, &snapshot, client, server.totals());
    table.equal(
        "opened, by the client's own count",
        truth::sum(&snapshot, "client", |one| one.opened),
        client.connections as i64,
    );
    for (reason, count) in [
        ("refused", 2 * some),
        ("timeout", 2 * few),
        ("unreachable", 2 * few),
        ("cancelled", 2 * some),
        ("local", few * ports.len() as u32),
    ] {
        let ours = truth::sum(&snapshot, "client", |one| one.connect_failures[reason]);
        table.equal(reason, ours, i64::from(count));
    }
    let is_new = skip::kernel() >= (6, 11);
    let reset = truth::sum(&snapshot, "server", |one| one.connect_failures["reset"]);
    let half_open = if is_new { i64::from(2 * some) } else { 0 };
    // A lost SYN is not sent again by hand.
    match loss {
        None => table.equal("half-open ones reset", reset, half_open),
        Some(_) => table.at_most("half-open ones reset", reset, half_open),
    }
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();

    let number = held.len();
    drop((held, stuck));
    server.release(number);
    load::quiet(&pair.both(), 0);
    let snapshot = daemon.snapshot();
    let sum = |value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, "", value);
    let opened = sum(|one| one.opened) as i64;
    let mut table = Table::default();
    table.equal("open = 0", sum(|one| one.open), 0);
    table.equal("closed = opened", sum(|one| one.closed.sum()), opened);
    table.equal(
        "durations = opened",
        sum(|one| one.duration.count()),
        opened,
    );
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    daemon.stop();
    server.stop();
}

#[test]
fn every_number_holds_at_full_speed_without_loss() {
    everything("every_number_holds_at_full_speed_without_loss", None);
}

#[test]
fn every_number_holds_with_one_packet_of_fifty_lost() {
    everything("every_number_holds_with_one_packet_of_fifty_lost", Some(50));
}
