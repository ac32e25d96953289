//! Peers and services that are configured: which name a connection goes by.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use probe_tests::{
    daemon::Daemon,
    netns::{DEVICE, Netns, Pair},
    poll, skip,
};
use socket2::{Domain, Protocol, Socket, Type};

const PORT: u16 = 8443;

const CONFIGURATION: &str = r#"
[[peer]]
name = "wide"
cidrs = ["192.0.2.0/24"]

[[peer]]
name = "narrow"
cidrs = ["192.0.2.128/25", "2001:db8:1::/64"]

[[service]]
name = "edge"
side = "server"
ports = [8443]
addresses = ["192.0.2.0/24"]

[[service]]
name = "rest"
side = "server"
ports = [8443]
"#;

fn connect(netns: &Netns, from: &str, to: &str) {
    let [from, to] = [from, to].map(|text| text.parse::<IpAddr>().expect("an address"));
    let to = SocketAddr::new(to, PORT);
    netns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))
            .expect("a socket");
        socket
            .bind(&SocketAddr::new(from, 0).into())
            .expect("the address is there");
        socket
            .connect_timeout(&to.into(), Duration::from_secs(20))
            .expect("a connection");
    });
}

#[test]
fn connections_go_by_the_names_of_the_configuration() {
    let Some(_turn) = skip::turn("connections_go_by_the_names_of_the_configuration") else {
        return;
    };
    let pair = Pair::new();
    for (netns, addresses) in [
        (
            &pair.server,
            &["192.0.2.254/24", "198.51.100.254/24", "2001:db8:1::fe/64"][..],
        ),
        (
            &pair.client,
            &[
                "192.0.2.1/24",
                "192.0.2.130/24",
                "198.51.100.9/24",
                "2001:db8:1::1/64",
            ],
        ),
    ] {
        for address in addresses {
            netns.ip(&format!("address add {address} dev {DEVICE} nodad"));
        }
    }
    let daemon = Daemon::configured(&pair.both(), CONFIGURATION, &[]);
    // One listener of both families: there IPv4 peers come as ::ffff:192.0.2.1.
    let listener = pair.server.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_only_v6(false)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)).into())?;
        socket.listen(128)?;
        std::io::Result::Ok(socket)
    });
    let listener = listener.expect("a listener");

    let mut wanted = BTreeMap::new();
    for (netns, from, to, svc, peer, count) in [
        (&pair.client, "192.0.2.1", "192.0.2.254", "edge", "wide", 3),
        (
            &pair.client,
            "192.0.2.130",
            "192.0.2.254",
            "edge",
            "narrow",
            4,
        ),
        (
            &pair.client,
            "2001:db8:1::1",
            "2001:db8:1::fe",
            "rest",
            "narrow",
            5,
        ),
        (
            &pair.client,
            "198.51.100.9",
            "198.51.100.254",
            "rest",
            "public",
            6,
        ),
        (
            &pair.server,
            "127.0.0.1",
            "127.0.0.1",
            "rest",
            "loopback",
            2,
        ),
        (&pair.server, "::1", "::1", "rest", "loopback", 1),
        // From the host to itself.
        (
            &pair.server,
            "192.0.2.254",
            "192.0.2.254",
            "edge",
            "narrow",
            7,
        ),
    ] {
        for _ in 0..count {
            connect(netns, from, to);
        }
        *wanted.entry((svc.to_owned(), peer.to_owned())).or_insert(0) += count;
    }
    let total: u64 = wanted.values().sum();
    let seen = poll::until("all connections are counted", || {
        let snapshot = daemon.snapshot();
        let server = snapshot
            .tcp
            .iter()
            .filter(|one| one.labels.side == "server");
        let seen: BTreeMap<_, _> = server
            .map(|one| {
                let labels = (one.labels.svc.clone(), one.labels.peer.clone());
                (labels, one.opened)
            })
            .collect();
        (seen.values().sum::<u64>() >= total).then_some((seen, snapshot))
    });
    let (seen, snapshot) = seen;
    assert_eq!(seen, wanted);
    // The names are of the server's side: a client goes by the port.
    let clients: u64 = (snapshot.tcp.iter())
        .filter(|one| one.labels.side == "client" && one.labels.svc == PORT.to_string())
        .map(|one| one.opened)
        .sum();
    assert_eq!(clients, total);
    // A listener of all addresses is that of the first service.
    let limit = poll::until("the listener has been visited", || {
        let snapshot = daemon.snapshot();
        let mut queues = snapshot.listeners.iter();
        let queue = queues.find(|one| one.queues.accept_queue_limit != 0)?;
        Some((queue.svc.clone(), queue.queues.accept_queue_limit))
    });
    assert_eq!(limit, ("edge".to_owned(), 128));
    drop(listener);
    daemon.stop();
}
