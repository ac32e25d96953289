//! The rig itself: what it says it did is what the kernel counted.

use std::net::SocketAddr;

use probe_tests::{
    delay::{DelayLine, ONE_WAY},
    load::{self, Clients, Server, on_port},
    netns::Pair,
    refuse, skip,
};

#[test]
fn the_load_does_what_it_says() {
    let Some(_turn) = skip::turn("the_load_does_what_it_says") else {
        return;
    };
    let pair = Pair::new();
    pair.client.sysctl("ipv4/ip_local_port_range", "1024 61999");
    let (plain, mptcp) = (on_port(&Pair::SERVERS, 8080), on_port(&Pair::SERVERS, 8081));
    pair.server.nft(
        "table inet ep { chain pre { type filter hook prerouting priority raw;
            tcp dport 10 drop
        }; }",
    );
    let before = pair.counters();
    let server = Server::start(&pair.server, &plain, &mptcp);
    let clients = Clients {
        connections: 400,
        threads: 16,
        targets: [plain.clone(), mptcp].concat(),
    };
    let totals = clients.run(&pair.client);
    let (held, held_totals) = load::hold(&pair.client, &plain, 2);
    for address in Pair::SERVERS {
        let at = |port| SocketAddr::new(address, port);
        refuse::failing(&pair.client, at(9), 7, None, libc::ECONNREFUSED);
        refuse::cancelled(&pair.client, at(10), 11);
        refuse::failing(&pair.client, at(10), 5, Some(1), libc::ETIMEDOUT);
    }
    for nobody in on_port(&Pair::NOBODY, 8080) {
        refuse::failing(&pair.client, nobody, 3, None, libc::EHOSTUNREACH);
    }
    let [v4, v6] = [plain[0], plain[1]];
    refuse::half_open(&pair.client, Pair::CLIENT_V4, v4, 13);
    refuse::half_open(&pair.client, Pair::CLIENT_V6, v6, 13);
    let stuck = refuse::ports_used_up(&pair.client, v4, 4);
    assert_eq!(stuck.len(), 8, "one for each port of the range");

    let open = held.len() + stuck.len();
    let counted = &load::quiet(&pair.both(), 2 * open) - &before;
    let tcp = |name: &str| counted.get(&format!("Tcp.{name}"));
    assert_eq!(tcp("PassiveOpens"), 400 + open as i64);
    assert_eq!(tcp("ActiveOpens"), 400 + open as i64 + 2 * (7 + 11 + 5 + 3));
    assert_eq!(tcp("AttemptFails"), 2 * (7 + 5 + 3 + 13));
    assert_eq!(counted.get("TcpExt.EmbryonicRsts"), 26);
    assert_eq!(tcp("CurrEstab"), 2 * open as i64);

    let served = server.totals();
    assert_eq!(served.connections, 400 + open as u64);
    assert_eq!(served.received, totals.sent + held_totals.sent);
    assert_eq!(served.sent, totals.received + held_totals.received);
    let number = held.len();
    drop((held, stuck));
    server.release(number);
    load::quiet(&pair.both(), 0);
    server.stop();
}

#[test]
fn the_delay_line_is_as_long_as_it_says() {
    let Some(_turn) = skip::turn("the_delay_line_is_as_long_as_it_says") else {
        return;
    };
    if skip::is_emulated() {
        skip::impossible(
            "the_delay_line_is_as_long_as_it_says",
            "emulated processors are too slow for a wire in user space",
        );
        return;
    }
    let line = DelayLine::new(ONE_WAY);
    let rtts = line.talk(80);
    let (middle, known) = (rtts[rtts.len() / 2], 2.0 * ONE_WAY.as_secs_f64());
    assert!(
        (middle / known - 1.0).abs() < 0.05,
        "{middle} s for {known} s"
    );
}
