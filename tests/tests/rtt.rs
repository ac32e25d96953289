//! Round-trip times on wires of known length.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use probe_tests::{
    daemon::Daemon,
    delay::{DelayLine, ONE_WAY, talk},
    load::{self, Clients, Server, on_port},
    netns::{DEVICE, Netns, Pair},
    options::set_tcp,
    poll,
    skip::{self, scaled},
    tcp_info::{smoothed_rtt, tcp_info},
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::{Histogram, Snapshot, TcpSeries};

const QUESTIONS: usize = 160;
const SIDES: [&str; 2] = ["client", "server"];

fn of_side(
    snapshot: &Snapshot,
    side: &str,
    histogram: impl Fn(&TcpSeries) -> &Histogram,
) -> Histogram {
    (snapshot.tcp.iter())
        .filter(|series| series.labels.side == side)
        .fold(Histogram::default(), |mut sum, series| {
            sum.add(histogram(series));
            sum
        })
}

#[track_caller]
fn quantile(histogram: &Histogram, quantile: f64) -> f64 {
    histogram.quantile(quantile).expect("observations")
}

#[track_caller]
fn within_five_percent(what: &str, ours: f64, known: f64) {
    println!("{what}: {ours:.6} s, known {known:.6} s");
    assert!(
        (ours / known - 1.0).abs() < 0.05,
        "{what}: {ours} s for {known} s"
    );
}

/// Sets what `netem` does to what leaves a namespace; `false` where this kernel
/// has none.
fn netem(netns: &Netns, what: &str) -> bool {
    let output = Command::new("tc")
        .args(["-n", netns.name(), "qdisc", "replace", "dev", DEVICE])
        .args(["root", "netem"])
        .args(what.split_whitespace())
        .output()
        .expect("tc is installed");
    output.status.success()
}

const NO_NETEM: &str = "this kernel has no netem";

#[test]
fn a_delay_line_shows_its_length() {
    const TEST: &str = "a_delay_line_shows_its_length";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if skip::is_emulated() {
        skip::impossible(
            TEST,
            "emulated processors are too slow for a wire in user space",
        );
        return;
    }
    let line = DelayLine::new(ONE_WAY);
    let [server, client] = line.both();
    let known = 2.0 * ONE_WAY.as_secs_f64();
    let daemon = Daemon::start(&[server, client], &[]);
    let rtts = talk(server, client, QUESTIONS);
    load::quiet(&[server, client], 0);
    let snapshot = daemon.snapshot();
    let info = rtts[rtts.len() / 2];
    within_five_percent("TCP_INFO of the client", info, known);
    let rtt = of_side(&snapshot, "client", |one| &one.rtt);
    let median = quantile(&rtt, 0.5);
    within_five_percent("RTT of the client", median, known);
    within_five_percent("RTT of the client against TCP_INFO", median, info);
    assert!(
        rtt.count() >= QUESTIONS as u64,
        "one sample for each answer: {}",
        rtt.count()
    );
    for side in SIDES {
        let handshake = of_side(&snapshot, side, |one| &one.handshake);
        within_five_percent(
            &format!("handshake of the {side}"),
            quantile(&handshake, 0.5),
            known,
        );
    }
    daemon.stop();
}

/// A wire of the server, and what runs over it.
struct Wire {
    /// What `netem` is told.
    netem: &'static str,
    /// The RTT that this makes.
    rtt: Duration,
    /// The port of its service.
    port: u16,
    /// Segments of an answer, all in flight at once.
    segments: usize,
}

const fn wire(netem: &'static str, rtt: u64, port: u16, segments: usize) -> Wire {
    Wire {
        netem,
        rtt: Duration::from_millis(rtt),
        port,
        segments,
    }
}

const MATRIX: [Wire; 5] = [
    wire("delay 5ms", 5, 8081, 1),
    wire("delay 20ms", 20, 8082, 1),
    wire("delay 80ms", 80, 8083, 1),
    wire("delay 20ms loss 1%", 20, 8084, 1),
    // One packet of twenty overtakes those that are held back; alone on its
    // connection it would overtake none.
    wire("delay 20ms reorder 5%", 20, 8085, 4),
];
/// Connections of each family, one after the other.
const CONNECTIONS: usize = 12;
/// Questions on each.
const EACH: usize = 10;

/// What the program itself measured, in seconds, sorted: a known quantity that
/// has the delays of a busy machine in it.
#[derive(Default)]
struct Measured {
    connects: Vec<f64>,
    answers: Vec<f64>,
}

impl Measured {
    fn add(&mut self, other: Self) {
        self.connects.extend(other.connects);
        self.answers.extend(other.answers);
        self.connects.sort_by(f64::total_cmp);
        self.answers.sort_by(f64::total_cmp);
    }
}

/// Quantile of numbers that are sorted.
fn part(sorted: &[f64], part: f64) -> f64 {
    sorted[(sorted.len() as f64 * part) as usize]
}

/// Asks and waits for the answer; returns how long that took in seconds.
fn ask(stream: &mut TcpStream, segments: usize) -> f64 {
    let begun = Instant::now();
    stream.write_all(&[0; 64]).expect("the server reads");
    for _ in 0..segments {
        stream.read_exact(&mut [0; 64]).expect("the server writes");
    }
    begun.elapsed().as_secs_f64()
}

/// Answers all questions of a connection, with a segment for each write.
fn answer(mut stream: TcpStream, segments: usize) {
    stream.set_nodelay(true).expect("an option");
    let mut question = [0; 64];
    while stream.read_exact(&mut question).is_ok() {
        for _ in 0..segments {
            stream.write_all(&question).expect("the client reads");
        }
    }
}

/// Connections with questions, of both families at once.
fn conversations(pair: &Pair, port: u16, segments: usize) -> Measured {
    let measured = Mutex::new(Measured::default());
    thread::scope(|scope| {
        for target in on_port(&Pair::SERVERS, port) {
            let listener = pair.server.run(|| TcpListener::bind(target));
            let listener = listener.expect("a listener");
            scope.spawn(move || {
                for _ in 0..CONNECTIONS {
                    answer(listener.accept().expect("a connection").0, segments);
                }
            });
            let measured = &measured;
            scope.spawn(move || {
                let own = pair.client.run(|| {
                    let mut own = Measured::default();
                    for _ in 0..CONNECTIONS {
                        let begun = Instant::now();
                        let mut stream = TcpStream::connect(target).expect("a connection");
                        own.connects.push(begun.elapsed().as_secs_f64());
                        stream.set_nodelay(true).expect("an option");
                        own.answers
                            .extend((0..EACH).map(|_| ask(&mut stream, segments)));
                    }
                    own
                });
                measured.lock().expect("no thread panicked").add(own);
            });
        }
    });
    measured.into_inner().expect("no thread panicked")
}

#[test]
fn netem_shows_its_delay() {
    const TEST: &str = "netem_shows_its_delay";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    let base = conversations(&pair, 8080, 1);
    let daemon = Daemon::start(&pair.both(), &[]);
    for wire in MATRIX {
        let what = wire.netem;
        if !netem(&pair.server, what) {
            skip::not_built(TEST, NO_NETEM);
            return;
        }
        println!("--- {what}");
        let before = pair.client.counters();
        let known = conversations(&pair, wire.port, wire.segments);
        load::quiet(&pair.both(), 0);
        let queued = (&pair.client.counters() - &before).get("TcpExt.TCPOFOQueue");
        let mut snapshot = daemon.snapshot();
        let svc = wire.port.to_string();
        snapshot.tcp.retain(|series| series.labels.svc == svc);
        assert_eq!(
            queued > 0,
            wire.segments > 1,
            "{what}: {queued} out of order"
        );
        // Nothing is merged on this wire: ours are segments, theirs packets.
        let ours = truth::sum(&snapshot, "client", |one| one.out_of_order);
        println!("out of order at the client: {ours}, by the kernel {queued}");
        assert_eq!(ours, queued.unsigned_abs(), "{what}: out of order");
        for side in SIDES {
            let rtt = of_side(&snapshot, side, |one| &one.rtt);
            let handshake = of_side(&snapshot, side, |one| &one.handshake);
            assert_eq!(handshake.count(), known.connects.len() as u64, "{side}");
            // A lost answer leaves no sample of its question.
            let least = known.answers.len() as f64 * 0.9;
            assert!(rtt.count() as f64 >= least, "{side}: {}", rtt.count());
            for (name, histogram, base, known) in [
                ("RTT", &rtt, &base.answers, &known.answers),
                ("handshake", &handshake, &base.connects, &known.connects),
            ] {
                for q in [0.5, 0.9] {
                    let (ours, set) = (quantile(histogram, q), wire.rtt.as_secs_f64());
                    let most = part(known, q).max(set + part(base, q));
                    let text = format!("{name} of the {side}, quantile {q}: {ours:.6} s");
                    println!("{text}, set {set} s, by the program {most:.6} s");
                    assert!(
                        ours > set * 0.95 && ours < most * 1.05,
                        "{what}: {text} for {set} to {most} s"
                    );
                }
            }
        }
    }
    daemon.stop();
}

#[test]
fn numbers_hold_where_netem_loses_and_reorders() {
    const TEST: &str = "numbers_hold_where_netem_loses_and_reorders";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    for netns in pair.both() {
        if !netem(netns, "delay 5ms 2ms loss 1% reorder 20%") {
            skip::not_built(TEST, NO_NETEM);
            return;
        }
    }
    let targets = on_port(&Pair::SERVERS, 8080);
    let server = Server::start(&pair.server, &targets, &[]);
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();
    let clients = Clients {
        connections: scaled(2_000),
        threads: 16,
        targets,
    };
    clients.run(&pair.client);
    let theirs = &load::quiet(&pair.both(), 0) - &before;
    let snapshot = daemon.snapshot();
    let mut table = Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    assert!(
        theirs.get("TcpExt.TCPOFOQueue") > 0,
        "packets overtake others"
    );
    daemon.stop();
    server.stop();
}

/// Questions and answers on a connection whose wire becomes longer half-way,
/// looked at while it is open.
fn longer_half_way(pair: [&Netns; 2], set: impl Fn(Duration)) {
    /// Of the wire there and back, before and after.
    const RTTS: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(80)];
    const EACH: usize = 60;
    let [server, client] = pair;
    let target = on_port(&[Pair::SERVER_V4], 8080)[0];
    let listener = server
        .run(|| TcpListener::bind(target))
        .expect("a listener");
    set(RTTS[0]);
    let daemon = Daemon::start(&pair, &[]);
    let stream = client.run(|| TcpStream::connect(target));
    let mut stream = stream.expect("a connection");
    let (peer, _) = listener.accept().expect("a connection");
    let local = stream.local_addr().expect("its address").to_string();
    stream.set_nodelay(true).expect("an option");
    thread::scope(|scope| {
        scope.spawn(|| answer(peer, 1));
        let mut seen = Histogram::default();
        for rtt in RTTS {
            set(rtt);
            let mut answers: Vec<_> = (0..EACH).map(|_| ask(&mut stream, 1)).collect();
            answers.sort_by(f64::total_cmp);
            let info = smoothed_rtt(&stream).expect("TCP_INFO");
            // The connection is open: this shows during its life.
            let snapshot = poll::until("its samples", || {
                let snapshot = daemon.fresh_connections();
                let count = of_side(&snapshot, "client", |one| &one.rtt).count();
                (count >= seen.count() + EACH as u64).then_some(snapshot)
            });
            assert_eq!(truth::sum(&snapshot, "client", |one| one.open), 1);
            let all = of_side(&snapshot, "client", |one| &one.rtt);
            let mut new = all.clone();
            for (slot, count) in &seen.slots {
                let found = new.slots.iter_mut().find(|(one, _)| one == slot);
                found.expect("no observation goes away").1 -= count;
            }
            new.slots.retain(|(_, count)| *count > 0);
            seen = all;
            let (ours, wire) = (quantile(&new, 0.5), rtt.as_secs_f64());
            let program = part(&answers, 0.5);
            println!("new samples: {ours:.6} s, wire {wire} s, by the program {program:.6} s");
            assert!(
                ours > wire * 0.95 && ours < program * 1.05,
                "{ours} s for {wire} to {program} s"
            );
            let connection = (snapshot.connections.iter())
                .find(|one| one.local == local)
                .expect("the connection is open");
            within_five_percent("smoothed, against TCP_INFO", connection.srtt_seconds, info);
            // The last samples weigh most: the smoothed RTT is near this wire
            // and far from the other.
            let smoothed = connection.srtt_seconds;
            assert!(
                smoothed > wire * 0.95 && smoothed < wire * 1.5,
                "smoothed {smoothed} s for {wire} s"
            );
        }
        drop(stream);
    });
    load::quiet(&pair, 0);
    daemon.stop();
}

#[test]
fn a_wire_that_becomes_longer_shows_while_its_connection_lives() {
    const TEST: &str = "a_wire_that_becomes_longer_shows_while_its_connection_lives";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if skip::is_emulated() {
        let pair = Pair::new();
        if netem(&pair.server, "delay 1ms") {
            let set = |rtt: Duration| {
                let text = format!("delay {}ms", rtt.as_millis());
                assert!(netem(&pair.server, &text), "netem is there");
            };
            longer_half_way(pair.both(), set);
        } else {
            skip::not_built(TEST, NO_NETEM);
        }
        return;
    }
    let line = DelayLine::new(ONE_WAY);
    longer_half_way(line.both(), |rtt| line.set(rtt / 2));
}

/// The least RTT leaves out that the peer delays its acknowledgments, which the samples
/// hold, and is observed once for each end that closes.
#[test]
fn the_least_rtt_is_without_delayed_acknowledgments() {
    const CONNECTIONS: u64 = 5;
    let Some(_turn) = skip::turn("the_least_rtt_is_without_delayed_acknowledgments") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    for _ in 0..CONNECTIONS {
        let at = std::net::SocketAddr::new(Pair::SERVER_V4, 9000);
        let (_listener, mut client, mut server) = pair.connect(at);
        for _ in 0..5 {
            set_tcp(&server, libc::TCP_QUICKACK, 0);
            client.write_all(&[7; 100]).expect("it is sent");
            server.read_exact(&mut [0; 100]).expect("it arrives");
            poll::until("it is acknowledged", || {
                let info = tcp_info(&client).expect("TCP_INFO");
                (info.tcpi_unacked == 0).then_some(())
            });
        }
    }
    let snapshot = poll::until("all are closed", || {
        let snapshot = daemon.snapshot();
        let closed = truth::sum(&snapshot, "", |one| one.closed.sum());
        (closed == 2 * CONNECTIONS).then_some(snapshot)
    });
    for side in ["client", "server"] {
        let of_side = snapshot.tcp.iter().filter(|one| one.labels.side == side);
        let observed: u64 = of_side.map(|one| one.min_rtt.count()).sum();
        assert_eq!(observed, CONNECTIONS, "{side}");
    }
    let client = (snapshot.tcp.iter())
        .find(|one| one.labels.side == "client")
        .expect("a series");
    let [least, longest] = [client.min_rtt.quantile(1.0), client.rtt.quantile(1.0)]
        .map(|seconds| seconds.expect("an observation"));
    // The kernel delays an acknowledgment by 40 ms.
    assert!(
        longest > 0.030,
        "no acknowledgment was delayed: {longest} s"
    );
    assert!(least < longest / 2.0, "{least} s, {longest} s");
    daemon.stop();
}
