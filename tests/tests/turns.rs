//! The time to the first byte, for each way in which the two ends of a
//! connection may take turns: what is a question, what is its answer, and what
//! is neither.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use probe_tests::{daemon::Daemon, netns::Pair, poll, skip};
use probe_user::snapshot::{Histogram, Snapshot};

/// A pause that stands out from all that happens by itself.
fn pause() -> Duration {
    Duration::from_millis(if skip::is_emulated() { 600 } else { 100 })
}

/// Client and server.
type Ends = (TcpStream, TcpStream);

fn open(pair: &Pair, at: SocketAddr) -> Ends {
    let listener = pair.server.run(|| TcpListener::bind(at)).expect("a port");
    let client = pair
        .client
        .run(|| TcpStream::connect(at))
        .expect("it is open");
    let (server, _) = listener.accept().expect("it is open");
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("no delay");
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).expect("a timeout");
    }
    (client, server)
}

/// Bytes from one end to the other.
fn pass(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) {
    from.write_all(&vec![7; bytes]).expect("they are sent");
    to.read_exact(&mut vec![0; bytes]).expect("they arrive");
}

/// Questions and answers, the server taking its time.
fn keep_alive(_: &Pair, _: u16, (mut client, mut server): Ends) {
    for _ in 0..5 {
        pass(&mut client, &mut server, 100);
        thread::sleep(pause());
        pass(&mut server, &mut client, 1000);
    }
}

/// Three questions, each a pause after the one before, then three answers.
fn pipelined(_: &Pair, _: u16, (mut client, mut server): Ends) {
    for _ in 0..5 {
        for _ in 0..3 {
            thread::sleep(pause());
            pass(&mut client, &mut server, 100);
        }
        thread::sleep(pause());
        for _ in 0..3 {
            pass(&mut server, &mut client, 1000);
        }
    }
}

/// A greeting, then questions and answers, as in SMTP.
fn server_first(pair: &Pair, port: u16, (mut client, mut server): Ends) {
    thread::sleep(pause());
    pass(&mut server, &mut client, 100);
    keep_alive(pair, port, (client, server));
}

fn to_the_server(_: &Pair, _: u16, (mut client, mut server): Ends) {
    for _ in 0..50 {
        pass(&mut client, &mut server, 1000);
    }
}

fn to_the_client(_: &Pair, _: u16, (mut client, mut server): Ends) {
    for _ in 0..50 {
        pass(&mut server, &mut client, 1000);
    }
}

/// The first segment of an answer is lost for a pause, the second one is not.
fn answer_overtaken(pair: &Pair, port: u16, (mut client, mut server): Ends) {
    pass(&mut client, &mut server, 100);
    pair.client.nft(&format!(
        "table inet ep {{ chain pre {{ type filter hook prerouting priority raw; \
         tcp sport {port} meta length > 500 drop; }}; }}"
    ));
    server.write_all(&[7; 1000]).expect("it is sent");
    server.write_all(&[7; 10]).expect("it is sent");
    thread::sleep(pause());
    pair.client.nft("delete table inet ep\n");
    client.read_exact(&mut [0; 1010]).expect("all arrives");
}

/// How many times are observed at the client and at the server, and how many of
/// them are about a pause long; the others are much shorter.
struct Expected {
    client: [u64; 2],
    server: [u64; 2],
}

const fn both(count: u64) -> Expected {
    Expected {
        client: [count, count],
        server: [count, count],
    }
}

type Way = fn(&Pair, u16, Ends);

const WAYS: [(&str, Way, Expected); 6] = [
    ("keep alive", keep_alive, both(5)),
    // Of several questions the last one counts, of their answers the first.
    ("pipelined", pipelined, both(5)),
    // The greeting answers nothing.
    ("server first", server_first, both(5)),
    ("to the server", to_the_server, both(0)),
    ("to the client", to_the_client, both(0)),
    // The server has sent at once; its client has waited.
    (
        "answer overtaken",
        answer_overtaken,
        Expected {
            client: [1, 1],
            server: [1, 0],
        },
    ),
];

/// Observations, and those from a pause on.
fn observed(snapshot: &Snapshot, side: &str, port: u16) -> [u64; 2] {
    let mut sum = Histogram::default();
    for one in snapshot.tcp.iter().filter(|one| one.labels.side == side) {
        if one.labels.svc == port.to_string() {
            sum.add(&one.first_byte);
        }
    }
    // A bucket is 4.4 % wide.
    let bound = pause().as_secs_f64() * 0.95;
    let long = (sum.slots.iter())
        .filter(|(slot, _)| probe_user::snapshot::bucket_seconds(*slot).1 > bound)
        .map(|(_, count)| count)
        .sum();
    [sum.count(), long]
}

#[test]
fn first_bytes_are_counted_for_each_way_to_take_turns() {
    const TEST: &str = "first_bytes_are_counted_for_each_way_to_take_turns";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if skip::kernel() < (6, 3) {
        skip::impossible(TEST, "this kernel does not tell of sends");
        return;
    }
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    for ((name, way, _), port) in WAYS.iter().zip(9000..) {
        for address in Pair::SERVERS {
            let at = SocketAddr::new(address, port);
            println!("{name}: {at}");
            way(&pair, port, open(&pair, at));
        }
    }
    let ends = 2 * (WAYS.len() * Pair::SERVERS.len()) as u64;
    let snapshot = poll::until("all are closed", || {
        let snapshot = daemon.snapshot();
        let closed = snapshot.tcp.iter().flat_map(|one| one.closed.values());
        (closed.sum::<u64>() == ends).then_some(snapshot)
    });
    let twice = |counts: [u64; 2]| counts.map(|count| count * Pair::SERVERS.len() as u64);
    for ((name, _, expected), port) in WAYS.iter().zip(9000..) {
        for (side, wanted) in [("client", expected.client), ("server", expected.server)] {
            let found = observed(&snapshot, side, port);
            println!("{name}, {side}: {found:?}");
            assert_eq!(found, twice(wanted), "{name}, {side}");
        }
    }
    // The last of the questions: the first was three pauses before its answer.
    let pipelined = snapshot.tcp.iter().filter(|one| one.labels.svc == "9001");
    for one in pipelined.filter(|one| one.first_byte.count() != 0) {
        let longest = one.first_byte.quantile(1.0).expect("an observation");
        let bound = 2.0 * pause().as_secs_f64();
        assert!(longest < bound, "{longest} s, {:?}", one.labels);
    }
    daemon.stop();
}
