//! Segments sent again for each cause in turn, provoked one by one, so that the
//! counters of the kernel which a load can only bound are equal here.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
};

use probe_tests::{
    daemon::Daemon,
    load::{self, on_port},
    netns::{Netns, Pair},
    skip,
    snmp::Counters,
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::{Snapshot, TcpSeries};

const PORT: u16 = 8080;
/// Payload of a segment: more than any segment without data is long.
const SEGMENT: usize = 1000;

/// What is lost on the way of how many segments, and what the kernel does about
/// it: the least number of segments sent again, by cause.
struct Case {
    name: &'static str,
    segments: usize,
    /// A match of nftables.
    lost: &'static str,
    sent_again: &'static [(&'static str, i64)],
}

const CASES: [Case; 5] = [
    Case {
        name: "the last segment",
        segments: 1,
        lost: "numgen inc mod 100 < 1",
        sent_again: &[("tail_loss_probe", 1)],
    },
    Case {
        name: "and its probe",
        segments: 1,
        lost: "numgen inc mod 100 < 2",
        sent_again: &[("tail_loss_probe", 1), ("timeout", 1)],
    },
    Case {
        name: "and what comes after that",
        segments: 1,
        lost: "numgen inc mod 100 < 3",
        sent_again: &[("tail_loss_probe", 1), ("timeout", 2)],
    },
    Case {
        name: "one in the middle",
        segments: 10,
        lost: "numgen inc mod 100 == 2",
        sent_again: &[("fast", 1)],
    },
    Case {
        name: "all, and the probe",
        segments: 5,
        lost: "numgen inc mod 100 < 6",
        sent_again: &[("tail_loss_probe", 1), ("timeout", 1), ("other", 4)],
    },
];

/// Sends segments one by one to an end that is to lose some of them.
fn send(case: &Case, from: &mut TcpStream, to: &mut TcpStream, receiver: &Netns) {
    receiver.nft(&format!(
        "table inet ep {{
            chain pre {{ type filter hook prerouting priority raw;
                meta l4proto tcp meta length > {SEGMENT} {} drop
            }};
        }}",
        case.lost
    ));
    from.set_nodelay(true).expect("no delay");
    for _ in 0..case.segments {
        from.write_all(&[7; SEGMENT]).expect("they are sent");
    }
    to.read_exact(&mut vec![0; case.segments * SEGMENT])
        .expect("they arrive in the end");
    receiver.nft("delete table inet ep");
}

/// Segments that a side has sent again for one cause.
fn sent_again(snapshot: &Snapshot, side: &str, cause: &str) -> u64 {
    truth::sum(snapshot, side, |one: &TcpSeries| one.retransmits[cause])
}

#[test]
fn each_cause_to_send_again_is_the_kernels() {
    let Some(_turn) = skip::turn("each_cause_to_send_again_is_the_kernels") else {
        return;
    };
    // One emulated processor is too slow for several daemons that start at once.
    if skip::is_emulated() {
        return CASES.iter().for_each(provoke);
    }
    // Most of the time is waiting.
    thread::scope(|scope| {
        for case in &CASES {
            scope.spawn(|| provoke(case));
        }
    });
}

fn provoke(case: &Case) {
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.both().map(Netns::counters);
    for target in on_port(&Pair::SERVERS, PORT) {
        let (_, mut client, mut server) = pair.connect(target);
        send(case, &mut client, &mut server, &pair.server);
        send(case, &mut server, &mut client, &pair.client);
    }
    load::quiet(&pair.both(), 0);
    let snapshot = daemon.snapshot();
    println!("\n{}\n{}", case.name, truth::lost(&snapshot));
    let mut table = Table::default();
    for (n, netns) in pair.both().into_iter().enumerate() {
        let theirs = &netns.counters() - &before[n];
        let side = match netns.name() == pair.server.name() {
            true => "server",
            false => "client",
        };
        compare(&mut table, case, &snapshot, side, &theirs);
    }
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    daemon.stop();
}

fn compare(table: &mut Table, case: &Case, snapshot: &Snapshot, side: &str, theirs: &Counters) {
    let ours = |cause: &str| sent_again(snapshot, side, cause);
    let ext = |name: &str| theirs.get(&format!("TcpExt.{name}"));
    // Two families.
    for (cause, least) in case.sent_again {
        table.at_least("provoked", ours(cause), 2 * least);
    }
    for (cause, name) in [
        ("timeout", "TCPTimeouts"),
        ("tail_loss_probe", "TCPLossProbes"),
        ("fast", "TCPFastRetrans"),
        ("other", "TCPSlowStartRetrans"),
    ] {
        table.equal(name, ours(cause), ext(name));
    }
    let all = truth::sum(snapshot, side, |one| one.retransmits.sum());
    table.equal("RetransSegs", all, theirs.get("Tcp.RetransSegs"));
}
