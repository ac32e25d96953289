//! Records that the iterators write.

/// One listener or connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SockRecord {
    /// Number of the socket, as in [`Holder`].
    pub id: u64,
    /// Number of the owner's control group; 0 where this kernel does not tell.
    pub cgroup: u64,
    /// Local address; IPv4 is mapped into `::ffff:0:0/96`.
    pub local: [u8; 16],
    /// Remote address, likewise.
    pub remote: [u8; 16],
    /// Payload bytes sent since it was opened.
    pub sent_bytes: u64,
    /// Payload bytes received since it was opened.
    pub received_bytes: u64,
    /// Time of ESTABLISHED in nanoseconds of CLOCK_MONOTONIC; 0 if before the start.
    pub since_ns: u64,
    /// Number of the network namespace.
    pub netns: u32,
    /// Row of the connection; unused for a listener.
    pub row: u32,
    /// Local port.
    pub local_port: u16,
    /// Remote port.
    pub remote_port: u16,
    /// TCP state; 10 is a listener.
    pub state: u8,
    /// A [`crate::abi::series::Side`].
    pub side: u8,
    /// `enum tcp_ca_state`.
    pub ca_state: u8,
    /// Zero.
    pub _pad: u8,
    /// Smoothed RTT in microseconds; for a listener the accept queue's length.
    pub srtt_us: u32,
    /// Least RTT in microseconds; for a listener the backlog.
    pub min_rtt_us: u32,
    /// Congestion window in segments; for a listener the SYN queue's length.
    pub snd_cwnd: u32,
    /// Retransmitted segments; for a listener `sk_drops`.
    pub retransmits: u32,
    /// Process that called `connect()`; 0 of other sockets.
    pub pid: u32,
    /// Zero.
    pub _pad2: u32,
}

/// Record that the `iter/task_file` program writes for each TCP socket that a
/// process holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Number of the socket: the same in all programs as long as it lives.
    pub id: u64,
    /// The process.
    pub pid: u32,
    /// Zero.
    pub _pad: u32,
}

/// Key of a listener in the `LISTENERS` map.
#[inline(always)]
pub const fn listener_key(netns: u32, port: u16) -> u64 {
    (netns as u64) << 16 | port as u64
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
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&self.address[1].to_ne_bytes());
        bytes
    }
}

/// TCP state of a listener.
pub const LISTEN: u8 = 10;

const _: () = assert!(size_of::<SockRecord>() == 112);
const _: () = assert!(size_of::<Holder>() == 16);
const _: () = assert!(size_of::<ListenerKey>() == 24);

// SAFETY: integers only, without padding (asserted above).
#[cfg(feature = "user")]
unsafe impl aya::Pod for SockRecord {}
// SAFETY: integers only, without padding (asserted above).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Holder {}
// SAFETY: integers only, without padding (asserted above).
#[cfg(feature = "user")]
unsafe impl aya::Pod for ListenerKey {}
