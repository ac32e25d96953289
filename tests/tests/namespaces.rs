//! The daemon as most run it: without `--netns` it watches every network
//! namespace, those that come later too.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
};

use probe_tests::{daemon::Daemon, netns::Netns, poll, skip};
use probe_user::model::{Snapshot, TcpSeries};

const PORT: u16 = 8080;
const SENT: usize = 1000;
const ANSWERED: usize = 300;

/// A second name of a namespace, as container engines give one.
struct Alias(PathBuf);

impl Alias {
    fn of(netns: &Netns) -> Self {
        // After the first one by name.
        let path = netns.path().with_file_name(format!("{}-too", netns.name()));
        fs::write(&path, "").expect("a file");
        let alias = Self(path);
        alias.command(
            "mount",
            &["--bind", netns.path().to_str().expect("plain letters")],
        );
        alias
    }

    fn command(&self, program: &str, arguments: &[&str]) {
        let status = Command::new(program).args(arguments).arg(&self.0).status();
        assert!(
            status.expect("it runs").success(),
            "{program} {}",
            self.0.display()
        );
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = fs::remove_file(&self.0);
    }
}

/// Both ends of connections over the loopback device of a namespace.
struct Loop {
    listener: TcpListener,
    ends: Vec<(TcpStream, TcpStream)>,
}

impl Loop {
    fn new(netns: &Netns) -> Self {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let listener = netns.run(|| TcpListener::bind(at)).expect("a port");
        Self {
            listener,
            ends: Vec::new(),
        }
    }

    fn open(&mut self, netns: &Netns) {
        let at = self.listener.local_addr().expect("its address");
        let client = netns.run(|| TcpStream::connect(at)).expect("it is open");
        let (server, _) = self.listener.accept().expect("it is open");
        self.ends.push((client, server));
    }

    /// A question and an answer on each connection.
    fn talk(&mut self) {
        for (client, server) in &mut self.ends {
            client.write_all(&[1; SENT]).expect("it is sent");
            server.read_exact(&mut [0; SENT]).expect("it comes");
            server.write_all(&[2; ANSWERED]).expect("it is sent");
            client.read_exact(&mut [0; ANSWERED]).expect("it comes");
        }
    }
}

/// What counts in a namespace: opened, open, bytes sent and received.
fn inside(snapshot: &Snapshot, netns: &Netns) -> [u64; 4] {
    let mut sums = [0; 4];
    let is_there = |one: &&TcpSeries| one.labels.netns.as_deref() == Some(netns.name());
    for one in snapshot.tcp.iter().filter(is_there) {
        let numbers = [one.opened, one.open, one.sent_bytes, one.received_bytes];
        for (sum, number) in sums.iter_mut().zip(numbers) {
            *sum += number;
        }
    }
    sums
}

#[test]
fn every_namespace_is_watched_and_counted_once() {
    const TEST: &str = "every_namespace_is_watched_and_counted_once";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let old = Netns::new();
    let _alias = Alias::of(&old);
    let mut before = Loop::new(&old);
    before.open(&old);
    before.talk();
    let daemon = Daemon::configured(&[], "[metrics]\nnetns_label = true\n", &[]);

    // One more where the daemon has been, and both talk.
    before.open(&old);
    before.talk();
    // And where it has not.
    let new = Netns::new();
    let mut after = Loop::new(&new);
    for _ in 0..3 {
        after.open(&new);
    }
    after.talk();

    // Each byte has two ends. What is open counts when the daemon has found its
    // namespace and has visited it.
    let bytes = |connections: usize| (connections * (SENT + ANSWERED)) as u64;
    let wanted = [[2, 4, bytes(2), bytes(2)], [6, 6, bytes(3), bytes(3)]];
    let snapshot = poll::until("both namespaces have been visited", || {
        let snapshot = daemon.snapshot();
        let found = [&old, &new].map(|netns| inside(&snapshot, netns));
        let is_there = |n: usize| found[n][2] >= wanted[n][2] && found[n][3] >= wanted[n][3];
        (is_there(0) && is_there(1)).then_some(snapshot)
    });
    assert_eq!([&old, &new].map(|netns| inside(&snapshot, netns)), wanted);
    // Its other name is no other namespace.
    let names = snapshot
        .tcp
        .iter()
        .filter_map(|one| one.labels.netns.as_deref());
    assert!(
        !names
            .clone()
            .any(|name| name.starts_with(old.name()) && name != old.name()),
        "{:?}",
        names.collect::<Vec<_>>()
    );
    drop((before, after));
    let closed = poll::until("all are closed", || {
        let snapshot = daemon.snapshot();
        let found = [&old, &new].map(|netns| inside(&snapshot, netns));
        (found[0][1] == 0 && found[1][1] == 0).then_some(found)
    });
    // Nothing counts twice when it closes.
    assert_eq!(
        closed.map(|[opened, _, sent, received]| [opened, sent, received]),
        [[2, bytes(2), bytes(2)], [6, bytes(3), bytes(3)],]
    );
    daemon.stop();
}
