//! Keys of listeners.

use super::{address_bytes, pod};

/// Value in the `LISTENERS` map: the socket iterator has met it.
pub const MET: u8 = 1;
/// Value in the `LISTENERS` map: a program has begun to listen, since the last iteration.
pub const NEW: u8 = 2;
/// Value in the `LISTENERS` map: likewise, and one iteration did not meet it. It may have
/// come after the visit to its namespace.
pub const NOT_MET: u8 = 3;

/// Key of a listener in the `LISTENERS` map.
#[inline(always)]
pub const fn listener_key(netns: u32, port: u16) -> u64 {
    (netns as u64) << 16 | port as u64
}

/// The number of the network namespace in such a key.
#[inline(always)]
pub const fn listener_netns(key: u64) -> u32 {
    (key >> 16) as u32
}

/// Key of the `LISTENER_DROPS` map: where listeners listened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Local address in network order; IPv4 is mapped into `::ffff:0:0/96`.
    pub address: [u64; 2],
    /// Number of the network namespace.
    pub netns: u32,
    /// Local port.
    pub port: u32,
}

impl ListenerKey {
    /// The address as 16 bytes.
    pub fn bytes(&self) -> [u8; 16] {
        address_bytes(self.address)
    }
}

pod! {
    ListenerKey { address, netns, port }
}
