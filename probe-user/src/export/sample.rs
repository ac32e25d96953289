//! A snapshot by hand, for the tests of the encoders.

use probe_common::metrics::By;

use super::*;
use crate::model::{
    Device, DeviceTraffic, Drop, Histogram, ListenQueues, Listener, Lost, MapUse, Program, Reset,
    TcpLabels, TcpSeries,
};

pub fn process() -> Process {
    Process {
        cpu_seconds: 1.25,
        resident_bytes: 8 << 20,
        virtual_bytes: 64 << 20,
        open_fds: 20,
        max_fds: Some(1024),
        log_lines_lost: 6,
        start_seconds: 1_700_000_000.5,
        capabilities: vec!["CAP_BPF".into()],
    }
}

pub fn snapshot() -> Snapshot {
    let labels = TcpLabels {
        side: "server".into(),
        svc: "ng\"in\\x\n".into(),
        peer: "public".into(),
        ..TcpLabels::default()
    };
    Snapshot {
        schema: crate::model::SCHEMA,
        timestamp_seconds: 1_700_000_100.25,
        duration_seconds: 0.002,
        start_seconds: 1_700_000_001.0,
        kernel: "6.12.0".into(),
        version: "0.1.0".into(),
        tcp: vec![TcpSeries {
            labels: labels.clone(),
            opened: 10,
            open: 3,
            closed: By::of(&[("fin", 6), ("timeout", 1)]),
            aborted: 1,
            connect_failures: By::of(&[("refused", 2)]),
            sent_bytes: u64::MAX,
            received_bytes: 200,
            sent_segments: 30,
            received_segments: 40,
            retransmits: By::of(&[("syn", 5)]),
            spurious_retransmits: 6,
            out_of_order: 7,
            zero_window: 8,
            syn_cookies: 9,
            tls_failures: By::of(&[("alert", 4)]),
            rtt: Histogram {
                sum_seconds: 70.5,
                // Underflow, 1 s exactly and its neighbour, overflow.
                slots: vec![(0, 1), (319, 2), (320, 3), (416, 4)],
            },
            handshake: Histogram::default(),
            first_byte: Histogram::default(),
            accept_queue: Histogram {
                sum_seconds: 0.5,
                slots: vec![(300, 2)],
            },
            tls_handshake: Histogram {
                sum_seconds: 0.25,
                slots: vec![(290, 1)],
            },
            duration: Histogram {
                sum_seconds: 64.0,
                slots: vec![(415, 1)],
            },
            ..TcpSeries::default()
        }],
        resets: vec![Reset {
            labels,
            direction: "sent".into(),
            reason: "NO_SOCKET".into(),
            count: 11,
        }],
        listeners: vec![Listener {
            svc: "nginx".into(),
            drops: 12,
            queues: ListenQueues {
                syn_queue_length: 1,
                syn_queue_limit: 128,
                accept_queue_length: 2,
                accept_queue_limit: 511,
            },
            accept_queue: Histogram {
                sum_seconds: 0.5,
                slots: vec![(300, 2)],
            },
            sockets: Vec::new(),
        }],
        drops: vec![Drop {
            class: "loss".into(),
            subsystem: "core".into(),
            reason: "NETFILTER_DROP".into(),
            protocol: "tcp".into(),
            side: "none".to_owned(),
            svc: "none".to_owned(),
            count: 13,
        }],
        devices: vec![Device {
            device: "eth1".into(),
            xdp_mode: "native".into(),
            traffic: vec![DeviceTraffic {
                protocol: "udp".into(),
                action: "pass".into(),
                packets: 14,
                bytes: 1500,
            }],
            ..Device::default()
        }],
        lost: vec![Lost {
            hook: "tcp_probe".into(),
            cause: "map_full".into(),
            count: 15,
        }],
        maps: vec![MapUse {
            map: "ROW_OF".into(),
            entries: 16,
            capacity: 1024,
            memory_bytes: 65_536,
        }],
        programs: vec![
            Program {
                program: "tcp_probe".into(),
                hook: "tp_btf/tcp_probe".into(),
                attached: true,
                note: String::new(),
                skipped: 2,
                runs: Some(17),
                run_seconds: Some(0.5),
            },
            Program {
                program: "xdp".into(),
                hook: "xdp".into(),
                attached: true,
                note: "eth1: native".into(),
                skipped: 2,
                runs: Some(18),
                run_seconds: Some(0.25),
            },
            Program {
                program: "xdp".into(),
                hook: "xdp".into(),
                attached: false,
                note: "eth2: busy".into(),
                skipped: 2,
                runs: Some(18),
                run_seconds: Some(0.25),
            },
        ],
        process: process(),
        ..Snapshot::default()
    }
}

pub fn exposition() -> Exposition {
    Exposition {
        snapshot: Some(Arc::new(snapshot())),
        process: Some(process()),
        is_exporter: true,
    }
}
