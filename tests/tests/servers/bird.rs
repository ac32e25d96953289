//! A BGP session that carries nothing but keepalives.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use probe_tests::{
    daemon::{Daemon, Running},
    load,
    netns::{Netns, Pair},
    poll, programs, skip,
    truth::{self, Table},
    witness::Witness,
};
use probe_user::model::{Connection, Snapshot, TcpSeries};
use tempfile::TempDir;

const PORT: u16 = 179;
/// What a keepalive is long: marker, length and type.
const KEEPALIVE: u64 = 19;
/// How long the session is left alone.
const IDLE: Duration = Duration::from_secs(10);

/// One BIRD, its messages being its log.
struct Bird {
    running: Running,
    _folder: TempDir,
}

impl Bird {
    /// Starts one that speaks to `peer`; it waits to be called or calls.
    fn start(netns: &Netns, program: &Path, own: IpAddr, peer: IpAddr, waits: bool) -> Self {
        let folder = programs::folder();
        let at = folder.path();
        let numbers = if waits {
            [65001, 65002]
        } else {
            [65002, 65001]
        };
        let config = at.join("bird.conf");
        let text = format!(
            "log stderr all; router id {own}; protocol device {{}}\n\
             protocol bgp session {{ debug {{ states, packets }}; passive {passive};\n\
               local {own} as {}; neighbor {peer} as {}; direct;\n\
               hold time 9; keepalive time 1; connect delay time 1;\n\
               ipv4 {{ import none; export none; }}; }}\n",
            numbers[0],
            numbers[1],
            passive = if waits { "on" } else { "off" },
        );
        fs::write(&config, text).expect("a file");
        let mut command = Command::new(program);
        command.args(["-f", "-c"]).arg(&config);
        command.arg("-s").arg(at.join("control"));
        command.arg("-P").arg(at.join("pid"));
        Self {
            running: programs::start(netns, command, at.join("messages")),
            _folder: folder,
        }
    }

    /// Keepalives that it sent so far, by its own log.
    fn keepalives(&self) -> u64 {
        let sent = self.running.messages();
        sent.matches("Sending KEEPALIVE").count() as u64
    }
}

/// The end of the session on a side.
fn end<'a>(snapshot: &'a Snapshot, side: &str) -> Option<&'a Connection> {
    (snapshot.connections.iter()).find(|one| one.labels.side == side && one.labels.svc == "179")
}

#[test]
fn an_idle_bgp_session_stays_open_and_nothing_is_made_up() {
    const TEST: &str = "an_idle_bgp_session_stays_open_and_nothing_is_made_up";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let Some(program) = skip::tool(TEST, "bird") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let witness = Witness::start();
    let before = pair.counters();
    let [own, peer] = [Pair::SERVER_V4, Pair::CLIENT_V4];
    let passive = Bird::start(&pair.server, &program, own, peer, true);
    let active = Bird::start(&pair.client, &program, peer, own, false);
    let birds = [("server", &passive), ("client", &active)];
    poll::until("the session is established", || {
        birds
            .iter()
            .all(|(_, bird)| bird.running.messages().contains("State changed to up"))
            .then_some(())
    });
    // Both have said all that there is to say at the beginning.
    load::quiet(&pair.both(), 2);

    // What a side has sent since its end was opened lies between what its BIRD
    // had logged before it was looked at, and after.
    let look = || {
        let known = birds.map(|(_, bird)| bird.keepalives());
        let snapshot = daemon.fresh_connections();
        let later = birds.map(|(_, bird)| bird.keepalives());
        (known, snapshot, later)
    };
    let first_bytes =
        |snapshot: &Snapshot, side: &str| truth::sum(snapshot, side, |one| one.first_byte.count());
    let (known, first, later) = look();
    let looked = Instant::now();
    let begun = birds.map(|(side, _)| {
        end(&first, side).unwrap_or_else(|| panic!("no end of side {side} is open"))
    });
    thread::sleep(IDLE);
    let (known_now, second, later_now) = look();
    let passed = looked.elapsed().as_secs_f64();
    for (number, (side, _)) in birds.into_iter().enumerate() {
        let (was, is) = (begun[number], end(&second, side));
        let is = is.unwrap_or_else(|| panic!("the end of side {side} is gone"));
        assert_eq!((&was.local, &was.remote), (&is.local, &is.remote), "{side}");
        assert_eq!(is.state, "ESTABLISHED");
        let service = if side == "server" {
            &is.local
        } else {
            &is.remote
        };
        assert!(service.ends_with(&format!(":{PORT}")), "{side}: {service}");
        let [young, old] = [was, is].map(|end| end.age_seconds.expect("it is known when"));
        assert!(
            old - young > IDLE.as_secs_f64() * 0.9 && old - young < passed * 1.1 + 1.0,
            "{side}: {young} s old, {passed} s later {old} s"
        );
        // Keepalives alone have gone out meanwhile.
        let other = 1 - number;
        for (what, bytes, peer) in [
            ("sent", is.sent_bytes - was.sent_bytes, number),
            ("received", is.received_bytes - was.received_bytes, other),
        ] {
            assert_eq!(bytes % KEEPALIVE, 0, "{side} {what}: whole keepalives");
            let least = known_now[peer] - later[peer];
            // One that is logged may be under way.
            let most = later_now[peer] - known[peer] + 1;
            let count = bytes / KEEPALIVE;
            println!("{side}: {count} keepalives {what}, {least} to {most} by BIRD");
            assert!(
                count >= 5 && count + 1 >= least && count <= most,
                "{side}: {count} keepalives {what}"
            );
        }
        // A keepalive answers nothing, but looks like it: it is sent after
        // another has arrived. There are no more of them than keepalives.
        let made_up = first_bytes(&second, side) - first_bytes(&first, side);
        println!("{side}: {made_up} first bytes while idle");
        assert!(
            made_up <= later_now[number] - known[number],
            "{side}: {made_up} first bytes of keepalives"
        );
    }

    let theirs = &load::quiet(&pair.both(), 2) - &before;
    let snapshot = daemon.snapshot();
    let mut table = Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    let sum = |side: &str, value: fn(&TcpSeries) -> u64| truth::sum(&snapshot, side, value);
    for side in ["server", "client"] {
        table.equal("opened = one session", sum(side, |one| one.opened), 1);
        table.equal("open = one session", sum(side, |one| one.open), 1);
        let tls = sum(side, |one| one.tls_handshake.count());
        table.equal("TLS handshakes = 0", tls, 0);
    }
    table.allow(witness.hidden() + truth::preempted(&snapshot));
    table.check();
    daemon.stop();
}
