//! What is told of single packets that the kernel dropped.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt as _,
    process,
};

use probe_tests::{
    daemon::Daemon,
    filter::Filter,
    netns::{Netns, Pair},
    poll, skip,
};
use probe_user::model::{LastDrop, Snapshot};

/// Number of a namespace.
fn number(netns: &Netns) -> u32 {
    let inode = fs::metadata(netns.path()).expect("the namespace").ino();
    u32::try_from(inode).expect("a number of 32 bits")
}

/// Waits for a sample of a reason that was on its way to an address.
#[track_caller]
fn find(daemon: &Daemon, reason: &str, destination: SocketAddr) -> LastDrop {
    let destination = destination.to_string();
    let is_it = |one: &&LastDrop| {
        one.reason == reason && one.destination.as_deref() == Some(destination.as_str())
    };
    poll::until("the drop is told of", || {
        daemon.snapshot().last_drops.iter().find(is_it).cloned()
    })
}

/// Addresses of the kernel's functions by name, and all in their order.
struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// `None`, said loudly, where they are hidden.
    fn read(test: &str) -> Option<Self> {
        let text = fs::read_to_string("/proc/kallsyms").expect("the symbols");
        let mut all: Vec<(u64, String)> = (text.lines())
            .filter_map(|line| {
                let mut words = line.split_ascii_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                Some((address, words.nth(1)?.to_owned()))
            })
            .collect();
        if all.iter().all(|(address, _)| *address == 0) {
            skip::skipped(test, "/proc/kallsyms has no addresses");
            return None;
        }
        all.sort();
        Some(Self(all))
    }

    /// Whether a function of that name is longer than the offset.
    fn holds(&self, function: &str) -> bool {
        let place = function.split(' ').next().unwrap_or_default();
        let (name, offset) = place.split_once("+0x").expect("name and offset");
        let offset = u64::from_str_radix(offset, 16).expect("an offset");
        let mut found = self.0.iter().filter(|(_, symbol)| symbol == name);
        found.any(|(address, _)| {
            let next = self.0.iter().find(|(other, _)| other > address);
            next.is_some_and(|(next, _)| address + offset < *next)
        })
    }
}

fn of_reason(snapshot: &Snapshot, reason: &str) -> u64 {
    let drops = snapshot.drops.iter().filter(|drop| drop.reason == reason);
    drops.map(|drop| drop.count).sum()
}

#[test]
fn a_drop_tells_where_and_whose_it_was() {
    const TEST: &str = "a_drop_tells_where_and_whose_it_was";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let Some(symbols) = Symbols::read(TEST) else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let me = Some(process::id());
    for (address, port) in Pair::SERVERS.into_iter().zip([8080, 8081]) {
        let at = SocketAddr::new(address, port);
        let (listener, mut client, mut server) = pair.connect(at);
        let from = client.local_addr().expect("an address");
        let svc = port.to_string();
        daemon.visited(|snapshot| snapshot.listeners.iter().any(|one| one.svc == svc));

        let payload = |ports: &str| format!("tcp {ports} {port} tcp flags & psh == psh");
        let filter = Filter::new(&pair.server, "input", &payload("dport"));
        client.write_all(b"lost").expect("it is sent");
        let to_server = find(&daemon, "NETFILTER_DROP", at);
        filter.until(1);
        let filter = Filter::new(&pair.client, "input", &payload("sport"));
        server.write_all(b"lost").expect("it is sent");
        let to_client = find(&daemon, "NETFILTER_DROP", from);
        filter.until(1);
        for (drop, side, netns, source) in [
            (to_server, "server", &pair.server, from),
            (to_client, "client", &pair.client, at),
        ] {
            println!("{drop:?}");
            assert_eq!(
                (drop.subsystem.as_str(), drop.protocol.as_str()),
                ("core", "tcp")
            );
            assert_eq!(
                (drop.side.as_str(), drop.svc.as_str()),
                (side, svc.as_str())
            );
            assert_eq!(drop.source, Some(source.to_string()));
            assert_eq!(drop.netns, number(netns));
            assert_eq!(drop.pid, me, "this process listens, and connected");
            assert!(drop.process.is_some() && drop.owner.is_some());
            assert!(symbols.holds(&drop.function), "{}", drop.function);
        }
        drop((listener, client, server));
    }
    daemon.stop();
}

#[test]
fn a_flood_leaves_what_is_rare() {
    const FLOOD: u64 = 3000;
    let Some(_turn) = skip::turn("a_flood_leaves_what_is_rare") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let filtered = SocketAddr::new(Pair::SERVER_V4, 10);
    let closed = SocketAddr::new(Pair::SERVER_V4, 9);
    let send = |target: SocketAddr, count: u64| {
        pair.client.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a UDP socket");
            for _ in 0..count {
                socket.send_to(b"nobody", target).expect("it leaves");
            }
            socket.local_addr().expect("an address").port()
        })
    };
    let filter = Filter::new(&pair.server, "input", "udp dport 10");
    let port = send(filtered, 1);
    let rare = find(&daemon, "NETFILTER_DROP", filtered);
    filter.until(1);
    assert_eq!(
        rare.source,
        Some(SocketAddr::new(Pair::CLIENT_V4, port).to_string())
    );
    assert_eq!((rare.side.as_str(), rare.svc.as_str()), ("none", "none"));
    assert_eq!(rare.netns, number(&pair.server));

    let before = daemon.snapshot();
    // A socket without a peer is told of no error, so all of it is sent.
    send(closed, FLOOD);
    let after = poll::until("the flood has come", || {
        let after = daemon.snapshot();
        (of_reason(&after, "NO_SOCKET") >= FLOOD).then_some(after)
    });
    assert_eq!(of_reason(&after, "NO_SOCKET"), FLOOD);
    let sampled = after.drops_sampled - before.drops_sampled;
    println!("{sampled} of {FLOOD} were samples");
    assert!((1..FLOOD).contains(&sampled));
    let shown = |reason: &str| {
        let of_reason = after.last_drops.iter().filter(|one| one.reason == reason);
        of_reason.count()
    };
    assert!((1..=8).contains(&shown("NO_SOCKET")));
    assert_eq!(shown("NETFILTER_DROP"), 1);
    let newest = &after.last_drops[0];
    assert!(newest.time_seconds <= after.timestamp_seconds);
    assert!(newest.time_seconds >= before.timestamp_seconds - before.duration_seconds);
    daemon.stop();
}
