//! Packets as the XDP program and the drop hook see them.

/// What a packet is, as far as labels tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Protocol {
    /// TCP over IPv4 or IPv6.
    Tcp = 0,
    /// UDP over IPv4 or IPv6.
    Udp = 1,
    /// ICMP.
    Icmp = 2,
    /// ICMPv6.
    Icmp6 = 3,
    /// Another protocol over IPv4.
    Ipv4 = 4,
    /// Another protocol over IPv6.
    Ipv6 = 5,
    /// ARP.
    Arp = 6,
    /// Anything else.
    Other = 7,
}

impl Protocol {
    /// Label values, in the order of the discriminants.
    pub const NAMES: [&'static str; 8] = [
        "tcp", "udp", "icmp", "icmp6", "ipv4", "ipv6", "arp", "other",
    ];
}

/// Key of the `FLOWS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source address; IPv4 is mapped into `::ffff:0:0/96`. Zero if not IP.
    pub source: [u8; 16],
    /// Destination address, likewise.
    pub destination: [u8; 16],
    /// Source port, 0 where the packet has none.
    pub source_port: u16,
    /// Destination port, 0 where the packet has none.
    pub destination_port: u16,
    /// EtherType of what the frame carries, in host order, VLAN tags removed.
    pub ethertype: u16,
    /// IP protocol number, 0 if not IP.
    pub protocol: u8,
    /// Zero.
    pub _pad: u8,
}

/// Packets and their bytes, Ethernet header included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<Traffic>() == 16);

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for super::Traffic {}
}
