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

/// A flow.
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

/// [`Flow::tag`] of a place that is free.
pub const EMPTY: u64 = 0;
/// [`Flow::tag`] while the key is being written.
pub const TAKING: u64 = 1;
/// [`Flow::tag`] of a place whose flow is to give it up: it is nobody's, and not
/// free yet.
pub const LEAVING: u64 = 2;
/// [`Flow::tag`] of a place that was given up: free, but flows that were put down
/// while it was taken may be in those behind it.
pub const LEFT: u64 = 3;
/// Set in the [`Flow::tag`] of a place that is taken.
pub const TAKEN: u64 = 4;

/// Value of the `FLOWS` map: a place of its hash table, one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// [`EMPTY`], [`TAKING`], [`LEAVING`], [`LEFT`], or the hash of the key with
    /// [`TAKEN`].
    pub tag: u64,
    /// Whose place it is.
    pub key: FlowKey,
    /// What it counts.
    pub traffic: Traffic,
}

/// Places that are looked at for a flow, one after the other.
pub const PROBES: u32 = 16;

/// Places of the table for as many flows, a power of two: half of them stay
/// free, so that nearly every flow finds one among [`PROBES`].
pub const fn flow_places(flows: u32) -> u32 {
    (flows * 2).next_power_of_two()
}

const _: () = assert!(flow_places(1) == 2 && flow_places(1000) == 2048);
const _: () = assert!(flow_places(65536) == 131_072 && flow_places(65537) == 262_144);
const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<Flow>() == 64);
const _: () = assert!(size_of::<Traffic>() == 16);

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for super::Traffic {}
}
