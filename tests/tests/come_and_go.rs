//! What goes and comes again under its name is followed, and nothing that is watched is
//! held: interfaces and network namespaces.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use probe_tests::{
    daemon::{self, Daemon},
    netns::{self, DEVICE, Netns, Pair, ip},
    poll, skip, truth,
    truth::Table,
    witness::perf_events,
};
use probe_user::model::{Program, Snapshot};

const PORT: u16 = 8080;
/// How long a deleted namespace may stay.
const GONE: Duration = Duration::from_secs(1);

fn xdp(snapshot: &Snapshot) -> &Program {
    let found = snapshot
        .programs
        .iter()
        .find(|one| one.hook.starts_with("xdp/"));
    found.expect("the program of the interface")
}

fn udp_packets(snapshot: &Snapshot) -> u64 {
    let all = snapshot.devices.iter().flat_map(|device| &device.traffic);
    all.filter(|one| one.protocol == "udp")
        .map(|one| one.packets)
        .sum()
}

fn lost(snapshot: &Snapshot, cause: &str) -> u64 {
    let of_xdp = snapshot
        .lost
        .iter()
        .filter(|one| one.hook == "xdp" && one.cause == cause);
    of_xdp.map(|one| one.count).sum()
}

/// Datagrams to the server, whose port is closed.
fn send(pair: &Pair, count: usize) {
    let socket = pair.client.run(|| UdpSocket::bind((Pair::CLIENT_V4, 0)));
    let socket = socket.expect("a UDP socket");
    for _ in 0..count {
        // The answer to an earlier one may be an error.
        let at = (Pair::SERVER_V4, 9);
        socket
            .send_to(b"x", at)
            .or_else(|_| socket.send_to(b"x", at))
            .expect("it leaves");
    }
}

#[test]
fn an_interface_that_comes_again_is_followed() {
    let Some(_turn) = skip::turn("an_interface_that_comes_again_is_followed") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&[&pair.server], &["--interface", DEVICE]);
    send(&pair, 100);
    poll::until("all have come", || {
        (udp_packets(&daemon.snapshot()) == 100).then_some(())
    });
    pair.server.ip(&format!("link del {DEVICE}"));
    let gone = poll::until("the daemon sees that it is gone", || {
        Some(daemon.snapshot()).filter(|snapshot| !xdp(snapshot).attached)
    });
    assert_eq!(xdp(&gone).note, "the interface is not there");
    assert_eq!(gone.devices[0].xdp_mode, "");
    // What comes before the program is attached again is lost, and counted.
    pair.join();
    send(&pair, 50);
    let back = poll::until("the program is attached again", || {
        Some(daemon.snapshot()).filter(|snapshot| xdp(snapshot).attached)
    });
    let early = udp_packets(&back) - 100;
    send(&pair, 100);
    let last = poll::until("the rest has come", || {
        Some(daemon.snapshot()).filter(|snapshot| udp_packets(snapshot) == 200 + early)
    });
    assert!(
        lost(&last, "detached") + early >= 50,
        "{early} were counted, and {} are said to be lost of 50",
        lost(&last, "detached")
    );
    assert_eq!(last.devices.len(), 1);
    // Another one that gets its name in between is not mistaken for it.
    pair.server.ip(&format!("link set {DEVICE} down"));
    pair.server.ip(&format!("link set {DEVICE} name ep-other"));
    poll::until("the name has gone", || {
        (!xdp(&daemon.snapshot()).attached).then_some(())
    });
    let left = pair.server.ip("-json -details link show dev ep-other");
    assert!(
        !left.contains("\"xdp\""),
        "a program is left behind: {left}"
    );
    daemon.stop();
}

/// A namespace of a name of its own, joined to the client by the device `far`.
struct Guest(String);

impl Guest {
    fn new(pair: &Pair) -> Self {
        let guest = Self(format!("{}-guest", pair.client.name()));
        guest.make(pair);
        guest
    }

    fn make(&self, pair: &Pair) {
        let name = &self.0;
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        pair.client.ip(&format!(
            "link add far type veth peer name near netns {name}"
        ));
        pair.client.ip("addr add 10.78.0.1/24 dev far");
        pair.client.ip("link set far up");
        ip(&format!("-n {name} addr add 10.78.0.2/24 dev near"));
        ip(&format!("-n {name} link set near up"));
    }

    /// Connections from the client, opened and closed.
    fn talk(&self, pair: &Pair, count: usize) {
        let at = SocketAddr::from(([10, 78, 0, 2], PORT));
        let path = PathBuf::from("/run/netns").join(&self.0);
        let listener = inside(&path, || TcpListener::bind(at)).expect("a port");
        for _ in 0..count {
            let client = pair
                .client
                .run(|| TcpStream::connect(at))
                .expect("it is open");
            let (server, _) = listener.accept().expect("it is open");
            drop(client);
            drop(server);
        }
    }

    /// Deletes it; returns how long the far end of its device stayed.
    fn delete(&self, pair: &Pair) -> Duration {
        ip(&format!("netns del {}", self.0));
        let begin = Instant::now();
        let links = || pair.client.ip("-brief link show");
        while links().contains("far@") && begin.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(20));
        }
        begin.elapsed()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        netns::remove(&self.0);
    }
}

/// Calls a function on a thread inside the namespace of a path, which is closed then.
fn inside<T: Send>(path: &std::path::Path, work: impl FnOnce() -> T + Send) -> T {
    use std::os::fd::AsRawFd as _;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = fs::File::open(path).expect("the namespace");
            // SAFETY: `file` owns the descriptor and outlives the call.
            let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
            work()
        });
        thread.join().expect("no panic")
    })
}

fn opened(daemon: &Daemon) -> u64 {
    let snapshot = daemon.snapshot();
    truth::sum(&snapshot, "server", |one| one.opened)
}

fn goes_and_comes(test: &str, by_name: bool) {
    let Some(_turn) = skip::turn(test) else {
        return;
    };
    let pair = Pair::new();
    let guest = Guest::new(&pair);
    let client = pair.client.name().to_owned();
    // A service that is told by the namespace follows it too.
    let text = format!(
        "[[service]]\nname = \"guest\"\nside = \"server\"\nnetns = \"{}\"\n",
        guest.0
    );
    let arguments: &[&str] = if by_name {
        &["--netns", &client, "--netns", &guest.0]
    } else {
        &[]
    };
    let daemon = Daemon::configured(&[], &text, arguments);
    let here = |snapshot: &Snapshot| {
        let of_guest = snapshot.tcp.iter().filter(|one| one.labels.svc == "guest");
        of_guest.map(|one| one.opened).sum::<u64>()
    };
    guest.talk(&pair, 5);
    poll::until("they are counted", || {
        (here(&daemon.snapshot()) == 5).then_some(())
    });
    thread::sleep(Duration::from_secs(if by_name { 2 } else { 11 }));
    let mut table = Table::default();
    for more in [7, 9] {
        let took = guest.delete(&pair);
        assert!(took < GONE * daemon::slowness(), "it stayed for {took:?}");
        println!("gone after {took:?}");
        guest.make(&pair);
        let before = here(&daemon.snapshot());
        guest.talk(&pair, more);
        let after = poll::until("they are counted", || {
            Some(here(&daemon.snapshot())).filter(|now| *now >= before + more as u64)
        });
        table.equal("opened in the new one", after - before, more as i64);
    }
    table.check();
    let snapshot = daemon.snapshot();
    if by_name {
        assert_eq!(snapshot.network_namespaces.watched, 2);
        assert_eq!(snapshot.network_namespaces.left_out, 0);
        assert_eq!(opened(&daemon), 21);
    }
    daemon.stop();
}

#[test]
fn a_namespace_that_is_watched_by_name_goes_and_comes() {
    goes_and_comes("a_namespace_that_is_watched_by_name_goes_and_comes", true);
}

#[test]
fn a_namespace_among_all_goes_and_comes() {
    goes_and_comes("a_namespace_among_all_goes_and_comes", false);
}

/// A connection may outlive the name of its namespace.
#[test]
fn a_connection_without_the_name_of_its_namespace_is_counted_to_its_end() {
    const TEST: &str = "a_connection_without_the_name_of_its_namespace_is_counted_to_its_end";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    let guest = Guest::new(&pair);
    let daemon = Daemon::start(&[], &["--netns", &guest.0]);
    let path = PathBuf::from("/run/netns").join(&guest.0);
    let at = SocketAddr::from(([127, 0, 0, 1], PORT));
    let ends = inside(&path, || {
        let listener = TcpListener::bind(at).expect("a port");
        let client = TcpStream::connect(at).expect("it is open");
        (client, listener.accept().expect("it is open").0, listener)
    });
    let sum = |snapshot: &Snapshot| {
        ["server", "client"].map(|side| {
            let number =
                |of: fn(&probe_user::model::TcpSeries) -> u64| truth::sum(snapshot, side, of);
            (
                number(|one| one.opened),
                number(|one| one.open),
                number(|one| one.closed.sum()),
            )
        })
    };
    poll::until("it is open", || {
        (sum(&daemon.snapshot()) == [(1, 1, 0); 2]).then_some(())
    });
    // The sockets hold the namespace.
    ip(&format!("netns del {}", guest.0));
    poll::until("the name is gone", || {
        (daemon.snapshot().network_namespaces.left_out == 1).then_some(())
    });
    drop(ends);
    poll::until("it is closed", || {
        (sum(&daemon.snapshot()) == [(1, 0, 1); 2]).then_some(())
    });
    daemon.stop();
}

/// Names below `/run/netns` that a runtime which crashed has left.
struct Stale(Vec<PathBuf>);

impl Drop for Stale {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

#[test]
fn names_of_no_namespace_are_counted_and_said_once() {
    let Some(_turn) = skip::turn("names_of_no_namespace_are_counted_and_said_once") else {
        return;
    };
    let netns = Netns::new();
    let name = |n| format!("{}-stale{n}", netns.name());
    let path = |n| netns.path().with_file_name(name(n));
    let stale = Stale((0..3).map(path).collect());
    for path in &stale.0 {
        fs::write(path, "").expect("a file");
    }
    let daemon = Daemon::start(&[], &[]);
    let snapshot = poll::until("they were looked at twice", || {
        Some(daemon.snapshot()).filter(|snapshot| snapshot.network_namespaces.left_out >= 3)
    });
    let named = &snapshot.network_namespaces.left_out_names;
    for n in 0..3 {
        let line = format!("{}: not a network namespace", name(n));
        let told = named.iter().filter(|told| **told == line).count();
        assert_eq!(told, 1, "{named:?}");
    }
    // Ten are named at most, and so all are where they are no more.
    let left_out = snapshot.network_namespaces.left_out;
    assert_eq!(named.len() as u64, left_out.min(10), "{named:?}");
    thread::sleep(Duration::from_secs(12));
    let messages = daemon.process().messages();
    let said = messages.lines().filter(|line| line.contains("left out"));
    assert_eq!(said.count(), 1, "{messages}");
    daemon.stop();
}

/// Namespaces made without a program for each.
struct Many(Vec<PathBuf>);

impl Many {
    fn new(first: &Netns, count: usize) -> Self {
        let path = |n| first.path().with_file_name(format!("{}-{n}", first.name()));
        let many = Self((0..count).map(path).collect());
        thread::scope(|scope| {
            scope.spawn(|| {
                for path in &many.0 {
                    fs::write(path, "").expect("a file");
                    // SAFETY: it moves this thread, which ends with the loop, and touches
                    // no memory.
                    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
                    assert_eq!(result, 0, "unshare: {}", std::io::Error::last_os_error());
                    mount(path);
                }
            });
        });
        many
    }
}

/// Gives the namespace of this thread a name.
fn mount(path: &std::path::Path) {
    let text = |path: &std::path::Path| {
        std::ffi::CString::new(path.to_str().expect("plain letters")).expect("no zero")
    };
    let (from, to) = (text("/proc/thread-self/ns/net".as_ref()), text(path));
    // SAFETY: all are strings that end with zero, or null where the kernel takes that,
    // and outlive the call.
    let result = unsafe {
        libc::mount(
            from.as_ptr(),
            to.as_ptr(),
            c"none".as_ptr(),
            libc::MS_BIND,
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "mount: {}", std::io::Error::last_os_error());
}

impl Drop for Many {
    fn drop(&mut self) {
        for path in &self.0 {
            let text = std::ffi::CString::new(path.to_str().unwrap_or_default());
            let text = text.unwrap_or_default();
            // SAFETY: a string that ends with zero and outlives the call.
            unsafe { libc::umount2(text.as_ptr(), libc::MNT_DETACH) };
            let _ = fs::remove_file(path);
        }
    }
}

#[test]
fn more_namespaces_than_files_are_visited() {
    const TEST: &str = "more_namespaces_than_files_are_visited";
    const COUNT: usize = 1_100;
    /// Hard, so that raising it does not help.
    const FILES: u64 = 256;
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if skip::is_emulated() {
        skip::impossible(TEST, "it takes emulated processors minutes to make them");
        return;
    }
    let first = Netns::new();
    let many = Many::new(&first, COUNT);
    let daemon = Daemon::start_limited(FILES);
    let snapshot = poll::until("all are visited", || {
        let snapshot = daemon.snapshot();
        (snapshot.network_namespaces.watched >= COUNT as u64).then_some(snapshot)
    });
    assert_eq!(snapshot.network_namespaces.left_out, 0);
    // A shielded process 1 takes files by its threads.
    let counters = perf_events(daemon.process().pid()) as u64;
    let others = snapshot.process.open_fds.saturating_sub(counters);
    assert!(others < FILES / 2, "{others} and {counters}");
    println!(
        "{} visited with {} open files, a snapshot in {:.3} s",
        snapshot.network_namespaces.watched, snapshot.process.open_fds, snapshot.duration_seconds
    );
    drop(many);
    daemon.stop();
}
