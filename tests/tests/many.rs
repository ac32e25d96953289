//! Many short connections to ten services at once: nothing is lost, and no map
//! grows.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use probe_tests::{
    daemon::Daemon,
    load::{self, Clients, Server, on_port},
    map_memory::{self, OpenMap},
    netns::Pair,
    skip::{self, scaled},
    truth::{self, Table},
    witness::Witness,
};
use probe_user::{
    config::DEFAULT_ROWS,
    model::{Snapshot, TcpSeries},
    serve::unix::{Request, client},
};

/// The maps that the daemon holds, by number.
type OpenMaps = BTreeMap<u32, OpenMap>;

const FETCH: Duration = Duration::from_secs(30);
/// Of the ten services.
const PORTS: std::ops::Range<u16> = 8080..8090;

/// Rows that the load takes at most: client and server of each service, and of
/// resets.
const MOST_ROWS: u64 = 2 * (PORTS.end - PORTS.start) as u64 + 4;

/// By so much a map may grow that takes entries when they are needed, a few for resets
/// and drops here.
const HASHED: u64 = 64 * 1024;

/// `maps` and `before` are as the kernel tells them.
#[track_caller]
fn does_not_grow(snapshot: &Snapshot, maps: &OpenMaps, before: &OpenMaps) {
    assert!(maps.keys().eq(before.keys()), "{maps:?}, {before:?} before");
    for (number, map) in maps {
        let most = before[number].bytes + if map.grows { HASHED } else { 0 };
        let bytes = map.bytes;
        assert!(bytes <= most, "map {number}: {bytes} bytes, at most {most}");
    }
    let rows = snapshot.maps.iter().find(|map| map.map == "ROWS");
    let rows = rows.expect("the rows are listed");
    let shards = rows.capacity / u64::from(DEFAULT_ROWS);
    assert!(shards > 0, "{rows:?}");
    assert!(rows.entries <= (MOST_ROWS + 1) * shards, "{rows:?}");
}

#[test]
fn many_short_connections_to_ten_services() {
    let Some(_turn) = skip::turn("many_short_connections_to_ten_services") else {
        return;
    };
    let pair = Pair::new();
    pair.client.sysctl("ipv4/ip_local_port_range", "1024 65535");
    let services: Vec<Vec<SocketAddr>> = PORTS.map(|port| on_port(&Pair::SERVERS, port)).collect();
    let targets = services.concat();
    let server = Server::start(&pair.server, &targets, &[]);
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    daemon.snapshot();
    let maps = || map_memory::of_process(daemon.process().pid());
    let first = maps();
    let before = pair.counters();
    let clients = Clients {
        connections: scaled(200_000),
        threads: 64,
        targets: targets.clone(),
    };
    let (begun, done) = (Instant::now(), AtomicBool::new(false));
    let totals = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                // Emulated processors may leave the daemon no turn for long.
                match client::fetch(&daemon.socket(), Request::default(), FETCH) {
                    Ok(snapshot) => does_not_grow(&snapshot, &maps(), &first),
                    Err(error) => assert!(skip::is_emulated(), "{error}"),
                }
                thread::sleep(Duration::from_millis(200));
            }
        });
        let totals = clients.run(&pair.client);
        done.store(true, Ordering::SeqCst);
        totals
    });
    println!(
        "{} connections in {:.1} s",
        totals.connections,
        begun.elapsed().as_secs_f64()
    );
    let theirs = &load::quiet(&pair.both(), 0) - &before;
    let snapshot = daemon.snapshot();
    does_not_grow(&snapshot, &maps(), &first);
    // To list the connections all sockets are visited.
    assert!(
        daemon.connections().connections.is_empty(),
        "all are closed"
    );
    let visited = daemon.snapshot();
    let open = visited.maps.iter().find(|map| map.map == "CONNS");
    assert_eq!(open.map(|map| map.entries), Some(0), "no slot is taken");

    let mut table = Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    let served = server.totals();
    truth::against_programs(&mut table, &snapshot, totals, served);
    let number = |count: u64| i64::try_from(count).expect("few enough");
    for (side, made) in [
        ("client", totals.connections),
        ("server", served.connections),
    ] {
        let sum = |value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, side, value);
        for (what, ours) in [
            ("opened", sum(|one| one.opened)),
            ("closed", sum(|one| one.closed.sum())),
            ("durations", sum(|one| one.duration.count())),
            ("handshakes", sum(|one| one.handshake.count())),
        ] {
            table.equal(what, ours, number(made));
        }
    }
    let accepted = truth::sum(&snapshot, "server", |one| one.accept_queue.count());
    table.equal("accepted", accepted, number(served.connections));
    if skip::kernel() >= (6, 12) {
        for (side, answered) in ["server", "client"].into_iter().zip(clients.answered()) {
            let ours = truth::sum(&snapshot, side, |one| one.first_byte.count());
            table.equal("first bytes = answers", ours, number(answered));
        }
    }
    // Each service has its share.
    for port in PORTS {
        let svc = port.to_string();
        let opened = (snapshot.tcp.iter())
            .filter(|one| one.labels.svc == svc && one.labels.side == "server")
            .map(|one| one.opened)
            .sum();
        let each = number(totals.connections) / i64::from(PORTS.end - PORTS.start);
        table.at_least("opened at a service", opened, each - 2);
        table.at_most("opened at a service", opened, each + 2);
    }
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    daemon.stop();
    server.stop();
}
