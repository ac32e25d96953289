//! Clients that are too many, silent, slow or deaf: others are answered, and memory
//! stays bounded.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use probe_tests::{
    crowd::Crowd,
    daemon::{Daemon, Running, binary},
    http,
    load::{Clients, Server, on_port},
    netns::{Netns, Pair},
    poll, skip,
};

const MIB: u64 = 1 << 20;
/// Far more than an answer takes, far less than a client is waited for.
const SOON: Duration = Duration::from_secs(2);

/// Memory of a process that no file is behind, in bytes.
#[track_caller]
fn anonymous(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its state");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("RssAnon") * 1024
}

/// A page, and that it came soon.
#[track_caller]
fn soon(address: SocketAddr, path: &str) -> String {
    let asked = Instant::now();
    let page = http::get(address, path, "text/plain").expect("a page");
    assert_eq!(page.status, 200, "{path}: {}", page.body);
    let elapsed = asked.elapsed();
    assert!(elapsed < SOON, "{path} took {elapsed:?}");
    page.body
}

/// Clients that connect; what they send is `request`.
fn crowd(address: SocketAddr, number: usize, request: &str) -> Vec<TcpStream> {
    let client = |_| {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it is open");
        stream
    };
    (0..number).map(client).collect()
}

fn exporter(daemon: &Daemon, address: SocketAddr) -> Running {
    let mut exporter = Command::new(binary());
    exporter
        .args(["exporter", "--listen", &address.to_string(), "--socket"])
        .arg(daemon.socket())
        .stdin(Stdio::null());
    let exporter = Running::start(exporter, daemon.folder().join("exporter-messages"));
    poll::until("the exporter is ready", || {
        let ready = http::get(address, "/readyz", "*/*").ok()?;
        (ready.status == 200).then_some(())
    });
    exporter
}

#[test]
fn a_crowd_of_silent_and_deaf_clients_keeps_nobody_waiting() {
    let Some(_turn) = skip::turn("a_crowd_of_silent_and_deaf_clients_keeps_nobody_waiting") else {
        return;
    };
    let netns = Netns::new();
    let (ours, theirs) = (http::free_address(), http::free_address());
    let daemon = Daemon::start(&[&netns], &["--listen", &ours.to_string()]);
    let exporter = exporter(&daemon, theirs);
    let metrics = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let silent_on_the_socket: Vec<_> = (0..40)
        .map(|_| UnixStream::connect(daemon.socket()).expect("it listens"))
        .collect();
    for (address, pid) in [(ours, daemon.process().pid()), (theirs, exporter.pid())] {
        let deaf = crowd(address, 150, metrics);
        let silent = crowd(address, 300, "");
        let slow = crowd(address, 50, "GET /met");
        let scrapes = thread::scope(|scope| {
            let scrapes: Vec<_> = (0..50)
                .map(|_| scope.spawn(|| http::get(address, "/metrics", "*/*")))
                .collect();
            for _ in 0..10 {
                soon(address, "/healthz");
                let page = soon(address, "/metrics");
                assert_eq!(http::sample(&page, "edgeprobe_daemon_up"), Some(1.0));
            }
            let scrapes = scrapes.into_iter().map(thread::ScopedJoinHandle::join);
            scrapes
                .filter(|page| matches!(page, Ok(Ok(page)) if page.status == 200))
                .count()
        });
        assert_eq!(scrapes, 50, "all are answered");
        let most = anonymous(pid);
        println!("{} MiB", most / MIB);
        assert!(most < 96 * MIB, "{} MiB", most / MIB);
        drop((deaf, silent, slow));
    }
    drop(silent_on_the_socket);
    for pid in [daemon.process().pid(), exporter.pid()] {
        poll::until("memory is given back", || {
            (anonymous(pid) < 48 * MIB).then_some(())
        });
    }
    exporter.stop(libc::SIGTERM);
    daemon.stop();
}

#[test]
fn idle_connections_do_not_use_up_the_files() {
    let Some(_turn) = skip::turn("idle_connections_do_not_use_up_the_files") else {
        return;
    };
    let netns = Netns::new();
    let daemon = Daemon::start(&[&netns], &[]);
    let address = http::free_address();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 80; exec \"$0\" \"$@\""])
        .arg(binary())
        .args(["exporter", "--listen", &address.to_string(), "--socket"])
        .arg(daemon.socket())
        .stdin(Stdio::null());
    let exporter = Running::start(command, daemon.folder().join("exporter-messages"));
    poll::until("the exporter is ready", || {
        let ready = http::get(address, "/readyz", "*/*").ok()?;
        (ready.status == 200).then_some(())
    });
    let idle = crowd(address, 200, "");
    for _ in 0..20 {
        let page = soon(address, "/metrics");
        assert_eq!(http::sample(&page, "edgeprobe_daemon_up"), Some(1.0));
        assert_eq!(http::sample(&page, "process_max_fds"), Some(80.0));
    }
    let messages = exporter.messages();
    assert!(messages.lines().count() < 8, "{messages}");
    // The newest of them are still open.
    let mut newest = idle.last().expect("one");
    newest.set_nonblocking(true).expect("a flag");
    let nothing = newest.read(&mut [0]).expect_err("still open");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    exporter.stop(libc::SIGTERM);
    daemon.stop();
}

/// How long the figures are taken, and what they are taken for.
const LASTING: Duration = Duration::from_secs(15);
const CROWD: Crowd = Crowd {
    silent_on_the_socket: 40,
    silent: 500,
    deaf: 200,
    scrapes: 100,
};

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").expect("the load");
    text.split(' ').take(1).collect()
}

/// Processor time of a process, in seconds.
#[track_caller]
fn processor_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its state");
    // Behind the name, which may hold anything: utime and stime.
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: f64 = ticks.map(|n| n.parse::<f64>().expect("a number")).sum();
    // SAFETY: it takes a number and has no other effect.
    ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

/// The most memory of a process while something is done, and what that gave.
fn most<T>(pid: u32, work: impl FnOnce() -> T) -> (u64, T) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::SeqCst) {
                most = most.max(anonymous(pid));
                thread::sleep(Duration::from_millis(10));
            }
            most
        });
        let given = work();
        over.store(true, Ordering::SeqCst);
        (watch.join().expect("its memory"), given)
    })
}

/// Prints how long others wait beside a crowd, and what memory it takes; nothing of it
/// is judged, since it depends on the machine and what else it does. `EP_SCALE` shortens
/// the minute after which memory is looked at again.
#[test]
#[ignore = "prints figures for six minutes"]
fn figures_of_others_beside_a_crowd() {
    let Some(_turn) = skip::turn("figures_of_others_beside_a_crowd") else {
        return;
    };
    for (rows, ports) in [("few rows", 1), ("all rows", 300)] {
        let pair = Pair::new();
        let targets: Vec<_> = (0..ports)
            .map(|n| on_port(&Pair::SERVERS[..1], 10_000 + n)[0])
            .collect();
        let server = Server::start(&pair.server, &targets, &[]);
        let (ours, theirs) = (http::free_address(), http::free_address());
        let daemon = Daemon::start(&pair.both(), &["--listen", &ours.to_string()]);
        let exporter = exporter(&daemon, theirs);
        let clients = Clients {
            connections: 4 * u32::from(ports),
            threads: 4,
            targets,
        };
        clients.run(&pair.client);
        // All rows are in it.
        daemon.snapshot();
        let served = [
            ("daemon", ours, daemon.process().pid()),
            ("exporter", theirs, exporter.pid()),
        ];
        for (name, address, pid) in served {
            println!("--- {name}, {rows}; load average before {}", load_average());
            let before = anonymous(pid) / MIB;
            let used = processor_seconds(pid);
            let (most, outcome) = most(pid, || {
                CROWD.beside_others(address, &daemon.socket(), LASTING)
            });
            println!(
                "load average after {}; {:.1} s of a processor in {} s",
                load_average(),
                processor_seconds(pid) - used,
                LASTING.as_secs()
            );
            for waits in &outcome.waits {
                println!("{waits}");
                assert!(!waits.answered.is_empty(), "nobody was answered: {waits}");
            }
            println!(
                "the crowd: {} scrapes answered, {} not, {} MiB",
                outcome.answered,
                outcome.failed,
                outcome.bytes / MIB
            );
            thread::sleep(Duration::from_secs(skip::scaled(60).into()));
            println!(
                "RssAnon: {before} MiB before, {} MiB at most, {} MiB after a rest",
                most / MIB,
                anonymous(pid) / MIB
            );
        }
        exporter.stop(libc::SIGTERM);
        daemon.stop();
        server.stop();
    }
}
