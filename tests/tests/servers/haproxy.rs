//! HAProxy in front of two nginx, one of them slow: edgeprobe says which.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::net::UnixListener,
    process::Command,
    thread,
    time::Duration,
};

use probe_tests::{
    daemon::Daemon,
    load,
    netns::{Netns, Pair},
    poll,
    programs::{self, Nginx, wrk},
    skip,
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::{Histogram, Snapshot, TcpSeries};

use crate::tls::sum;

/// How far the bounds of a histogram's bucket lie apart: 2 to the power of 1/16.
const BUCKET_WIDTH: f64 = 1.0443;

const FRONT: u16 = 8000;
const QUICK: u16 = 8081;
const SLOW: u16 = 8082;
/// What the slow one takes for an answer.
const PAUSE: Duration = Duration::from_millis(50);
const CONNECTIONS: u32 = 8;

/// Answers each request after a pause, on a socket that is not TCP. Its threads
/// live as long as the test program.
fn slow_program(path: &std::path::Path) {
    let listener = UnixListener::bind(path).expect("a socket");
    let answer = |mut stream: std::os::unix::net::UnixStream| -> io::Result<()> {
        let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                length => request.extend(&buffer[..length]),
            }
        }
        thread::sleep(PAUSE);
        stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nslow\n")
    };
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // nginx may have gone: then nobody waits for the answer.
            thread::spawn(move || answer(stream).ok());
        }
    });
}

/// nginx on the loopback of a namespace.
fn nginx(netns: &Netns, program: &std::path::Path, port: u16, location: &str) -> Nginx {
    let server = format!(
        "server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000;\n\
         location / {{ {location} }} }}\n"
    );
    Nginx::start(netns, program, &server)
}

fn median(snapshot: &Snapshot, side: &str, port: u16) -> f64 {
    let svc = port.to_string();
    let all = (snapshot.tcp.iter())
        .filter(|series| series.labels.side == side && series.labels.svc == svc)
        .fold(Histogram::default(), |mut all, series| {
            all.add(&series.first_byte);
            all
        });
    let median = all.quantile(0.5);
    median.unwrap_or_else(|| panic!("no first byte of side {side}, service {svc}"))
}

#[test]
fn haproxy_and_the_slow_one_of_two_nginx() {
    const TEST: &str = "haproxy_and_the_slow_one_of_two_nginx";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let (Some(program), Some(haproxy), Some(_)) = (
        skip::tool(TEST, "nginx"),
        skip::tool(TEST, "haproxy"),
        skip::tool(TEST, "wrk"),
    ) else {
        return;
    };
    let pair = Pair::new();
    let folder = programs::folder();
    let slow_socket = folder.path().join("slow");
    slow_program(&slow_socket);
    let quick = nginx(&pair.server, &program, QUICK, "return 200 \"quick\\n\";");
    let pass = format!("proxy_pass http://unix:{}:/;", slow_socket.display());
    let slow = nginx(&pair.server, &program, SLOW, &pass);
    let config = folder.path().join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "defaults\n  mode http\n  timeout connect 10s\n  timeout client 30s\n  timeout server 30s\n\
             frontend front\n  bind {}:{FRONT}\n  default_backend both\n\
             backend both\n  balance roundrobin\n\
               server quick 127.0.0.1:{QUICK}\n  server slow 127.0.0.1:{SLOW}\n",
            Pair::SERVER_V4
        ),
    )
    .expect("a file");
    let mut command = Command::new(haproxy);
    command.arg("-db").arg("-f").arg(&config);
    let mut haproxy = programs::start(&pair.server, command, folder.path().join("haproxy"));
    let listens = format!(":{FRONT:04X} 00000000:0000 0A");
    poll::until("haproxy listens", || {
        haproxy.assert_alive();
        let sockets = pair.server.command("cat", &["/proc/thread-self/net/tcp"]);
        sockets.contains(&listens).then_some(())
    });

    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();
    let url = format!("http://{}:{FRONT}/", Pair::SERVER_V4);
    let read = wrk(&pair.client, CONNECTIONS, 3, false, &url);
    // What wrk has cut is still answered to HAProxy, which keeps its connections
    // to the two nginx to its own end.
    poll::until("no more answers", || {
        let answers = slow.answers().len();
        thread::sleep(4 * PAUSE);
        (slow.answers().len() == answers).then_some(())
    });
    drop(haproxy);
    let theirs = &load::quiet(&pair.both(), 0) - &before;
    let snapshot = daemon.snapshot();

    let mut table = Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    let number = |count: u64| i64::try_from(count).expect("few of them");
    let mut answered = 0;
    for (port, nginx) in [(QUICK, &quick), (SLOW, &slow)] {
        let answers = nginx.answers();
        assert!(answers.iter().all(|answer| answer.status == 200), "{port}");
        let requests = answers.len() as u64;
        answered += requests;
        let accepted = nginx.accepted();
        println!("port {port}: {requests} answers on {accepted} connections");
        for side in ["client", "server"] {
            let count = |value: fn(&TcpSeries) -> u64| sum(&snapshot, side, port, value);
            table.equal(
                "opened = accepted by nginx",
                count(|one| one.opened),
                number(accepted),
            );
            if skip::kernel() >= (6, 12) {
                let first_bytes = count(|one| one.first_byte.count());
                table.equal(
                    "first bytes = answers of nginx",
                    first_bytes,
                    number(requests),
                );
            }
        }
    }
    let opened = |side| sum(&snapshot, side, FRONT, |one| one.opened);
    for side in ["client", "server"] {
        // wrk connects once to see whether it can.
        table.at_least("opened at the front", opened(side), i64::from(CONNECTIONS));
        table.at_most(
            "opened at the front",
            opened(side),
            i64::from(CONNECTIONS + 1),
        );
    }
    assert!(
        (read..=read + u64::from(CONNECTIONS)).contains(&answered),
        "wrk read {read} answers of {answered}"
    );
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();

    if skip::kernel() < (6, 12) {
        skip::impossible(TEST, "this kernel tells of no send: no first bytes");
        return;
    }
    let pause = PAUSE.as_secs_f64();
    for side in ["client", "server"] {
        let [quick, slow] = [QUICK, SLOW].map(|port| median(&snapshot, side, port));
        println!("{side}: first byte of the quick one {quick:.6} s, of the slow one {slow:.6} s");
        // nginx counts in milliseconds, and a median is as wide as its bucket.
        assert!(
            slow >= pause / BUCKET_WIDTH && slow < 1.5 * pause,
            "{side}: the slow one takes {slow} s for {pause} s"
        );
        assert!(quick < pause / 5.0, "{side}: the quick one takes {quick} s");
    }
    daemon.stop();
}
