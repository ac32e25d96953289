//! The time to the first byte, for each scenario in which the two ends of
//! a connection send: what is a question, what is its answer, and what
//! is neither.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use probe_tests::{
    daemon::Daemon,
    netns::{Netns, Pair},
    poll, skip,
    tcp_info::tcp_info,
};
use probe_user::model::{Histogram, Snapshot};

/// A pause that stands out from all that happens by itself.
fn pause() -> Duration {
    Duration::from_millis(if skip::is_emulated() { 600 } else { 100 })
}

/// Client and server.
type Ends = (TcpStream, TcpStream);

fn open(pair: &Pair, at: SocketAddr) -> Ends {
    let (_, client, server) = pair.connect(at);
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("no delay");
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

/// The second question is on its way before the first has its answer, and so on:
/// each answer follows a question, not its own.
fn interleaved(_: &Pair, _: u16, (mut client, mut server): Ends) {
    pass(&mut client, &mut server, 100);
    for _ in 0..5 {
        pass(&mut client, &mut server, 100);
        thread::sleep(pause());
        pass(&mut server, &mut client, 1000);
    }
    pass(&mut server, &mut client, 1000);
}

/// A question and an answer of many segments.
fn large(_: &Pair, _: u16, (mut client, mut server): Ends) {
    const BYTES: usize = 300_000;
    let copy = |from: &mut TcpStream, to: &mut TcpStream| {
        thread::scope(|scope| {
            scope.spawn(|| from.write_all(&vec![7; BYTES]).expect("it is sent"));
            to.read_exact(&mut vec![0; BYTES]).expect("it arrives");
        });
    };
    copy(&mut client, &mut server);
    thread::sleep(pause());
    copy(&mut server, &mut client);
}

/// The client closes its direction after the question, so that its answer is no
/// event there.
fn half_closed(_: &Pair, _: u16, (mut client, mut server): Ends) {
    pass(&mut client, &mut server, 100);
    client.shutdown(Shutdown::Write).expect("a FIN is sent");
    assert_eq!(server.read(&mut [0]).expect("a FIN"), 0);
    thread::sleep(pause());
    pass(&mut server, &mut client, 1000);
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

/// Loses what arrives in a namespace, while something is done.
fn losing<T>(netns: &Netns, which: &str, meanwhile: impl FnOnce() -> T) -> T {
    netns.nft(&format!(
        "table inet ep {{ chain pre {{ type filter hook prerouting priority raw; \
         {which} drop; }}; }}"
    ));
    let done = meanwhile();
    netns.nft("delete table inet ep\n");
    done
}

/// The first segment of an answer is lost for a pause, the second one is not. The
/// rule is there before the turn begins: to make it takes its time.
fn answer_overtaken(pair: &Pair, port: u16, (mut client, mut server): Ends) {
    let which = format!("tcp sport {port} meta length > 500");
    losing(&pair.client, &which, || {
        pass(&mut client, &mut server, 100);
        server.write_all(&[7; 1000]).expect("it is sent");
        server.write_all(&[7; 10]).expect("it is sent");
        thread::sleep(pause());
    });
    client.read_exact(&mut [0; 1010]).expect("all arrives");
}

/// The acknowledgments of a question are lost, so that it comes again between two
/// pauses: it has come the first time.
fn question_again(pair: &Pair, port: u16, (mut client, mut server): Ends) {
    let which = format!("tcp sport {port} meta length < 500");
    losing(&pair.client, &which, || {
        pass(&mut client, &mut server, 100);
        thread::sleep(pause());
        poll::until("it is sent again", || {
            let info = tcp_info(&client).expect("TCP_INFO");
            (info.tcpi_total_retrans > 0).then_some(())
        });
        thread::sleep(pause());
    });
    pass(&mut server, &mut client, 1000);
}

/// How many times are observed at the client and at the server, how many of them
/// are about a pause long or longer, the others being much shorter, and how many
/// pauses are in all of them together.
struct Expected {
    client: [u64; 3],
    server: [u64; 3],
}

const fn both(count: u64) -> Expected {
    Expected {
        client: [count; 3],
        server: [count; 3],
    }
}

type Scenario = fn(&Pair, u16, Ends);

const SCENARIOS: [(&str, Scenario, Expected); 10] = [
    ("keep alive", keep_alive, both(5)),
    // Of several questions the last one counts, of their answers the first.
    ("pipelined", pipelined, both(5)),
    // The greeting answers nothing.
    ("server first", server_first, both(5)),
    ("to the server", to_the_server, both(0)),
    ("to the client", to_the_client, both(0)),
    // The last answer follows no question.
    ("interleaved", interleaved, both(5)),
    ("large", large, both(1)),
    (
        "half closed",
        half_closed,
        Expected {
            client: [0; 3],
            server: [1; 3],
        },
    ),
    // The server has sent at once; its client has waited.
    (
        "answer overtaken",
        answer_overtaken,
        Expected {
            client: [1; 3],
            server: [1, 0, 0],
        },
    ),
    (
        "question again",
        question_again,
        Expected {
            client: [1, 1, 2],
            server: [1, 1, 2],
        },
    ),
];

/// The observations of a side.
fn observations(snapshot: &Snapshot, side: &str, port: u16) -> Histogram {
    let mut sum = Histogram::default();
    for one in snapshot.tcp.iter().filter(|one| one.labels.side == side) {
        if one.labels.svc == port.to_string() {
            sum.add(&one.first_byte);
        }
    }
    sum
}

/// How many are about a pause long or longer.
fn long(histogram: &Histogram) -> u64 {
    // A bucket is 4.4 % wide.
    let bound = pause().as_secs_f64() * 0.95;
    (histogram.slots.iter())
        .filter(|(slot, _)| probe_user::model::bucket_seconds(*slot).1 > bound)
        .map(|(_, count)| count)
        .sum()
}

#[test]
fn first_bytes_are_counted_in_each_scenario() {
    const TEST: &str = "first_bytes_are_counted_in_each_scenario";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if skip::kernel() < (6, 3) {
        skip::impossible(TEST, "this kernel does not tell of sends");
        return;
    }
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let mut lasted = [Duration::ZERO; SCENARIOS.len()];
    for (((name, scenario, _), port), lasted) in SCENARIOS.iter().zip(9000..).zip(&mut lasted) {
        for address in Pair::SERVERS {
            let at = SocketAddr::new(address, port);
            println!("{name}: {at}");
            let ends = open(&pair, at);
            let since = Instant::now();
            scenario(&pair, port, ends);
            *lasted += since.elapsed();
        }
    }
    let ends = 2 * (SCENARIOS.len() * Pair::SERVERS.len()) as u64;
    let snapshot = poll::until("all are closed", || {
        let snapshot = daemon.snapshot();
        let closed = snapshot.tcp.iter().map(|one| one.closed.sum());
        (closed.sum::<u64>() == ends).then_some(snapshot)
    });
    let families = Pair::SERVERS.len() as u64;
    for (((name, _, expected), port), lasted) in SCENARIOS.iter().zip(9000..).zip(lasted) {
        for (side, wanted) in [("client", expected.client), ("server", expected.server)] {
            let found = observations(&snapshot, side, port);
            let counts = [found.count(), long(&found)];
            println!("{name}, {side}: {counts:?}, {:.6} s", found.sum_seconds);
            let [count, long, pauses] = wanted.map(|number| number * families);
            assert_eq!(counts, [count, long], "{name}, {side}");
            // A sleep is never too short, and at one side no time of an answer
            // overlaps with that of another: they lie within those of the program.
            let least = pause().as_secs_f64() * pauses as f64;
            assert!(
                (least..=lasted.as_secs_f64()).contains(&found.sum_seconds),
                "{name}, {side}: {} s, {least} s of pauses in {lasted:?}",
                found.sum_seconds
            );
        }
    }
    // The last of the questions: the first was three pauses before its answer.
    let pipelined = snapshot.tcp.iter().filter(|one| one.labels.svc == "9001");
    for one in pipelined.filter(|one| one.first_byte.count() != 0) {
        // One or the other may take longer on a machine that stands still.
        let usual = one.first_byte.quantile(0.5).expect("an observation");
        let bound = 2.0 * pause().as_secs_f64();
        assert!(usual < bound, "{usual} s, {:?}", one.labels);
    }
    daemon.stop();
}

/// A server whose two threads send at once, a byte each: the first of them, whichever
/// it is, is the answer. Then the next question comes, maybe before both sends have
/// returned.
fn answer_with_two_threads(stream: &TcpStream, questions: u32) {
    let together = Barrier::new(2);
    let answer = |mut stream: &TcpStream| {
        together.wait();
        stream.write_all(&[2]).expect("it is sent");
    };
    thread::scope(|scope| {
        scope.spawn(|| (0..questions).for_each(|_| answer(stream)));
        for _ in 0..questions {
            (&mut &*stream).read_exact(&mut [0]).expect("a question");
            answer(stream);
        }
    });
}

#[test]
fn an_answer_that_two_threads_send_counts_once() {
    const TEST: &str = "an_answer_that_two_threads_send_counts_once";
    const CONNECTIONS: u64 = 2;
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if skip::kernel() < (6, 3) {
        skip::impossible(TEST, "this kernel does not tell of sends");
        return;
    }
    let netns = Netns::new();
    let daemon = Daemon::start(&[&netns], &[]);
    let questions = skip::scaled(20_000);
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 9000));
    netns.run(|| {
        let listener = TcpListener::bind(at).expect("a listener");
        thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                let mut client = TcpStream::connect(at).expect("a connection");
                let (server, _) = listener.accept().expect("a connection");
                for stream in [&client, &server] {
                    stream.set_nodelay(true).expect("an option");
                }
                scope.spawn(move || answer_with_two_threads(&server, questions));
                scope.spawn(move || {
                    for _ in 0..questions {
                        client.write_all(&[1]).expect("it is sent");
                        client.read_exact(&mut [0; 2]).expect("an answer");
                    }
                });
            }
        });
    });
    let snapshot = poll::until("all are closed", || {
        let snapshot = daemon.snapshot();
        let closed = snapshot.tcp.iter().map(|one| one.closed.sum());
        (closed.sum::<u64>() == 2 * CONNECTIONS).then_some(snapshot)
    });
    for side in ["client", "server"] {
        let found = observations(&snapshot, side, 9000);
        assert_eq!(found.count(), CONNECTIONS * u64::from(questions), "{side}");
    }
    daemon.stop();
}
