//! Round-trip times on wires of known length.

use std::process::Command;

use probe_tests::{
    daemon::Daemon,
    delay::{DelayLine, ONE_WAY, talk},
    load,
    netns::{DEVICE, Netns, Pair},
    skip, truth,
};
use probe_user::snapshot::{Histogram, Snapshot, TcpSeries};

const QUESTIONS: usize = 160;

fn quantile(snapshot: &Snapshot, side: &str, histogram: impl Fn(&TcpSeries) -> &Histogram) -> f64 {
    let sum = (snapshot.tcp.iter())
        .filter(|series| series.labels.side == side)
        .fold(Histogram::default(), |mut sum, series| {
            sum.add(histogram(series));
            sum
        });
    sum.quantile(0.5)
        .unwrap_or_else(|| panic!("no observation of side {side}"))
}

#[track_caller]
fn within_five_percent(what: &str, ours: f64, known: f64) {
    println!("{what}: {ours:.6} s, known {known:.6} s");
    assert!(
        (ours / known - 1.0).abs() < 0.05,
        "{what}: {ours} s for {known} s"
    );
}

fn measure(server: &Netns, client: &Netns) {
    let known = 2.0 * ONE_WAY.as_secs_f64();
    let daemon = Daemon::start(&[server, client], &[]);
    let rtts = talk(server, client, QUESTIONS);
    load::quiet(&[server, client], 0);
    let snapshot = daemon.snapshot();
    let info = rtts[rtts.len() / 2];
    within_five_percent("TCP_INFO of the client", info, known);
    let rtt = quantile(&snapshot, "client", |one| &one.rtt);
    within_five_percent("RTT of the client", rtt, known);
    within_five_percent("RTT of the client against TCP_INFO", rtt, info);
    let samples = truth::sum(&snapshot, "client", |one| one.rtt.count());
    assert!(
        samples >= QUESTIONS as u64,
        "one sample for each answer: {samples}"
    );
    for side in ["client", "server"] {
        let handshake = quantile(&snapshot, side, |one| &one.handshake);
        within_five_percent(&format!("handshake of the {side}"), handshake, known);
    }
    daemon.stop();
}

#[test]
fn a_delay_line_shows_its_length() {
    let Some(_turn) = skip::turn("a_delay_line_shows_its_length") else {
        return;
    };
    if skip::is_emulated() {
        skip::impossible(
            "a_delay_line_shows_its_length",
            "emulated processors are too slow for a wire in user space",
        );
        return;
    }
    let line = DelayLine::new(ONE_WAY);
    let [server, client] = line.both();
    measure(server, client);
}

#[test]
fn netem_shows_its_delay() {
    const TEST: &str = "netem_shows_its_delay";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let pair = Pair::new();
    let delay = format!("{}ms", ONE_WAY.as_millis());
    for netns in pair.both() {
        let output = Command::new("tc")
            .args(["-n", netns.name(), "qdisc", "add", "dev", DEVICE])
            .args(["root", "netem", "delay", &delay])
            .output()
            .expect("tc is installed");
        if !output.status.success() {
            skip::impossible(TEST, "this kernel has no netem");
            return;
        }
    }
    measure(&pair.server, &pair.client);
}
