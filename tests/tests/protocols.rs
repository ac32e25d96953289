//! What a packet is: the same to XDP, which sees the frame, and to the program that
//! sees the kernel drop it.

use std::net::{IpAddr, SocketAddr};

use probe_tests::{
    daemon::Daemon,
    frame::{self, Wire},
    netns::{CLIENT_MAC, DEVICE, Pair, SERVER_MAC},
    poll, skip,
    truth::Table,
};
use probe_user::model::Snapshot;

/// Frames of each kind.
const EACH: u64 = 20;
/// Nobody listens there.
const PORT: u16 = 9;
/// Next headers (RFC 8200, section 4; RFC 9293).
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;
const TCP: u8 = 6;
const UDP: u8 = 17;

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Puts extension headers of eight bytes, all padding, behind the fixed header of an
/// IPv6 packet.
fn extended(packet: &[u8], kinds: &[u8]) -> Vec<u8> {
    let (fixed, rest) = packet.split_at(40);
    let mut bytes = fixed.to_vec();
    let length = (rest.len() + 8 * kinds.len()) as u16;
    bytes[4..6].copy_from_slice(&length.to_be_bytes());
    let last = std::mem::replace(&mut bytes[6], kinds[0]);
    for next in kinds[1..].iter().chain([&last]) {
        // PadN with four bytes of padding.
        bytes.extend([*next, 0, 1, 4, 0, 0, 0, 0]);
    }
    bytes.extend(rest);
    bytes
}

/// Packets of a protocol that XDP saw, and that the kernel dropped for any reason.
fn counts(snapshot: &Snapshot, protocol: &str) -> [u64; 2] {
    let devices = snapshot.devices.iter().flat_map(|one| &one.traffic);
    let seen = devices.filter(|one| one.protocol == protocol);
    let dropped = snapshot.drops.iter().filter(|one| one.protocol == protocol);
    [
        seen.map(|one| one.packets).sum(),
        dropped.map(|one| one.count).sum(),
    ]
}

#[test]
fn a_packet_is_of_one_protocol_to_xdp_and_to_the_drops() {
    let Some(_turn) = skip::turn("a_packet_is_of_one_protocol_to_xdp_and_to_the_drops") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start_inside(&pair.server, &["--interface", DEVICE]);
    let (v4, v6) = (
        [Pair::CLIENT_V4, Pair::SERVER_V4],
        [Pair::CLIENT_V6, Pair::SERVER_V6],
    );
    let udp = |[from, to]: [IpAddr; 2]| frame::udp(at(from, 40000), at(to, PORT), frame::TTL, b"x");
    let syn = |[from, to]: [IpAddr; 2]| frame::syn(at(from, 40000), at(to, PORT));
    // The tags lead to no device, so what has one is for nobody here.
    let packets = [
        ("plain, udp", UDP, udp(v4), &[][..]),
        ("plain, tcp", TCP, syn(v4), &[]),
        ("a tag, udp", UDP, udp(v4), &[5]),
        ("a tag, tcp over IPv6", TCP, syn(v6), &[5]),
        ("two tags, udp", UDP, udp(v4), &[5, 6]),
        (
            "options, udp",
            UDP,
            extended(&udp(v6), &[DESTINATION_OPTIONS]),
            &[],
        ),
        (
            "options of both kinds, tcp",
            TCP,
            extended(&syn(v6), &[HOP_BY_HOP, DESTINATION_OPTIONS]),
            &[],
        ),
        (
            "a tag and options, tcp",
            TCP,
            extended(&syn(v6), &[DESTINATION_OPTIONS]),
            &[7],
        ),
    ];
    let wire = pair.client.run(|| Wire::open(DEVICE)).expect("the device");
    for (what, protocol, packet, vlans) in packets {
        let name = if protocol == TCP { "tcp" } else { "udp" };
        let before = counts(&daemon.snapshot(), name);
        let frame = frame::ethernet(CLIENT_MAC, SERVER_MAC, vlans, &packet);
        for _ in 0..EACH {
            wire.send(&frame).expect("a frame leaves");
        }
        let after = poll::until(what, || {
            let after = counts(&daemon.snapshot(), name);
            (after[1] >= before[1] + EACH).then_some(after)
        });
        let mut table = Table::default();
        table.equal(what, after[0] - before[0], EACH as i64);
        table.equal("and dropped", after[1] - before[1], EACH as i64);
        table.check();
    }
    daemon.stop();
}
