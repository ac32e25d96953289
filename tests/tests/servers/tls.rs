//! nginx with TLS under wrk.

use std::collections::BTreeMap;

use probe_tests::{
    daemon::Daemon,
    load,
    netns::Pair,
    programs::{self, Certificate, Nginx, wrk},
    skip,
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::{Snapshot, TcpSeries};

const CONNECTIONS: u32 = 16;
/// Requests on each at the least, on a slow machine too.
const EACH: u64 = 2;

/// How long wrk loads a server; emulated processors make few handshakes a second.
fn seconds() -> u32 {
    if skip::is_emulated() { 15 } else { 2 }
}

/// Sum over the series of a side and a service.
pub fn sum(snapshot: &Snapshot, side: &str, port: u16, value: fn(&TcpSeries) -> u64) -> u64 {
    let svc = port.to_string();
    (snapshot.tcp.iter())
        .filter(|series| series.labels.side == side && series.labels.svc == svc)
        .map(value)
        .sum()
}

/// Servers on the ports given, each for one version of TLS.
pub fn nginx(pair: &Pair, program: &std::path::Path, made: &Certificate) -> Nginx {
    let server = |(version, port): (&str, u16)| {
        format!(
            "server {{ listen {address}:{port} ssl backlog=1024; ssl_protocols {version};\n\
             ssl_certificate {}; ssl_certificate_key {};\n\
             keepalive_requests 1000000;\n\
             location / {{ return 200 \"edgeprobe\\n\"; }} }}\n",
            made.certificate.display(),
            made.key.display(),
            address = Pair::SERVER_V4,
        )
    };
    Nginx::start(&pair.server, program, &VERSIONS.map(server).concat())
}

/// What is served, and where.
pub const VERSIONS: [(&str, u16); 2] = [("TLSv1.2", 8442), ("TLSv1.3", 8443)];

/// Handshakes and requests are turns of who speaks: on each connection, the
/// least and the most that there can be beside one for each request.
///
/// The ClientHello is answered: one turn. With TLS 1.2 the client's key and
/// Finished are too, unless it takes up an earlier session. With TLS 1.3 the
/// client's Finished is answered with session tickets, before its first request
/// has come or after: one turn or none. A connection may end with a
/// `close_notify` of the client that is answered.
fn turns_beside_requests(version: &str, resumed: bool) -> [u64; 2] {
    match (version, resumed) {
        ("TLSv1.2", false) => [2, 3],
        ("TLSv1.2", true) => [1, 2],
        _ => [1, 3],
    }
}

fn under_wrk(test: &str, close: bool) {
    let Some(_turn) = skip::turn(test) else {
        return;
    };
    let (Some(program), Some(openssl), Some(_)) = (
        skip::tool(test, "nginx"),
        skip::tool(test, "openssl"),
        skip::tool(test, "wrk"),
    ) else {
        return;
    };
    let pair = Pair::new();
    pair.client.sysctl("ipv4/ip_local_port_range", "1024 65535");
    let folder = programs::folder();
    let made = Certificate::make(&openssl, folder.path());
    let nginx = nginx(&pair, &program, &made);
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();
    let mut read = BTreeMap::new();
    for (_, port) in VERSIONS {
        let url = format!("https://{}:{port}/", Pair::SERVER_V4);
        let answers = wrk(&pair.client, CONNECTIONS, seconds(), close, &url);
        read.insert(port, answers);
    }
    let theirs = &load::quiet(&pair.both(), 0) - &before;
    let snapshot = daemon.snapshot();

    let mut table = Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    let all = |value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, "server", value);
    let accepted = i64::try_from(nginx.accepted()).expect("few connections");
    table.equal(
        "opened = accepted by nginx",
        all(|one| one.opened),
        accepted,
    );
    table.equal(
        "closed = accepted by nginx",
        all(|one| one.closed.sum()),
        accepted,
    );
    table.equal(
        "in the accept queue = accepted by nginx",
        all(|one| one.accept_queue.count()),
        accepted,
    );
    let answers = nginx.answers();
    let has_payload = skip::kernel() >= (6, 12);
    for (version, port) in VERSIONS {
        let answers: Vec<_> = (answers.iter())
            .filter(|answer| answer.port == port)
            .cloned()
            .collect();
        // What wrk cuts at its end may be answered or not, read or not.
        let cut = u64::from(CONNECTIONS);
        let requests = answers.len() as u64;
        let known = programs::connections(&answers);
        let resumed: Vec<_> = (answers.iter())
            .filter(|answer| answer.resumed)
            .cloned()
            .collect();
        let resumed = programs::connections(&resumed);
        println!("{version}: {requests} answers on {known} connections, {resumed} resumed");
        assert!(answers.iter().all(|answer| answer.status == 200));
        let seen_by_wrk = read[&port];
        assert!(seen_by_wrk >= EACH * cut, "{seen_by_wrk} answers");
        assert!(seen_by_wrk <= requests && requests <= seen_by_wrk + cut);
        if close {
            assert_eq!(requests, known, "one request for each connection");
        } else {
            assert_eq!(known, cut, "a few connections");
        }
        if !has_payload {
            for side in ["server", "client"] {
                let seen = sum(&snapshot, side, port, |one| {
                    one.tls_handshake.count() + one.tls_failures.sum()
                });
                assert_eq!(seen, 0, "{side}: nothing is made up");
            }
            continue;
        }
        let [mut least, mut most] = [requests; 2];
        for (count, resumed) in [(known - resumed, false), (resumed, true)] {
            let [low, high] = turns_beside_requests(version, resumed);
            least += count * low;
            most += count * high;
        }
        for side in ["server", "client"] {
            let count = |value| sum(&snapshot, side, port, value);
            let first_bytes = count(|one| one.first_byte.count());
            let handshakes = count(|one| one.tls_handshake.count());
            let failures = count(|one| one.tls_failures.sum());
            println!("{side}: {first_bytes} first bytes, {handshakes} handshakes");
            let number = |count: u64| i64::try_from(count).expect("few of them");
            table.at_least(
                "first bytes, at the least",
                first_bytes,
                number(least - cut),
            );
            table.at_most(
                "first bytes, at the most",
                first_bytes,
                number(most + 3 * cut),
            );
            table.at_least(
                "handshakes >= connections answered",
                handshakes,
                number(known),
            );
            table.at_most(
                "handshakes <= connections + cut",
                handshakes,
                number(known + cut),
            );
            let opened = count(|one| one.opened);
            table.at_most(
                "handshakes and failures <= opened",
                handshakes + failures,
                number(opened),
            );
            table.at_most("failures <= cut", failures, number(cut));
        }
    }
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    daemon.stop();
    if !has_payload {
        skip::impossible(
            test,
            "this kernel shows no payload: the connections hold, TLS is not seen",
        );
    }
}

#[test]
fn nginx_with_tls_and_short_connections() {
    under_wrk("nginx_with_tls_and_short_connections", true);
}

#[test]
fn nginx_with_tls_and_long_connections() {
    under_wrk("nginx_with_tls_and_long_connections", false);
}
