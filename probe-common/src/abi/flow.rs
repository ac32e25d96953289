//! Flows of an interface, as the XDP program counts them.

use super::pod;

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

/// [`Flow::tag`] of a free slot.
pub const EMPTY: u64 = 0;
/// [`Flow::tag`] while a key is being written.
pub const CLAIMED: u64 = 1;
/// [`Flow::tag`] while a flow is evicted: nobody's, and not free yet.
pub const EVICTING: u64 = 2;
/// [`Flow::tag`] of a slot whose flow was evicted: free, but flows that were
/// inserted while it was taken may be in those behind it.
pub const EVICTED: u64 = 3;
/// Set in the [`Flow::tag`] of a slot that is taken.
pub const TAKEN: u64 = 4;

/// Value of the `FLOWS` map: a slot of its hash table, one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// [`EMPTY`], [`CLAIMED`], [`EVICTING`], [`EVICTED`], or the hash of the key
    /// with [`TAKEN`].
    pub tag: u64,
    /// Which flow it is.
    pub key: FlowKey,
    /// What it counts.
    pub traffic: Traffic,
}

/// Slots that are looked at for a flow, one after the other.
pub const FLOW_PROBE_LIMIT: u32 = 16;

/// Slots of the table for so many flows, a power of two: half of them stay free,
/// so that nearly every flow finds one among [`FLOW_PROBE_LIMIT`].
pub const fn flow_slots(flows: u32) -> u32 {
    (flows * 2).next_power_of_two()
}

const _: () = assert!(flow_slots(1) == 2 && flow_slots(1000) == 2048);
const _: () = assert!(flow_slots(65536) == 131_072 && flow_slots(65537) == 262_144);

pod! {
    FlowKey { source, destination, source_port, destination_port, ethertype, protocol, _pad }
    Flow { tag, key, traffic }
    Traffic { packets, bytes }
}
