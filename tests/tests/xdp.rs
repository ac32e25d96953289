//! XDP on a device of the test's own, frame by frame.

use std::{
    cell::Cell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use probe_tests::{
    daemon::Daemon,
    frame::{self, Wire},
    load::{self, Clients, Server, on_port},
    netns::{CLIENT_MAC, DEVICE, Netns, Pair, SERVER_MAC},
    poll, skip,
    truth::Table,
};
use probe_user::model::{Device, Snapshot};

const ETHERNET_HEADER: u64 = 14;

/// Packets and bytes that a device received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Received {
    packets: u64,
    bytes: u64,
}

fn received(netns: &Netns) -> Received {
    let text = netns.ip(&format!(
        "-json -statistics -statistics link show dev {DEVICE}"
    ));
    let links: serde_json::Value = serde_json::from_str(&text).expect("JSON from ip");
    let rx = &links[0]["stats64"]["rx"];
    let number = |name: &str| rx[name].as_u64().expect("a number in the statistics");
    // What is dropped for want of a protocol that takes it has been received.
    assert_eq!(number("errors"), 0, "a device without errors");
    Received {
        packets: number("packets"),
        bytes: number("bytes"),
    }
}

fn device(snapshot: &Snapshot) -> &Device {
    let device = snapshot.devices.iter().find(|one| one.device == DEVICE);
    device.expect("the device of the test")
}

fn ours(device: &Device) -> Received {
    Received {
        packets: device.traffic.iter().map(|one| one.packets).sum(),
        bytes: device.traffic.iter().map(|one| one.bytes).sum(),
    }
}

/// What the device of the server received between two reads, by its own
/// statistics; with the Ethernet header, which `veth` leaves out of its bytes
/// while a native XDP program runs.
fn difference(before: Received, after: Received, mode: &str) -> Received {
    let packets = after.packets - before.packets;
    let header = if mode == "native" { ETHERNET_HEADER } else { 0 };
    Received {
        packets,
        bytes: after.bytes - before.bytes + header * packets,
    }
}

/// The statistics once they stand still, with a snapshot from that time.
fn at_rest(netns: &Netns, daemon: &Daemon) -> (Received, Snapshot) {
    poll::until("the device is at rest", || {
        let first = received(netns);
        let snapshot = daemon.snapshot();
        (received(netns) == first).then_some((first, snapshot))
    })
}

fn traffic(snapshot: &Snapshot, protocol: &str) -> Received {
    let of_protocol = |one: &&probe_user::model::DeviceTraffic| one.protocol == protocol;
    let mut device = device(snapshot).clone();
    device.traffic = device.traffic.iter().filter(of_protocol).cloned().collect();
    ours(&device)
}

/// Address and port of a sender that is not there.
fn sender(family: IpAddr, number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    let address: IpAddr = match family {
        IpAddr::V4(_) => [10, 100 + a, b, c].into(),
        IpAddr::V6(_) => [
            0xfd88,
            0,
            0,
            0,
            0,
            0,
            u16::from(a),
            u16::from_be_bytes([b, c]),
        ]
        .into(),
    };
    SocketAddr::new(address, 1024 + (number % 50_000) as u16)
}

/// A datagram of the flow of that number.
fn datagram(number: u32, vlans: &[u16]) -> Vec<u8> {
    let server = Pair::SERVERS[(number % 2) as usize];
    let payload = vec![7; (number % 400) as usize];
    let to = SocketAddr::new(server, 9);
    let packet = frame::udp(sender(server, number), to, frame::TTL, &payload);
    frame::ethernet(CLIENT_MAC, SERVER_MAC, vlans, &packet)
}

fn counts_like_the_device(test: &str, mode: &str) {
    let Some(_turn) = skip::turn(test) else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start_inside(&pair.server, &["--interface", DEVICE, "--xdp-mode", mode]);
    let (before, first) = at_rest(&pair.server, &daemon);
    assert_eq!(device(&first).xdp_mode, mode);
    let start = ours(device(&first));

    // Real connections, of both families and with full-sized segments.
    let server = Server::start(&pair.server, &on_port(&Pair::SERVERS, 8080), &[]);
    let clients = Clients {
        connections: 500,
        threads: 8,
        targets: on_port(&Pair::SERVERS, 8080),
    };
    clients.run(&pair.client);
    let udp_before = traffic(&daemon.snapshot(), "udp");
    // Frames by hand: plain, tagged, tagged twice, cut short, of no known type.
    let mut udp = Received {
        packets: 0,
        bytes: 0,
    };
    pair.client.run(|| {
        let wire = Wire::open(DEVICE).expect("the device");
        for (number, server) in (0..300).flat_map(|n| Pair::SERVERS.map(|server| (n, server))) {
            let payload = vec![7; (number % 1200) as usize];
            let to = SocketAddr::new(server, 9);
            let packet = frame::udp(sender(server, number), to, frame::TTL, &payload);
            for vlans in [&[][..], &[100], &[100, 200]] {
                let frame = frame::ethernet(CLIENT_MAC, SERVER_MAC, vlans, &packet);
                wire.send(&frame).expect("a frame leaves");
                udp.packets += 1;
                udp.bytes += frame.len() as u64;
            }
            let frame = frame::ethernet(CLIENT_MAC, SERVER_MAC, &[], &packet[..10]);
            wire.send(&frame).expect("a frame leaves");
            let mut frame = frame::ethernet(CLIENT_MAC, SERVER_MAC, &[], &packet);
            frame[12..14].copy_from_slice(&[0x88, 0xb5]);
            wire.send(&frame).expect("a frame leaves");
        }
    });
    load::quiet(&pair.both(), 0);
    let (after, last) = at_rest(&pair.server, &daemon);
    let theirs = difference(before, after, mode);
    let (end, seen) = (ours(device(&last)), traffic(&last, "udp"));

    let mut table = Table::default();
    table.equal(
        "packets = device",
        end.packets - start.packets,
        theirs.packets as i64,
    );
    table.equal(
        "bytes = device",
        end.bytes - start.bytes,
        theirs.bytes as i64,
    );
    // The port of the datagrams is closed: nothing else is UDP.
    table.equal(
        "udp packets = sent",
        seen.packets - udp_before.packets,
        udp.packets as i64,
    );
    table.equal(
        "udp bytes = sent",
        seen.bytes - udp_before.bytes,
        udp.bytes as i64,
    );
    table.equal(
        "flow packets",
        device(&last).flow_packets,
        end.packets as i64,
    );
    table.equal("flow bytes", device(&last).flow_bytes, end.bytes as i64);
    let of_xdp = last.lost.iter().filter(|lost| lost.hook == "xdp");
    table.equal("lost", of_xdp.map(|lost| lost.count).sum(), 0);
    table.check();
    daemon.stop();
    let left = pair
        .server
        .ip(&format!("-json -details link show dev {DEVICE}"));
    assert!(
        !left.contains("\"xdp\""),
        "a program is left behind: {left}"
    );
    server.stop();
}

#[test]
fn native_xdp_counts_what_the_device_counts() {
    counts_like_the_device("native_xdp_counts_what_the_device_counts", "native");
}

#[test]
fn generic_xdp_counts_what_the_device_counts() {
    counts_like_the_device("generic_xdp_counts_what_the_device_counts", "generic");
}

#[test]
fn more_flows_than_entries_leave_the_sums_exact() {
    let Some(_turn) = skip::turn("more_flows_than_entries_leave_the_sums_exact") else {
        return;
    };
    const ENTRIES: u64 = 1_000;
    const FLOWS: u32 = 20_000;
    let pair = Pair::new();
    let daemon = Daemon::configured(
        &[&pair.server],
        &format!("[packets]\nflows = {ENTRIES}\n"),
        &["--interface", DEVICE],
    );
    let (before, first) = at_rest(&pair.server, &daemon);
    let start = ours(device(&first));
    let mode = device(&first).xdp_mode.clone();

    pair.client.run(|| {
        let wire = Wire::open(DEVICE).expect("the device");
        // Twice: a flow that has its entry keeps it.
        for number in (0..FLOWS).chain(0..FLOWS) {
            let vlans: &[u16] = if number % 3 == 0 { &[100] } else { &[] };
            wire.send(&datagram(number, vlans)).expect("a frame leaves");
        }
    });
    let (after, last) = at_rest(&pair.server, &daemon);
    let theirs = difference(before, after, &mode);
    let end = ours(device(&last));
    let seen = device(&last);

    let mut table = Table::default();
    assert!(theirs.packets >= u64::from(2 * FLOWS), "all frames arrived");
    table.equal(
        "packets = device",
        end.packets - start.packets,
        theirs.packets as i64,
    );
    table.equal(
        "bytes = device",
        end.bytes - start.bytes,
        theirs.bytes as i64,
    );
    table.equal(
        "flows and overflow: packets",
        seen.flow_packets,
        end.packets as i64,
    );
    table.equal(
        "flows and overflow: bytes",
        seen.flow_bytes,
        end.bytes as i64,
    );
    table.equal("entries", seen.flows, ENTRIES as i64);
    // What does not fit is in the overflow, not lost, and it says so.
    table.at_most(
        "flows without an entry",
        u64::from(FLOWS) - ENTRIES,
        seen.overflow_packets as i64,
    );
    table.check();
    daemon.stop();
}

#[test]
fn flows_that_have_ended_are_evicted_and_the_sums_stay_exact() {
    let Some(_turn) = skip::turn("flows_that_have_ended_are_evicted_and_the_sums_stay_exact")
    else {
        return;
    };
    const ENTRIES: u64 = 1_000;
    /// Flows at a time, and how often others take their slot, which they get once
    /// more than half of the entries are taken.
    const FLOWS: u32 = 300;
    const TIMES: u32 = 6;
    /// One that never ends.
    const LASTING: u32 = 1_000_000;
    let pair = Pair::new();
    let daemon = Daemon::configured(
        &[&pair.server],
        &format!("[packets]\nflows = {ENTRIES}\nflow_idle = \"1s\"\n"),
        &["--interface", DEVICE],
    );
    let (before, first) = at_rest(&pair.server, &daemon);
    let start = ours(device(&first));
    let mode = device(&first).xdp_mode.clone();
    let wire = pair.client.run(|| Wire::open(DEVICE)).expect("the device");
    let sent = Cell::new(0);
    let send = |number: u32| {
        wire.send(&datagram(number, &[])).expect("a frame leaves");
        sent.set(sent.get() + 1);
    };
    for time in 0..TIMES {
        (0..FLOWS).for_each(|number| send(time * FLOWS + number));
        let whole = sent.get();
        // The flow that lasts has packets all the time.
        poll::until("the others have made room", || {
            send(LASTING);
            let seen = daemon.latest();
            let seen = device(&seen);
            let have_made_room = seen.past_flows + ENTRIES / 2 >= u64::from((time + 1) * FLOWS);
            (have_made_room && seen.flow_packets >= start.packets + whole).then_some(())
        });
    }
    let (after, last) = at_rest(&pair.server, &daemon);
    let theirs = difference(before, after, &mode);
    let (end, seen) = (ours(device(&last)), device(&last));
    let mut table = Table::default();
    table.equal(
        "packets = device",
        end.packets - start.packets,
        theirs.packets as i64,
    );
    for (what, ours, theirs) in [
        ("flows, past ones: packets", seen.flow_packets, end.packets),
        ("flows, past ones: bytes", seen.flow_bytes, end.bytes),
    ] {
        table.equal(what, ours, theirs as i64);
    }
    let least = i64::from(TIMES * FLOWS) - (ENTRIES / 2) as i64;
    table.at_least("past", seen.past_flows, least);
    table.at_most("entries", seen.flows, (ENTRIES / 2) as i64);
    table.check();
    // A few may find all slots among which they look for theirs taken.
    let of_xdp = last.lost.iter().filter(|lost| lost.hook == "xdp");
    let lost = of_xdp.map(|lost| lost.count).sum::<u64>();
    assert_eq!(
        seen.overflow_packets, lost,
        "what finds no entry is counted"
    );
    assert!(lost <= 3, "{lost} packets found no entry");
    let lasting = sender(Pair::SERVERS[0], LASTING).to_string();
    let flow = seen.top_flows.iter().find(|flow| flow.source == lasting);
    assert!(flow.is_some_and(|flow| flow.packets > 10), "{flow:?}");
    daemon.stop();
}

#[test]
fn flows_are_tracked_by_addresses_and_ports() {
    let Some(_turn) = skip::turn("flows_are_tracked_by_addresses_and_ports") else {
        return;
    };
    let pair = Pair::new();
    // Both ends have a device of this name: each counts by itself.
    let daemon = Daemon::start(&pair.both(), &["--interface", DEVICE]);
    let at = |netns: &Netns| format!("{}/{DEVICE}", netns.name());
    let mut wanted = BTreeMap::new();
    pair.client.run(|| {
        let wire = Wire::open(DEVICE).expect("the device");
        for (number, server) in (0..10).flat_map(|n| Pair::SERVERS.map(|server| (n, server))) {
            let (from, to) = (sender(server, number), SocketAddr::new(server, 9));
            let packet = frame::udp(from, to, frame::TTL, &[7; 100]);
            for vlans in [&[][..], &[100], &[100, 200]] {
                let frame = frame::ethernet(CLIENT_MAC, SERVER_MAC, vlans, &packet);
                wire.send(&frame).expect("a frame leaves");
                let flow = wanted.entry((from.to_string(), to.to_string()));
                let sum: &mut Received = flow.or_insert(Received {
                    packets: 0,
                    bytes: 0,
                });
                sum.packets += 1;
                sum.bytes += frame.len() as u64;
            }
        }
    });
    let mine = || {
        let snapshot = daemon.snapshot();
        let device = snapshot
            .devices
            .iter()
            .find(|one| one.device == at(&pair.server));
        let flows = &device.expect("the device of the server").top_flows;
        let udp = flows.iter().filter(|flow| flow.protocol == "udp");
        udp.map(|flow| {
            let received = Received {
                packets: flow.packets,
                bytes: flow.bytes,
            };
            ((flow.source.clone(), flow.destination.clone()), received)
        })
        .collect::<BTreeMap<_, _>>()
    };
    let sum = |flows: &BTreeMap<_, Received>| flows.values().map(|one| one.packets).sum::<u64>();
    let found = poll::until("all frames arrived", || {
        Some(mine()).filter(|found| sum(found) >= sum(&wanted))
    });
    assert_eq!(found, wanted);
    let names: Vec<String> = (daemon.snapshot().devices.into_iter())
        .map(|one| one.device)
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&at(&pair.client)), "{names:?}");
    daemon.stop();
}
