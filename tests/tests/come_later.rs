//! What the configuration names and is not there at the start is followed when it comes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use probe_tests::{
    daemon::Daemon,
    netns::{self, Netns, ip},
    poll, skip,
};
use probe_user::model::{Program, Snapshot};

const PORT: u16 = 8080;
const COUNT: usize = 20;

/// A name of `ip netns`, removed in the end if it is there.
struct Later(String);

impl Drop for Later {
    fn drop(&mut self) {
        netns::remove(&self.0);
    }
}

#[test]
fn a_namespace_of_a_service_may_come_later() {
    let Some(_turn) = skip::turn("a_namespace_of_a_service_may_come_later") else {
        return;
    };
    let other = Netns::new();
    let later = Later(format!("{}-later", other.name()));
    let name = &later.0;
    let text = format!("[[service]]\nname = \"late\"\nside = \"server\"\nnetns = \"{name}\"\n");
    let daemon = Daemon::configured(&[], &text, &[]);
    let why = format!("{name}: not there: its service begins once it is");
    let left_out = |snapshot: &Snapshot| snapshot.network_namespaces.left_out_names.contains(&why);
    assert!(left_out(&daemon.snapshot()), "nothing tells that it lacks");

    ip(&format!("netns add {name}"));
    ip(&format!("-n {name} link set lo up"));
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    other.run(|| {
        enter(name);
        let listener = TcpListener::bind(at).expect("a port");
        for _ in 0..COUNT {
            let client = TcpStream::connect(at).expect("it is open");
            let (server, _) = listener.accept().expect("it is open");
            drop((client, server));
        }
    });
    let snapshot = poll::until("they are the service's", || {
        let snapshot = daemon.snapshot();
        let mut late = snapshot.tcp.iter().filter(|one| one.labels.svc == "late");
        let is_there = late.next().is_some_and(|one| one.opened == COUNT as u64);
        is_there.then_some(snapshot)
    });
    assert_eq!(
        snapshot
            .tcp
            .iter()
            .filter(|one| one.labels.svc == "late")
            .count(),
        1
    );
    poll::until("it is left out no more", || {
        (!left_out(&daemon.snapshot())).then_some(())
    });
    let messages = daemon.process().messages();
    for line in [
        format!("service late: no network namespace \"{name}\""),
        format!("service late: network namespace {name} has come"),
    ] {
        assert_eq!(messages.matches(&line).count(), 1, "{line}: {messages}");
    }
    daemon.stop();
}

/// Moves the calling thread into a namespace.
fn enter(name: &str) {
    use std::os::fd::AsRawFd as _;
    let path = format!("/run/netns/{name}");
    let file = std::fs::File::open(path).expect("the namespace");
    // SAFETY: `file` owns the descriptor and outlives the call.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
}

#[test]
fn an_interface_may_come_later() {
    let Some(_turn) = skip::turn("an_interface_may_come_later") else {
        return;
    };
    let netns = Netns::new();
    let daemon = Daemon::start(&[&netns], &["--interface", "ep-late"]);
    let xdp = |snapshot: &Snapshot| -> Program {
        let mut programs = snapshot.programs.iter();
        let found = programs.find(|one| one.hook.starts_with("xdp/"));
        found.expect("the program of the interface").clone()
    };
    let before = daemon.snapshot();
    assert!(!xdp(&before).attached);
    assert_eq!(xdp(&before).note, "the interface is not there");

    netns.ip("link add ep-late type veth peer name ep-far");
    for (device, number) in [("ep-late", 1), ("ep-far", 2)] {
        netns.ip(&format!("addr add 10.79.{number}.1/24 dev {device}"));
        netns.ip(&format!("link set {device} up"));
    }
    poll::until("the program is attached", || {
        xdp(&daemon.snapshot()).attached.then_some(())
    });
    // To a neighbour that is there, so that what is sent leaves at once.
    let address = netns.ip("-json link show dev ep-late");
    let mac = address.split("\"address\":\"").nth(1).expect("an address");
    let mac = mac.split('"').next().expect("its end");
    netns.ip(&format!("neigh add 10.79.2.9 lladdr {mac} dev ep-far"));
    let socket = netns
        .run(|| UdpSocket::bind(("10.79.2.1", 0)))
        .expect("a socket");
    for _ in 0..COUNT {
        socket.send_to(b"x", ("10.79.2.9", 9)).expect("it leaves");
    }
    poll::until("all are counted", || {
        let snapshot = daemon.snapshot();
        let all = snapshot.devices.iter().flat_map(|device| &device.traffic);
        let udp = all.filter(|one| one.protocol == "udp");
        (udp.map(|one| one.packets).sum::<u64>() == COUNT as u64).then_some(())
    });
    daemon.stop();
}
