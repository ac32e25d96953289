//! Packets that die in ways known beforehand.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
};

use probe_tests::{
    daemon::Daemon,
    frame, load,
    netns::{DEVICE, Pair},
    poll, refuse, skip,
    truth::Table,
};
use probe_user::model::Snapshot;
use socket2::Protocol;

const EACH: usize = 50;
const ANY: u16 = 40000;

fn count(snapshot: &Snapshot, reason: &str, protocol: &str) -> u64 {
    (snapshot.drops.iter())
        .filter(|drop| drop.class == "loss" && drop.subsystem == "core")
        .filter(|drop| drop.reason == reason && drop.protocol == protocol)
        .map(|drop| drop.count)
        .sum()
}

/// Sends datagrams from the client's namespace.
fn send(pair: &Pair, target: SocketAddr, ttl: u32, payload: &[u8]) {
    pair.client.run(|| {
        let any: IpAddr = match target {
            SocketAddr::V4(_) => [0; 4].into(),
            SocketAddr::V6(_) => [0; 16].into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).expect("a UDP socket");
        let raw = socket2::SockRef::from(&socket);
        match target {
            SocketAddr::V4(_) => raw.set_ttl_v4(ttl).expect("a TTL"),
            SocketAddr::V6(_) => raw.set_unicast_hops_v6(ttl).expect("a hop limit"),
        }
        for _ in 0..EACH {
            socket.send_to(payload, target).expect("a datagram leaves");
        }
    });
}

#[test]
fn six_ways_to_die_are_told_apart_and_counted() {
    let Some(_turn) = skip::turn("six_ways_to_die_are_told_apart_and_counted") else {
        return;
    };
    let pair = Pair::new();
    pair.server.nft(
        "table inet ep { chain pre { type filter hook prerouting priority raw;
            udp dport 10 drop
        }; }",
    );
    // The way on leads back to where the packets came from: it is not reached.
    for (family, beyond, via) in [
        ("-4", "10.99.0.0/24", "10.77.0"),
        ("-6", "fd99::/64", "fd77:"),
    ] {
        let hop = |host| {
            if family == "-4" {
                format!("{via}.{host}")
            } else {
                format!("{via}:{host}")
            }
        };
        pair.server.ip(&format!(
            "{family} route add {beyond} via {} dev {DEVICE}",
            hop(98)
        ));
        pair.client.ip(&format!(
            "{family} route add {beyond} via {} dev {DEVICE}",
            hop(1)
        ));
    }
    pair.server.sysctl("ipv4/ip_forward", 1);
    pair.server.sysctl("ipv6/conf/all/forwarding", 1);
    for scope in ["all", DEVICE] {
        pair.server
            .sysctl(&format!("ipv4/conf/{scope}/rp_filter"), 1);
    }
    let full: Vec<UdpSocket> = pair.server.run(|| {
        let bind = |address| {
            let socket = UdpSocket::bind(SocketAddr::new(address, 12)).expect("a UDP socket");
            let raw = socket2::SockRef::from(&socket);
            raw.set_recv_buffer_size(1).expect("a small buffer");
            // Or nothing would be dropped for want of room.
            let size = raw.recv_buffer_size().expect("its size");
            assert!(size < EACH * 512, "{size} bytes hold all that is sent");
            socket
        };
        Pair::SERVERS.map(bind).into()
    });

    let daemon = Daemon::start(&pair.both(), &[]);
    let (before, ours_before) = (pair.counters(), daemon.snapshot());
    for (server, client) in Pair::SERVERS
        .into_iter()
        .zip([Pair::CLIENT_V4, Pair::CLIENT_V6])
    {
        let at = |port| SocketAddr::new(server, port);
        send(&pair, at(9), 64, b"nobody listens");
        refuse::failing(&pair.client, at(9), EACH as u32, None, libc::ECONNREFUSED);
        send(&pair, at(10), 64, b"filtered");
        pair.client.run(|| {
            let mut bad = frame::udp(SocketAddr::new(client, ANY), at(11), frame::TTL, b"broken");
            let last = bad.last_mut().expect("a payload");
            *last ^= 0xff;
            for _ in 0..EACH {
                frame::send_ip(&bad, server).expect("a packet leaves");
            }
        });
        send(&pair, at(12), 64, &[0; 512]);
    }
    send(&pair, ([10, 99, 0, 1], ANY).into(), 1, b"too far");
    send(
        &pair,
        ([0xfd99, 0, 0, 0, 0, 0, 0, 1], ANY).into(),
        1,
        b"too far",
    );
    pair.client.run(|| {
        let spoofed = SocketAddr::from(([10, 88, 0, 1], ANY));
        let target = SocketAddr::new(Pair::SERVER_V4, ANY);
        let packet = frame::udp(spoofed, target, frame::TTL, b"not from here");
        for _ in 0..EACH {
            frame::send_ip(&packet, target.ip()).expect("a packet leaves");
        }
    });
    let (after, ours_after) = (&load::quiet(&pair.both(), 0) - &before, daemon.snapshot());
    let ours = |reason: &str, protocol: &str| {
        count(&ours_after, reason, protocol) - count(&ours_before, reason, protocol)
    };
    let each = EACH as i64;

    let mut table = Table::default();
    table.equal("no listener, udp: sent", ours("NO_SOCKET", "udp"), 2 * each);
    table.equal(
        "no listener, udp: kernel",
        ours("NO_SOCKET", "udp"),
        after.get("Udp.NoPorts") + after.get("Udp6NoPorts"),
    );
    table.equal("no listener, tcp: sent", ours("NO_SOCKET", "tcp"), 2 * each);
    table.equal("filtered: sent", ours("NETFILTER_DROP", "udp"), 2 * each);
    table.equal("bad checksum: sent", ours("UDP_CSUM", "udp"), 2 * each);
    table.equal(
        "bad checksum: kernel",
        ours("UDP_CSUM", "udp"),
        after.get("Udp.InCsumErrors") + after.get("Udp6InCsumErrors"),
    );
    let overrun = after.get("Udp.RcvbufErrors") + after.get("Udp6RcvbufErrors");
    assert!(overrun > 0, "the buffers are full");
    table.equal(
        "buffer full: kernel",
        ours("SOCKET_RCVBUFF", "udp"),
        overrun,
    );
    table.equal("TTL: sent", ours("IP_INHDR", "udp"), 2 * each);
    table.equal(
        "TTL: kernel",
        ours("IP_INHDR", "udp"),
        after.get("Ip.InHdrErrors") + after.get("Ip6InHdrErrors"),
    );
    table.equal("reverse path: sent", ours("IP_RPFILTER", "udp"), each);
    table.equal(
        "reverse path: kernel",
        ours("IP_RPFILTER", "udp"),
        after.get("TcpExt.IPReversePathFilter"),
    );
    // Only what is TCP may be somebody's, and nobody listens there.
    let somebodys = (ours_after.drops.iter())
        .filter(|drop| drop.side != "none" || drop.svc != "none")
        .map(|drop| drop.count);
    table.equal("somebody's", somebodys.sum(), 0);
    let lost = ours_after
        .lost
        .iter()
        .filter(|lost| lost.hook == "kfree_skb");
    table.equal("lost", lost.map(|lost| lost.count).sum(), 0);
    table.check();
    drop(full);
    daemon.stop();
}

#[test]
fn what_a_normal_end_frees_is_no_loss() {
    let Some(_turn) = skip::turn("what_a_normal_end_frees_is_no_loss") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = daemon.snapshot();
    for address in Pair::SERVERS {
        let address = SocketAddr::new(address, 8080);
        let listener = pair
            .server
            .run(|| load::listen(address, Protocol::TCP, 8))
            .expect("a listener");
        for _ in 0..EACH {
            let mut client = pair
                .client
                .run(|| TcpStream::connect(address))
                .expect("a connection");
            let (server, _) = listener.accept().expect("a connection");
            let mut server = TcpStream::from(server);
            client.write_all(b"ask").expect("it is sent");
            drop(client);
            let mut asked = Vec::new();
            server.read_to_end(&mut asked).expect("it arrives");
            assert_eq!(asked, b"ask");
        }
    }
    load::quiet(&pair.both(), 0);
    let after = daemon.snapshot();
    let sum = |snapshot: &Snapshot, class: &str| -> u64 {
        (snapshot.drops.iter())
            .filter(|drop| drop.protocol == "tcp" && drop.class == class)
            .map(|drop| drop.count)
            .sum()
    };
    // The server's FIN finds a socket that nobody reads any more. Older kernels
    // have no name for that end of it.
    let unnamed = count(&after, "NOT_SPECIFIED", "tcp") - count(&before, "NOT_SPECIFIED", "tcp");
    let freed = sum(&after, "housekeeping") - sum(&before, "housekeeping");
    println!("{freed} freed, {unnamed} without a reason");
    assert_eq!(sum(&after, "loss") - sum(&before, "loss"), unnamed);
    let ended = 2 * EACH as u64;
    assert!(
        freed == ended || freed == 0 && unnamed >= ended,
        "{freed} freed, {unnamed} without a reason"
    );
    daemon.stop();
}

#[test]
fn a_full_accept_queue_shows_as_the_kernel_counts_it() {
    let Some(_turn) = skip::turn("a_full_accept_queue_shows_as_the_kernel_counts_it") else {
        return;
    };
    let pair = Pair::new();
    pair.server.sysctl("ipv4/tcp_synack_retries", 1);
    let daemon = Daemon::start(&pair.both(), &[]);
    let before = pair.counters();
    // Nobody accepts; v6 alone meets a full queue that stays.
    let queues: Vec<_> = (Pair::SERVERS.iter())
        .map(|address| {
            let address = SocketAddr::new(*address, 8080);
            pair.server
                .run(|| load::listen(address, Protocol::TCP, 2))
                .expect("a listener")
        })
        .collect();
    let waiting: Vec<_> = (Pair::SERVERS.iter())
        .flat_map(|address| refuse::waiting(&pair.client, SocketAddr::new(*address, 8080), 30, 2))
        .collect();
    let counted = |name: &str| (&pair.counters() - &before).get(name);
    let drops = || counted("TcpExt.ListenDrops");
    poll::until("connections are dropped", || (drops() >= 60).then_some(()));
    // The listeners are visited now and then, less often where that costs more.
    let agree = |when: &str| {
        poll::until(when, || {
            let snapshot = daemon.snapshot();
            let sum: u64 = snapshot.listeners.iter().map(|one| one.drops).sum();
            let overflows = counted("TcpExt.ListenOverflows");
            println!(
                "{when}: {sum} of {}, {} of {overflows} since the queue was full",
                drops(),
                snapshot.listen_overflows
            );
            let numbers = [sum, snapshot.listen_overflows].map(i64::try_from);
            (numbers == [Ok(drops()), Ok(overflows)]).then_some(snapshot)
        })
    };
    let snapshot = agree("while they listen");
    let full = snapshot.listeners.iter().find(|one| one.svc == "8080");
    let full = full.expect("the listeners of the test");
    // One more than the limit for each; two that come at once pass the check.
    let listed = pair.server.command("ss", &["-Hltn", "sport = :8080"]);
    let waiting_there: u64 = (listed.lines())
        .map(|line| line.split_whitespace().nth(1).expect("a column"))
        .map(|number| number.parse::<u64>().expect("a number"))
        .sum();
    println!("{listed}");
    assert!(waiting_there >= 6, "the queues are not full");
    assert_eq!(full.queues.accept_queue_length, waiting_there);
    assert_eq!(full.queues.accept_queue_limit, 4);
    // Each socket by itself, as `ss` lists them.
    for socket in &full.sockets {
        let line = listed.lines().find(|line| line.contains(&socket.local));
        let line = line.unwrap_or_else(|| panic!("{} is not in the list", socket.local));
        let column = |n| {
            line.split_whitespace()
                .nth(n)
                .and_then(|text| text.parse().ok())
        };
        assert_eq!(column(1), Some(socket.queues.accept_queue_length), "{line}");
        assert_eq!(column(2), Some(socket.queues.accept_queue_limit), "{line}");
    }
    assert_eq!(full.sockets.len(), 2, "one for each family");
    drop(waiting);
    agree("when the clients are gone");
    // What is dropped between the last visit and the end of the listeners is theirs.
    let of_port = |snapshot: &Snapshot| {
        let found = snapshot.listeners.iter().find(|one| one.svc == "8080");
        found.map_or(0, |one| one.drops)
    };
    let last = of_port(&agree("before the last connections"));
    let dropped = drops();
    let more: Vec<_> = (Pair::SERVERS.iter())
        .flat_map(|address| refuse::waiting(&pair.client, SocketAddr::new(*address, 8080), 5, 2))
        .collect();
    poll::until("more are dropped", || {
        (drops() >= dropped + 4).then_some(())
    });
    drop(queues);
    drop(more);
    let snapshot = agree("when the listeners are gone");
    assert!(
        of_port(&snapshot) >= last + 4,
        "{} of the service after {last}",
        of_port(&snapshot)
    );
    daemon.stop();
}
