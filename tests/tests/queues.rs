//! Queues: of connections that wait for `accept()`, of SYNs that wait for
//! their last segment, and of bytes that nobody reads.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use probe_tests::{
    daemon::{self, Daemon},
    frame,
    load::{self, Server, on_port},
    netns::Pair,
    poll,
    skip::{self, scaled},
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::{Histogram, Snapshot, TcpSeries, bucket_seconds};
use socket2::SockRef;

const PORT: u16 = 8080;

/// A histogram of all listeners.
fn accept_queue(snapshot: &Snapshot) -> Histogram {
    (snapshot.listeners.iter()).fold(Histogram::default(), |mut all, listener| {
        all.add(&listener.accept_queue);
        all
    })
}

/// A listener at each address of the server.
fn listeners(pair: &Pair) -> Vec<(SocketAddr, TcpListener)> {
    let bound = on_port(&Pair::SERVERS, PORT).into_iter().map(|target| {
        let listener = pair.server.run(|| TcpListener::bind(target));
        (target, listener.expect("a listener"))
    });
    bound.collect()
}

/// Waits until a listener has somebody to accept.
fn somebody_waits(listener: &TcpListener) {
    poll::readable(listener, "a connection comes");
}

#[test]
fn a_server_that_accepts_late_shows_in_the_accept_queue() {
    const TEST: &str = "a_server_that_accepts_late_shows_in_the_accept_queue";
    const LATE: Duration = Duration::from_millis(300);
    const ROUNDS: usize = 5;
    const AT_ONCE: usize = 4;
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    let listeners = listeners(&pair);
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();
    let mut waits = Vec::new();
    for (target, listener) in &listeners {
        for _ in 0..ROUNDS {
            // They wait for the program that sleeps, with their request sent.
            let mut clients: Vec<_> = (0..AT_ONCE)
                .map(|_| {
                    let mut client = pair.client.run(|| TcpStream::connect(target));
                    let client_ref = client.as_mut().expect("a connection");
                    client_ref.write_all(b"?").expect("the kernel takes it");
                    (Instant::now(), client.expect("a connection"))
                })
                .collect();
            somebody_waits(listener);
            thread::sleep(LATE);
            for (since, client) in &mut clients {
                let (mut stream, _) = listener.accept().expect("a connection");
                stream.read_exact(&mut [0]).expect("a request");
                waits.push(since.elapsed().as_secs_f64());
                stream.write_all(b"!").expect("the client reads");
                client.read_exact(&mut [0]).expect("an answer");
            }
        }
    }
    let theirs = &load::quiet(&pair.both(), 0) - &before;
    let snapshot = daemon.snapshot();
    let accepted = i64::try_from(waits.len()).expect("few of them");
    waits.sort_by(f64::total_cmp);

    let queue = accept_queue(&snapshot);
    let mut table = Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    table.equal(
        "opened = accepted",
        truth::sum(&snapshot, "server", |one| one.opened),
        accepted,
    );
    table.equal("waited in the queue = accepted", queue.count(), accepted);
    let series = truth::sum(&snapshot, "server", |one| one.accept_queue.count());
    table.equal("the same by peers", series, accepted);
    let others = truth::sum(&snapshot, "client", |one| one.accept_queue.count());
    table.equal("clients wait in no queue", others, 0);
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    let [middle, known] = [queue.quantile(0.5), Some(waits[waits.len() / 2])]
        .map(|median| median.expect("observations"));
    println!("accept queue: {middle:.6} s, by the program {known:.6} s, slept {LATE:?}");
    // The program's own clock began a moment late: when the client had sent.
    assert!(
        (middle / known - 1.0).abs() < 0.05 && known >= LATE.as_secs_f64(),
        "{middle} s in the accept queue instead of {known} s"
    );
    daemon.stop();
}

#[test]
fn the_true_end_of_the_accept_queue_can_be_had() {
    const TEST: &str = "the_true_end_of_the_accept_queue_can_be_had";
    const LATE: Duration = Duration::from_millis(200);
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    for (exact, expected) in [("false", 2 * LATE), ("true", LATE)] {
        let pair = Pair::new();
        let config = tempfile::NamedTempFile::new().expect("a file");
        let text = format!("[metrics]\naccept_queue_exact = {exact}\n");
        std::fs::write(config.path(), text).expect("a configuration");
        let path = config.path().to_str().expect("a path of letters");
        let daemon = Daemon::start(&pair.both(), &["--config", path]);
        for target in on_port(&Pair::SERVERS, PORT) {
            let listener = pair.server.run(|| TcpListener::bind(target));
            let listener = listener.expect("a listener");
            let mut client = pair.client.run(|| TcpStream::connect(target));
            let client = client.as_mut().expect("a connection");
            client.write_all(b"?").expect("the kernel takes it");
            somebody_waits(&listener);
            thread::sleep(LATE);
            let (mut stream, _) = listener.accept().expect("a connection");
            // Accepted, and not used yet.
            thread::sleep(LATE);
            stream.read_exact(&mut [0]).expect("a request");
        }
        load::quiet(&pair.both(), 0);
        let queue = accept_queue(&daemon.snapshot());
        let middle = queue.quantile(0.5).expect("observations");
        println!("accept_queue_exact = {exact}: {middle:.6} s");
        assert_eq!(queue.count(), Pair::SERVERS.len() as u64);
        let expected = expected.as_secs_f64();
        // A bucket is 4.4 % wide; a program can be woken late.
        assert!(
            (0.95..1.0 + 0.05 * f64::from(daemon::slowness())).contains(&(middle / expected)),
            "{middle} s in the accept queue instead of {expected} s"
        );
        daemon.stop();
    }
}

/// A system call with the number and the arguments of a 32-bit program, which has
/// negative error numbers.
#[cfg(target_arch = "x86_64")]
fn call_32(number: u32, arguments: [u32; 4]) -> i32 {
    let [a, b, c, d] = arguments.map(u64::from);
    let result: u64;
    // SAFETY: the calls of the tests read and write no memory: they are given numbers
    // and null pointers alone. The kernel keeps all registers but those of the result
    // and the scratch ones; `rbx`, which the compiler reserves, is given back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}", "int 0x80", "xchg rbx, {first}",
            first = inout(reg) a => _,
            inout("rax") u64::from(number) => result,
            in("rcx") b, in("rdx") c, in("rsi") d,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result as i32
}

/// `accept()` of a 32-bit program has another number, and that of `accept()` is another
/// call there.
#[cfg(target_arch = "x86_64")]
#[test]
fn calls_of_32_bit_programs_are_taken_for_what_they_are() {
    use std::os::fd::{AsRawFd as _, FromRawFd as _};

    const TEST: &str = "calls_of_32_bit_programs_are_taken_for_what_they_are";
    const LATE: Duration = Duration::from_millis(200);
    const ACCEPT4: u32 = 364;
    /// 43 is `accept()` of 64 bits: it returns clock ticks.
    const TIMES: u32 = 43;
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    // Without emulation the call is a fault, so a process of its own tries.
    let ia32 = std::fs::read_to_string("/proc/kallsyms").is_ok_and(|symbols| {
        symbols.contains(" __ia32_compat_sys_socketcall") || symbols.contains(" ia32_sys_call")
    });
    if !ia32 {
        skip::impossible(TEST, "this kernel runs no 32-bit programs");
        return;
    }
    let pair = Pair::new();
    let daemon = Daemon::configured(&pair.both(), "[metrics]\naccept_queue_exact = true\n", &[]);
    for (target, listener) in listeners(&pair) {
        let client = pair.client.run(|| TcpStream::connect(target));
        let mut client = client.expect("a connection");
        client.write_all(b"?").expect("the kernel takes it");
        somebody_waits(&listener);
        thread::sleep(LATE);
        let fd = call_32(ACCEPT4, [listener.as_raw_fd() as u32, 0, 0, 0]);
        assert!(fd >= 0, "accept4() of 32 bits: {fd}");
        // SAFETY: the call has just opened it, and nothing else closes it.
        let mut stream = unsafe { TcpStream::from_raw_fd(fd) };
        // Accepted, and not used yet; nor is it by calls that return any number.
        for _ in 0..1000 {
            call_32(TIMES, [0; 4]);
        }
        thread::sleep(LATE);
        stream.read_exact(&mut [0]).expect("a request");
    }
    load::quiet(&pair.both(), 0);
    let queue = accept_queue(&daemon.snapshot());
    let middle = queue.quantile(0.5).expect("observations");
    println!("32 bits: {middle:.6} s");
    assert_eq!(queue.count(), Pair::SERVERS.len() as u64);
    let ratio = middle / LATE.as_secs_f64();
    let most = 1.0 + 0.05 * f64::from(daemon::slowness());
    assert!(
        (0.95..most).contains(&ratio),
        "{middle} s instead of {LATE:?}"
    );
    daemon.stop();
}

/// Sends SYNs that nobody will complete, from addresses where a client is that
/// answers nothing.
fn flood(pair: &Pair, target: SocketAddr, count: u32) {
    const PORTS: std::ops::Range<u16> = 40_000..65_000;
    let source = match target {
        SocketAddr::V4(_) => Pair::CLIENT_V4,
        SocketAddr::V6(_) => Pair::CLIENT_V6,
    };
    pair.client.run(|| {
        for port in PORTS.cycle().take(count as usize) {
            let packet = frame::syn(SocketAddr::new(source, port), target);
            frame::send_ip(&packet, target.ip()).expect("a SYN leaves");
        }
    });
}

#[test]
fn a_flood_of_syns_leaves_every_number_exact() {
    const TEST: &str = "a_flood_of_syns_leaves_every_number_exact";
    const BACKLOG: i32 = 16;
    /// Ports of real clients: below those of the flood.
    const RANGE: &str = "1024 39999";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    for cookies in [true, false] {
        println!("SYN cookies: {cookies}");
        let pair = Pair::new();
        pair.client.sysctl("ipv4/ip_local_port_range", RANGE);
        pair.server.sysctl("ipv4/tcp_syncookies", u8::from(cookies));
        pair.server.sysctl("ipv4/tcp_synack_retries", 1);
        pair.server.sysctl("core/somaxconn", BACKLOG);
        // No reset frees a slot of the SYN queue.
        pair.client.nft(
            "table inet ep { chain pre { type filter hook prerouting priority raw;
                tcp dport 40000-65000 drop
            }; }",
        );
        let targets = on_port(&Pair::SERVERS, PORT);
        let server = Server::start(&pair.server, &targets, &[]);
        let daemon = Daemon::start(&pair.both(), &[]);
        let witness = Witness::start();
        let before = pair.counters();
        let (syns, real, begun) = (scaled(5_000), scaled(400), Instant::now());
        // The queues are full before the first real client comes.
        for target in &targets {
            flood(&pair, *target, 4 * BACKLOG.unsigned_abs());
        }
        let made = thread::scope(|scope| {
            for target in &targets {
                scope.spawn(|| flood(&pair, *target, syns));
            }
            // Without cookies nobody gets through.
            if !cookies {
                return 0;
            }
            let clients = load::Clients {
                connections: real,
                threads: 4,
                targets: targets.clone(),
            };
            clients.run(&pair.client).connections
        });
        let theirs = &load::quiet(&pair.both(), 0) - &before;
        let ext = |name: &str| theirs.get(&format!("TcpExt.{name}"));
        let drops = |snapshot: &Snapshot| {
            let drops = snapshot.listeners.iter().map(|listener| listener.drops);
            i64::try_from(drops.sum::<u64>()).expect("few of them")
        };
        let snapshot = daemon.visited(|snapshot| drops(snapshot) >= ext("ListenDrops"));
        let sum = |side: &str, value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, side, value);
        let made = i64::try_from(made).expect("few of them");
        println!(
            "{made} real connections, {} with cookies, {} cookies sent, {} drops",
            ext("SyncookiesRecv"),
            ext("SyncookiesSent"),
            ext("ListenDrops")
        );
        let mut table = Table::default();
        truth::against_kernel(&mut table, &snapshot, &theirs, 0);
        let passive = theirs.get("Tcp.PassiveOpens");
        table.equal(
            "opened, server = PassiveOpens",
            sum("server", |one| one.opened),
            passive,
        );
        for side in ["server", "client"] {
            table.equal("opened by real clients", sum(side, |one| one.opened), made);
        }
        let by_cookie = sum("server", |one| one.syn_cookies);
        table.equal(
            "syn_cookies = SyncookiesRecv",
            by_cookie,
            ext("SyncookiesRecv"),
        );
        table.equal(
            "syn_cookies of clients",
            sum("client", |one| one.syn_cookies),
            0,
        );
        table.equal(
            "handshakes of the server and cookies = opened",
            sum("server", |one| one.handshake.count() + one.syn_cookies),
            made,
        );
        table.equal(
            "handshakes of clients",
            sum("client", |one| one.handshake.count()),
            made,
        );
        table.allow(witness.hidden() + truth::preempted(&snapshot));
        table.check();
        if cookies {
            assert!(ext("SyncookiesSent") > 0, "the flood fills the SYN queue");
            assert!(ext("SyncookiesRecv") > 0, "some come in with a cookie");
        } else {
            assert!(ext("ListenDrops") > 0, "the flood fills the SYN queue");
        }
        // Anything longer than the whole test was made up.
        let lasted = begun.elapsed().as_secs_f64();
        for series in &snapshot.tcp {
            let longest = series
                .handshake
                .slots
                .last()
                .map(|(slot, _)| bucket_seconds(*slot));
            let side = &series.labels.side;
            assert!(
                longest.is_none_or(|(low, _)| low < lasted),
                "{side}: a handshake of {longest:?}"
            );
        }
        daemon.stop();
        server.stop();
    }
}

#[test]
fn a_receiver_that_does_not_read_shows_its_closed_window() {
    const TEST: &str = "a_receiver_that_does_not_read_shows_its_closed_window";
    /// How often each receiver is slow.
    const TIMES: u64 = 5;
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    let listeners = listeners(&pair);
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();
    let mut closed = 0;
    for (target, listener) in &listeners {
        let client = pair.client.run(|| TcpStream::connect(target));
        let mut client = client.expect("a connection");
        let (mut server, _) = listener.accept().expect("a connection");
        // Small buffers fill in a moment.
        let (small, socket) = (64 << 10, SockRef::from(&server));
        socket.set_recv_buffer_size(small).expect("an option");
        client.set_nonblocking(true).expect("an option");
        for _ in 0..TIMES {
            // Until the sender is blocked and stays so: its probes find the
            // window closed.
            let (mut sent, mut since) = (0, Instant::now());
            while since.elapsed() < Duration::from_millis(700) {
                match client.write(&[1; 16384]) {
                    Ok(length) => {
                        sent += length;
                        since = Instant::now();
                    }
                    Err(_) => thread::sleep(Duration::from_millis(10)),
                }
            }
            assert!(sent > small, "the buffers are filled: {sent} bytes");
            let mut data = vec![0; sent];
            server.read_exact(&mut data).expect("all that was sent");
            closed += 1;
        }
    }
    let theirs = &load::quiet(&pair.both(), 0) - &before;
    let snapshot = daemon.snapshot();
    let mut table = Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    let shut = truth::sum(&snapshot, "server", |one| one.zero_window);
    // The kernel counts each advertisement of a window below one unit of its
    // scale after one that was not, and each of one that was not after that; a
    // look at the socket finds those that were closed to the byte and last until
    // the next segment. All were opened again. One that the kernel would close but
    // for what it has offered before (TCPWantZeroWindowAdv) stays open, so such
    // are in neither.
    table.at_least("zero windows found >= times", shut, closed);
    let ext = |name: &str| theirs.get(&format!("TcpExt.{name}"));
    for (what, announced) in [
        ("zero windows <= TCPToZeroWindowAdv", "TCPToZeroWindowAdv"),
        (
            "zero windows <= TCPFromZeroWindowAdv",
            "TCPFromZeroWindowAdv",
        ),
    ] {
        table.at_most(what, shut, ext(announced));
    }
    let others = truth::sum(&snapshot, "client", |one| one.zero_window);
    table.equal("zero windows of who reads all", others, 0);
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    daemon.stop();
}
