//! Snapshots for tests.

use probe_common::{hist, metrics::By};

use super::*;

/// A histogram of some microseconds, each so often.
pub fn histogram(observations: &[(u64, u64)]) -> Histogram {
    let mut histogram = Histogram::default();
    for &(us, count) in observations {
        histogram.add(&Histogram {
            sum_seconds: us as f64 * count as f64 / 1e6,
            slots: vec![(hist::slot(us * 1000) as u16, count)],
        });
    }
    histogram
}

fn labels(side: &str, svc: &str, peer: &str) -> TcpLabels {
    TcpLabels {
        side: side.to_owned(),
        svc: svc.to_owned(),
        peer: peer.to_owned(),
        ..TcpLabels::default()
    }
}

/// A series of a service that opened `opened` connections.
fn series(labels: TcpLabels, opened: u64, open: u64) -> TcpSeries {
    TcpSeries {
        labels,
        opened,
        open,
        closed: By::of(&[("fin", opened - open - 2), ("timeout", 2)]),
        aborted: 2,
        connect_failures: By::of(&[("refused", 3)]),
        sent_bytes: opened * 14_336,
        received_bytes: opened * 512,
        sent_segments: opened * 12,
        received_segments: opened * 8,
        retransmits: By::of(&[("syn", 1), ("fast", opened / 100)]),
        spurious_retransmits: opened / 1000,
        out_of_order: opened / 500,
        zero_window: opened / 700,
        syn_cookies: 0,
        tls_failures: By::of(&[("alert", opened / 900)]),
        rtt: histogram(&[
            (180, opened),
            (2_400, opened / 10 + 1),
            (41_000, opened / 200),
        ]),
        handshake: histogram(&[(190, opened), (1_030_000, opened / 50 + 1)]),
        duration: histogram(&[(3_000, opened)]),
        accept_queue: histogram(&[(90, opened)]),
        first_byte: histogram(&[(1_900, opened), (52_000, opened / 100)]),
        tls_handshake: histogram(&[(2_800, opened / 2)]),
        ..TcpSeries::default()
    }
}

/// A host with a web server, an SSH server and two clients, watched for an hour.
pub fn snapshot() -> Snapshot {
    let start = 1_700_000_000.0;
    let tcp = vec![
        series(labels("client", "5432", "pop-ams"), 840, 12),
        series(labels("client", "consul", "loopback"), 12_040, 4),
        series(labels("server", "22", "private"), 17, 2),
        series(labels("server", "nginx", "public"), 1_234_567, 87),
    ];
    let reset = |labels, direction: &str, reason: &str, count| Reset {
        labels,
        direction: direction.to_owned(),
        reason: reason.to_owned(),
        count,
    };
    let drop = |labels: [&str; 6], count| {
        let [class, subsystem, reason, protocol, side, svc] = labels.map(str::to_owned);
        Drop {
            class,
            subsystem,
            reason,
            protocol,
            side,
            svc,
            count,
        }
    };
    let program = |program: &str, hook: &str, stats: Option<(u64, f64)>| Program {
        program: program.to_owned(),
        hook: hook.to_owned(),
        attached: true,
        note: String::new(),
        skipped: 0,
        runs: stats.map(|s| s.0),
        run_seconds: stats.map(|s| s.1),
    };
    Snapshot {
        schema: SCHEMA,
        timestamp_seconds: start + 3600.0,
        uptime_seconds: 3600.0,
        duration_seconds: 0.0031,
        start_seconds: start,
        kernel: "6.12.117-cloud-amd64".to_owned(),
        version: "0.1.0".to_owned(),
        tcp,
        resets: vec![
            reset(labels("none", "", ""), "sent", "NO_SOCKET", 311),
            reset(
                labels("server", "nginx", "public"),
                "received",
                "unavailable",
                2_018,
            ),
            reset(
                labels("server", "nginx", "public"),
                "sent",
                "TCP_ABORT_ON_CLOSE",
                9,
            ),
        ],
        sockets: vec![SocketCount {
            side: "server".to_owned(),
            svc: "nginx".to_owned(),
            state: "close_wait".to_owned(),
            count: 12,
        }],
        listeners: vec![
            Listener {
                svc: "22".to_owned(),
                queues: ListenQueues {
                    syn_queue_limit: 128,
                    accept_queue_limit: 128,
                    ..ListenQueues::default()
                },
                ..Listener::default()
            },
            Listener {
                svc: "nginx".to_owned(),
                drops: 41,
                queues: ListenQueues {
                    syn_queue_length: 3,
                    syn_queue_limit: 4096,
                    accept_queue_length: 17,
                    accept_queue_limit: 511,
                },
                accept_queue: histogram(&[(90, 1_234_567)]),
                sockets: vec![ListenSocket {
                    local: "0.0.0.0:443".to_owned(),
                    netns: 4_026_531_840,
                    owner: Some("nginx.service".to_owned()),
                    pid: Some(1400),
                    process: Some("nginx".to_owned()),
                    cgroup: Some("/system.slice/nginx.service".to_owned()),
                    queues: ListenQueues {
                        syn_queue_length: 3,
                        syn_queue_limit: 4096,
                        accept_queue_length: 17,
                        accept_queue_limit: 511,
                    },
                }],
            },
        ],
        listen_overflows: 38,
        network_namespaces: NetworkNamespaces {
            watched: 12,
            left_out: 1,
            left_out_names: vec!["web7: not a network namespace".to_owned()],
        },
        drops: vec![
            drop(
                ["loss", "core", "NETFILTER_DROP", "tcp", "server", "nginx"],
                90_210,
            ),
            drop(["loss", "core", "NO_SOCKET", "udp", "none", "none"], 12),
            drop(
                ["housekeeping", "core", "TCP_OLD_ACK", "tcp", "none", "none"],
                1_007,
            ),
            drop(
                ["loss", "openvswitch", "UNKNOWN_77", "other", "none", "none"],
                1,
            ),
        ],
        last_drops: vec![
            LastDrop {
                time_seconds: start + 3599.0,
                subsystem: "core".to_owned(),
                reason: "NETFILTER_DROP".to_owned(),
                protocol: "tcp".to_owned(),
                function: "nf_hook_slow+0xb3".to_owned(),
                source: Some("198.51.100.7:51334".to_owned()),
                destination: Some("192.0.2.1:443".to_owned()),
                netns: 4_026_531_840,
                side: "server".to_owned(),
                svc: "nginx".to_owned(),
                owner: Some("nginx.service".to_owned()),
                pid: Some(1400),
                process: Some("nginx".to_owned()),
                cgroup: Some("/system.slice/nginx.service".to_owned()),
            },
            LastDrop {
                time_seconds: start + 3000.0,
                subsystem: "openvswitch".to_owned(),
                reason: "UNKNOWN_77".to_owned(),
                protocol: "other".to_owned(),
                function: "unavailable".to_owned(),
                netns: 4_026_531_840,
                side: "none".to_owned(),
                svc: "none".to_owned(),
                ..LastDrop::default()
            },
        ],
        drops_sampled: 1_204,
        devices: vec![Device {
            device: "eth1".to_owned(),
            xdp_mode: "native".to_owned(),
            traffic: vec![
                DeviceTraffic {
                    protocol: "tcp".to_owned(),
                    action: "pass".to_owned(),
                    packets: 9_700,
                    bytes: 9_000_000,
                },
                DeviceTraffic {
                    protocol: "arp".to_owned(),
                    action: "pass".to_owned(),
                    packets: 2,
                    bytes: 84,
                },
            ],
            flows: 2,
            top_flows: vec![PacketFlow {
                protocol: "tcp".to_owned(),
                source: "198.51.100.7:51334".to_owned(),
                destination: "192.0.2.1:443".to_owned(),
                packets: 9_000,
                bytes: 8_400_000,
            }],
            past_flows: 3,
            past_packets: 2,
            past_bytes: 84,
            overflow_packets: 700,
            overflow_bytes: 600_000,
            flow_packets: 9_702,
            flow_bytes: 9_000_084,
        }],
        connections: vec![
            Connection {
                labels: labels("server", "nginx", "public"),
                local: "192.0.2.1:443".to_owned(),
                remote: "198.51.100.7:51334".to_owned(),
                state: "ESTABLISHED".to_owned(),
                netns: 4_026_531_840,
                owner: Some("nginx.service".to_owned()),
                pid: Some(1412),
                process: Some("nginx".to_owned()),
                cgroup: Some("/system.slice/nginx.service".to_owned()),
                age_seconds: Some(74.0),
                srtt_seconds: 0.0123,
                min_rtt_seconds: Some(0.0119),
                cwnd_segments: 42,
                congestion: "open".to_owned(),
                sent_bytes: 734_003_200,
                received_bytes: 91_000,
                retransmits: 18,
                drops: 3,
                drop_reason: Some("NETFILTER_DROP".to_owned()),
            },
            Connection {
                labels: labels("server", "22", "private"),
                local: "[2001:db8:1::2]:22".to_owned(),
                remote: "[2001:db8:ffff:ffff:ffff:ffff:ffff:fffe]:40022".to_owned(),
                state: "CLOSE_WAIT".to_owned(),
                netns: 4_026_531_840,
                owner: None,
                pid: None,
                process: None,
                cgroup: None,
                age_seconds: None,
                srtt_seconds: 0.0,
                min_rtt_seconds: None,
                cwnd_segments: 10,
                congestion: "loss".to_owned(),
                sent_bytes: 120,
                received_bytes: 3_000,
                retransmits: 0,
                drops: 0,
                drop_reason: None,
            },
        ],
        lost: vec![
            Lost {
                hook: "tcp_probe".to_owned(),
                cause: "map_full".to_owned(),
                count: 12,
            },
            Lost {
                hook: "kfree_skb".to_owned(),
                cause: "parse".to_owned(),
                count: 0,
            },
        ],
        shield: Shield {
            state: "absent".to_owned(),
            note: String::new(),
        },
        maps: vec![
            MapUse {
                map: "CONNS".to_owned(),
                entries: 105,
                capacity: 262_144,
                memory_bytes: 41_943_040,
            },
            MapUse {
                map: "FLOWS".to_owned(),
                entries: 61_000,
                capacity: 65_536,
                memory_bytes: 8_388_608,
            },
        ],
        programs: vec![
            program(
                "set_state",
                "tp_btf/inet_sock_set_state",
                Some((4_000_000, 1.0)),
            ),
            program("probe", "tp_btf/tcp_probe", None),
            Program {
                attached: false,
                note: "this kernel has no reason argument (needs 6.10)".to_owned(),
                ..program("send_reset", "tp_btf/tcp_send_reset", None)
            },
        ],
        process: Process {
            cpu_seconds: 14.4,
            resident_bytes: 18_874_368,
            virtual_bytes: 190 << 20,
            open_fds: 31,
            max_fds: Some(1024),
            log_lines_lost: 2,
            start_seconds: start - 1.0,
            capabilities: vec!["CAP_BPF".to_owned(), "CAP_PERFMON".to_owned()],
        },
    }
}

/// The same host some seconds later: the web server took connections.
pub fn later(old: &Snapshot, seconds: f64) -> Snapshot {
    let mut new = old.clone();
    new.timestamp_seconds += seconds;
    new.uptime_seconds += seconds;
    new.process.cpu_seconds += 0.006 * seconds;
    let nginx = &mut new.tcp[3];
    nginx.opened += 20;
    nginx.closed["fin"] += 20;
    nginx.received_bytes += 2048;
    nginx.sent_bytes += 2_000_000;
    nginx.sent_segments += 1000;
    nginx.retransmits["fast"] += 10;
    nginx.rtt.add(&histogram(&[(210, 95), (52_000, 5)]));
    nginx.handshake.add(&histogram(&[(230, 20)]));
    new.resets[1].count += 2;
    new.drops[2].count += 7;
    new.programs[0].runs = Some(4_000_400);
    new.programs[0].run_seconds = Some(1.0001);
    new
}
