//! Two scrapers beside connections that come and go: no counter goes back, and
//! none is ahead of the kernel.

use std::{
    env,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use probe_tests::{
    daemon::{self, Daemon},
    flatten,
    load::{self, Clients, Server, on_port},
    netns::Pair,
    skip,
    truth::{self, Table},
    witness::Witness,
};

/// Connections whose child socket exists and which are not ESTABLISHED yet: at
/// most one for each processor.
const UNDER_WAY: i64 = 128;

fn churn(test: &str, lasting: Duration) {
    let Some(_turn) = skip::turn(test) else {
        return;
    };
    let pair = Pair::new();
    pair.client.sysctl("ipv4/ip_local_port_range", "1024 65535");
    let ports: Vec<_> = (8080..8084)
        .flat_map(|port| on_port(&Pair::SERVERS, port))
        .collect();
    let server = Server::start(&pair.server, &ports, &[]);
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();
    let done = AtomicBool::new(false);
    let clients = Clients {
        connections: 2_000,
        threads: 16,
        targets: ports,
    };
    let mut client = load::Totals::default();
    let scraped = thread::scope(|scope| {
        let scrapers: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| scrape(&daemon, &pair, &before, &done)))
            .collect();
        let end = Instant::now() + lasting;
        while Instant::now() < end && !scrapers.iter().any(thread::ScopedJoinHandle::is_finished) {
            let more = clients.run(&pair.client);
            client.connections += more.connections;
            client.sent += more.sent;
            client.received += more.received;
        }
        done.store(true, Ordering::SeqCst);
        let each = scrapers.into_iter().map(thread::ScopedJoinHandle::join);
        each.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .sum::<u32>()
    });
    // Two scrapers that see each snapshot, of which there is one in a second where the
    // machine has the time.
    let least = lasting.as_secs() as u32 / daemon::slowness();
    assert!(scraped >= least, "{scraped} snapshots are no proof");
    let after = &load::quiet(&pair.both(), 0) - &before;
    let snapshot = daemon.snapshot();
    let mut table = Table::default();
    truth::against_kernel(&mut table, &snapshot, &after, 0);
    truth::against_programs(&mut table, &snapshot, client, server.totals());
    let closed = truth::sum(&snapshot, "", |one| one.closed.sum());
    table.equal("closed = opened", closed, 2 * client.connections as i64);
    // Of a hidden retransmit the total tells, but not its cause.
    let hidden = witness.hidden();
    table.allow_in("retransmits other =", hidden);
    table.allow_in("retransmits fast =", hidden);
    table.check();
    println!(
        "{scraped} snapshots seen beside {} connections",
        client.connections
    );
    daemon.stop();
    server.stop();
}

/// Scrapes until told to stop; returns how many different snapshots it saw.
fn scrape(
    daemon: &Daemon,
    pair: &Pair,
    before: &probe_tests::snmp::Counters,
    done: &AtomicBool,
) -> u32 {
    let passive = || (&pair.server.counters() - before).get("Tcp.PassiveOpens");
    let mut last = Default::default();
    let mut last_time = 0.0;
    let mut seen = vec![(0.0, 0)];
    let mut scrapes = 0;
    while !done.load(Ordering::SeqCst) {
        let count = passive();
        seen.push((daemon::now(), count));
        let snapshot = daemon.latest();
        let most = passive();
        assert!(snapshot.timestamp_seconds >= last_time, "time goes back");
        scrapes += u32::from(snapshot.timestamp_seconds > last_time);
        last_time = snapshot.timestamp_seconds;
        let counters = flatten::counters(&snapshot);
        let back = flatten::shrunk(&last, &counters);
        assert!(back.is_empty(), "counters go back:\n{}", back.join("\n"));
        last = counters;

        let opened = truth::sum(&snapshot, "server", |one| one.opened) as i64;
        assert!(
            opened <= most,
            "{opened} opened, and the kernel counts {most}"
        );
        let begun = snapshot.timestamp_seconds - snapshot.duration_seconds;
        // The kernel's counter as it was when the snapshot had not begun.
        seen.retain(|(time, _)| *time > begun - 30.0 || *time == 0.0);
        let least = seen
            .iter()
            .filter(|(time, _)| *time <= begun)
            .map(|(_, count)| *count)
            .max();
        let least = least.unwrap_or_default() - UNDER_WAY;
        assert!(
            opened >= least,
            "{opened} opened, and the kernel counted {least} before"
        );
        let closed = truth::sum(&snapshot, "server", |one| one.closed.sum());
        assert!(closed <= most as u64, "{closed} closed of {most}");
    }
    scrapes
}

#[test]
fn no_counter_goes_back_or_jumps_under_churn() {
    churn(
        "no_counter_goes_back_or_jumps_under_churn",
        Duration::from_secs(10),
    );
}

#[test]
#[ignore = "takes ten minutes, or EP_CHURN_SECONDS"]
fn no_counter_goes_back_or_jumps_in_ten_minutes_of_churn() {
    let seconds = env::var("EP_CHURN_SECONDS").map_or(600, |text| {
        text.parse()
            .expect("EP_CHURN_SECONDS is a number of seconds")
    });
    churn(
        "no_counter_goes_back_or_jumps_in_ten_minutes_of_churn",
        Duration::from_secs(seconds),
    );
}
