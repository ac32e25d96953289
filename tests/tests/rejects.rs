//! Connections that come to nothing: what a firewall, a router or the program's own
//! patience does to them, and what it is called.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use probe_tests::{
    daemon::Daemon,
    netns::{Netns, Pair},
    poll, refuse, skip,
    truth::Table,
};
use probe_user::model::Snapshot;

/// What a rule says to a SYN, by port: over IPv4 and over IPv6. The numbers of the
/// errors differ, and of some there is one family only.
const REJECTIONS: [(u16, &str, &str); 9] = [
    (9001, "tcp reset", "tcp reset"),
    (
        9002,
        "icmp type port-unreachable",
        "icmpv6 type port-unreachable",
    ),
    (
        9003,
        "icmp type admin-prohibited",
        "icmpv6 type admin-prohibited",
    ),
    (
        9004,
        "icmp type host-unreachable",
        "icmpv6 type addr-unreachable",
    ),
    (9005, "icmp type net-unreachable", "icmpv6 type no-route"),
    (
        9006,
        "icmp type prot-unreachable",
        "icmpv6 type policy-fail",
    ),
    (9007, "icmp type net-prohibited", "icmpv6 type reject-route"),
    (9008, "icmp type host-prohibited", "icmpv6 type policy-fail"),
    (
        9009,
        "icmp type admin-prohibited",
        "icmpv6 type reject-route",
    ),
];

fn reject(netns: &Netns, hook: &str) {
    for (key, value) in [
        ("ipv4/icmp_ratelimit", 0),
        ("ipv6/icmp/ratelimit", 0),
        ("ipv4/icmp_msgs_per_sec", 100_000),
    ] {
        // One that this kernel has not for a namespace is the host's.
        if netns.run(|| std::path::Path::new("/proc/sys/net").join(key).exists()) {
            netns.sysctl(key, value);
        }
    }
    let rules = REJECTIONS.map(|(port, v4, v6)| {
        format!(
            "meta nfproto ipv4 tcp dport {port} reject with {v4}\n\
             meta nfproto ipv6 tcp dport {port} reject with {v6}\n"
        )
    });
    netns.nft(&format!(
        "table inet ep {{ chain c {{ type filter hook {hook} priority 0;\n{} }}; }}",
        rules.concat()
    ));
}

/// What a client's failure is to be called when the program got this error.
fn name(errno: i32) -> &'static str {
    match errno {
        libc::ECONNREFUSED => "refused",
        libc::ENETUNREACH
        | libc::EHOSTUNREACH
        | libc::EACCES
        | libc::ENOPROTOOPT
        | libc::ENONET
        | libc::EHOSTDOWN => "unreachable",
        other => panic!("no firewall says {other}"),
    }
}

type Failures = BTreeMap<(String, &'static str), u64>;

fn failures(snapshot: &Snapshot) -> Failures {
    let mut all = Failures::new();
    for one in snapshot
        .tcp
        .iter()
        .filter(|one| one.labels.side == "client")
    {
        for (reason, count) in one.connect_failures.iter().filter(|(_, count)| *count != 0) {
            *all.entry((one.labels.svc.clone(), reason)).or_default() += count;
        }
    }
    all
}

/// Waits for as many failures.
fn once_failed(daemon: &Daemon, count: u64) -> Failures {
    poll::until("all have failed", || {
        let failures = failures(&daemon.snapshot());
        (failures.values().sum::<u64>() >= count).then_some(failures)
    })
}

fn all_targets() -> impl Iterator<Item = SocketAddr> {
    let ports = REJECTIONS.map(|(port, ..)| port);
    let of_port = |port| Pair::SERVERS.map(|address: IpAddr| SocketAddr::new(address, port));
    ports.into_iter().flat_map(of_port)
}

#[test]
fn a_rejection_is_called_what_the_waiting_program_got() {
    let Some(_turn) = skip::turn("a_rejection_is_called_what_the_waiting_program_got") else {
        return;
    };
    let pair = Pair::new();
    reject(&pair.server, "input");
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.client.counters();
    let mut wanted = Failures::new();
    let mut made = 0;
    thread::scope(|scope| {
        let tries: Vec<_> = all_targets()
            .map(|at| {
                let pair = &pair;
                scope.spawn(move || {
                    let result = pair.client.run(|| TcpStream::connect(at));
                    let error = result.expect_err("it is rejected");
                    (
                        at.port(),
                        error.raw_os_error().expect("an error of the kernel"),
                    )
                })
            })
            .collect();
        for one in tries {
            let (port, errno) = one.join().expect("an outcome");
            *wanted.entry((port.to_string(), name(errno))).or_default() += 1;
            made += 1;
        }
    });
    let ours = once_failed(&daemon, made);
    let theirs = &pair.client.counters() - &before;
    assert_eq!(ours, wanted);
    let mut table = Table::default();
    table.equal(
        "failed = AttemptFails",
        ours.values().sum(),
        theirs.get("Tcp.AttemptFails"),
    );
    table.check();
    daemon.stop();
}

/// An ICMP error that comes while `connect()` still holds the socket does not end the
/// handshake, but the program is told of it and closes. The kernel has not counted a
/// failure then.
#[test]
fn a_rejection_is_called_what_the_program_was_told() {
    let Some(_turn) = skip::turn("a_rejection_is_called_what_the_program_was_told") else {
        return;
    };
    for hook in ["input", "output"] {
        let pair = Pair::new();
        let netns = match hook {
            "input" => &pair.server,
            _ => &pair.client,
        };
        reject(netns, hook);
        let daemon = Daemon::start(&pair.both(), &[]);
        let before = pair.client.counters();
        let mut wanted = Failures::new();
        let mut made = 0;
        for at in all_targets() {
            let errno = refuse::told(&pair.client, at);
            *wanted
                .entry((at.port().to_string(), name(errno)))
                .or_default() += 1;
            made += 1;
        }
        let ours = once_failed(&daemon, made);
        let theirs = &pair.client.counters() - &before;
        assert_eq!(ours, wanted, "{hook}");
        let mut table = Table::default();
        let failed = ours.values().sum();
        let counted = theirs.get("Tcp.AttemptFails");
        let dropped = theirs.get("TcpExt.LockDroppedIcmps");
        table.at_least("failed >= AttemptFails", failed, counted);
        table.at_most(
            "failed <= that and LockDroppedIcmps",
            failed,
            counted + dropped,
        );
        table.check();
        daemon.stop();
    }
}

/// A program's own patience: it ends before a SYN is sent again, after that, or not
/// before the kernel's.
#[test]
fn giving_up_is_told_by_what_had_been_tried() {
    const BLACK_HOLE: u16 = 10;
    const EACH: u32 = 20;
    let Some(_turn) = skip::turn("giving_up_is_told_by_what_had_been_tried") else {
        return;
    };
    let pair = Pair::new();
    pair.server
        .nft("table inet ep { chain pre { type filter hook prerouting priority raw; tcp dport 10 drop; }; }");
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.client.counters();
    for address in Pair::SERVERS {
        let at = SocketAddr::new(address, BLACK_HOLE);
        refuse::cancelled(&pair.client, at, EACH);
        let waiting = refuse::waiting(&pair.client, at, EACH, 6);
        let sent_again = || (&pair.client.counters() - &before).get("TcpExt.TCPSynRetrans");
        let until = sent_again() + i64::from(EACH);
        poll::until("all SYNs are sent again", || {
            (sent_again() >= until).then_some(())
        });
        thread::sleep(Duration::from_millis(50));
        drop(waiting);
        refuse::failing(&pair.client, at, EACH, Some(1), libc::ETIMEDOUT);
    }
    let each = 2 * u64::from(EACH);
    let ours = once_failed(&daemon, 3 * each);
    let port = || BLACK_HOLE.to_string();
    let wanted = ["cancelled", "no_answer", "timeout"].map(|reason| ((port(), reason), each));
    assert_eq!(ours, Failures::from(wanted));
    let theirs = &pair.client.counters() - &before;
    let mut table = Table::default();
    table.equal(
        "begun = ActiveOpens",
        3 * each,
        theirs.get("Tcp.ActiveOpens"),
    );
    table.equal(
        "timed out = AttemptFails",
        each,
        theirs.get("Tcp.AttemptFails"),
    );
    table.check();
    daemon.stop();
}
