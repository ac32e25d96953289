//! The sums of histograms: exact, so that a mean of microseconds is right.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use probe_common::metrics::{HISTOGRAMS, HistogramId};
use probe_tests::{
    daemon::Daemon,
    netns::Netns,
    poll, skip,
    tcp_info::{least_rtt_us, tcp_info},
    truth,
};
use probe_user::model::{Histogram, bucket_seconds};

const CONNECTIONS: u64 = 50;
const QUESTIONS: usize = 40;

/// What a sum can be, by the slots of the observations: `slack` seconds less or more
/// for each.
fn possible(histogram: &Histogram, slack: f64) -> (f64, f64) {
    histogram
        .slots
        .iter()
        .fold((0.0, 0.0), |(low, high), &(slot, count)| {
            let (from, to) = bucket_seconds(slot);
            let count = count as f64;
            (low + (from - slack) * count, high + (to + slack) * count)
        })
}

/// Both ends are in one thread, so an answer follows its question after one or two
/// microseconds: a bucket there is narrower than a microsecond, and a sum of whole ones
/// is outside of the buckets.
#[test]
fn a_sum_lies_in_the_buckets_of_its_observations() {
    const TEST: &str = "a_sum_lies_in_the_buckets_of_its_observations";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let netns = Netns::new();
    let daemon = Daemon::start(&[&netns], &[]);
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 9000));
    let mut least_us = 0;
    for _ in 0..CONNECTIONS {
        least_us += netns.run(|| {
            let listener = TcpListener::bind(at).expect("a listener");
            let mut client = TcpStream::connect(at).expect("a connection");
            let (mut server, _) = listener.accept().expect("a connection");
            client.set_nodelay(true).expect("an option");
            server.set_nodelay(true).expect("an option");
            for _ in 0..QUESTIONS {
                client.write_all(&[1]).expect("it is sent");
                server.write_all(&[2]).expect("it is sent");
                server.read_exact(&mut [0]).expect("it arrives");
                client.read_exact(&mut [0]).expect("it arrives");
            }
            // An acknowledgment that was delayed is a sample, too.
            for stream in [&client, &server] {
                poll::until("all is acknowledged", || {
                    let info = tcp_info(stream).expect("TCP_INFO");
                    (info.tcpi_unacked == 0).then_some(())
                });
            }
            let least = [&client, &server].map(|stream| least_rtt_us(stream).expect("a least RTT"));
            // Nothing is acknowledged any more.
            let client = socket2::Socket::from(client);
            client.set_linger(Some(Duration::ZERO)).expect("an option");
            least.map(u64::from).iter().sum::<u64>()
        });
    }
    let snapshot = poll::until("all are closed", || {
        let snapshot = daemon.snapshot();
        let closed = truth::sum(&snapshot, "", |one| one.closed.sum());
        (closed == 2 * CONNECTIONS).then_some(snapshot)
    });
    let sees_sends = skip::kernel() >= (6, 3);
    let mut all = vec![Histogram::default(); HISTOGRAMS.len()];
    for series in &snapshot.tcp {
        let histograms = series.histograms().into_iter().zip(&mut all);
        for (info, (histogram, all)) in HISTOGRAMS.iter().zip(histograms) {
            all.add(histogram);
            // What is kept in microseconds is rounded; a bound is a real number.
            let unit = info.buckets.sum_unit_ns();
            let slack = if unit == 1 { 1e-9 } else { unit as f64 / 2e9 };
            let (low, high) = possible(histogram, slack);
            println!(
                "{}, {}: {} observations, {low:.9} <= {:.9} <= {high:.9} s",
                info.field,
                series.labels.side,
                histogram.count(),
                histogram.sum_seconds,
            );
            assert!(
                (low..=high).contains(&histogram.sum_seconds),
                "{}, {:?}",
                info.field,
                series.labels
            );
        }
    }
    let of = |id: HistogramId| &all[id as usize];
    let answers = of(HistogramId::FirstByte).count();
    assert_eq!(
        answers >= CONNECTIONS * QUESTIONS as u64,
        sees_sends,
        "{answers}"
    );
    // What the kernel told each end of its connection.
    let observed = Duration::from_secs_f64(of(HistogramId::MinRtt).sum_seconds);
    assert_eq!(observed, Duration::from_micros(least_us));
    daemon.stop();
}
