//! The aggregate: one row of counters and histograms for each combination of
//! side, service port and peer group.

use crate::hist;

/// Role of the local end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Side {
    /// The local port is a listener's.
    Server = 0,
    /// The connection was opened from here.
    Client = 1,
    /// The connection was open before the start and its listener is gone.
    Unknown = 2,
    /// There is no socket.
    None = 3,
}

impl Side {
    /// Label values, in the order of the discriminants.
    pub const NAMES: [&'static str; 4] = ["server", "client", "unknown", "none"];
}

/// Peer number of addresses that are not known.
pub const PEER_OTHER: u16 = 0;
/// Peer number of loopback addresses.
pub const PEER_LOOPBACK: u16 = 1;
/// Peer number of RFC 1918, RFC 6598, unique local and link-local addresses.
pub const PEER_PRIVATE: u16 = 2;
/// Peer number of all other addresses.
pub const PEER_PUBLIC: u16 = 3;
/// First peer number of the configured groups.
pub const PEER_CONFIGURED: u16 = 4;

/// Row that takes what found no row of its own.
pub const OVERFLOW_ROW: u32 = 0;

/// Key of the `ROW_OF` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    /// The owner, see [`crate::abi::owner`].
    pub owner: u64,
    /// Number of the network namespace, 0 where namespaces are not told apart.
    pub netns: u32,
    /// Port of the service in host order, 0 where it is not known.
    pub port: u16,
    /// Peer number.
    pub peer: u16,
    /// A [`Side`].
    pub side: u8,
    /// Number of the service address group, 0 for none.
    pub group: u8,
    /// Zero.
    pub _pad: [u16; 3],
}

/// How a connection ended: positions in [`Counters::closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Closed {
    /// Both directions were closed in order.
    Fin = 0,
    /// This end aborted it.
    ResetSent = 1,
    /// The peer aborted it.
    ResetReceived = 2,
    /// The peer stopped answering.
    Timeout = 3,
    /// Anything else.
    Other = 4,
}

impl Closed {
    /// Label values, in the order of the discriminants.
    pub const NAMES: [&'static str; 5] =
        ["fin", "reset_sent", "reset_received", "timeout", "other"];
}

/// Why a connection was never established: positions in [`Counters::failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Failed {
    /// ECONNREFUSED.
    Refused = 0,
    /// ETIMEDOUT.
    Timeout = 1,
    /// ENETUNREACH, EHOSTUNREACH and their kin.
    Unreachable = 2,
    /// A reset during the handshake; on the server a half-open connection reset.
    Reset = 3,
    /// The program gave up, or an ICMP error met a locked socket.
    Cancelled = 4,
    /// No SYN left this host, or a child socket could not be kept.
    Local = 5,
    /// Any other error.
    Other = 6,
}

impl Failed {
    /// Label values, in the order of the discriminants.
    pub const NAMES: [&'static str; 7] = [
        "refused",
        "timeout",
        "unreachable",
        "reset",
        "cancelled",
        "local",
        "other",
    ];
}

/// Cause of a retransmission: positions in [`Counters::retransmits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Retransmit {
    /// A SYN.
    Syn = 0,
    /// A SYN-ACK.
    SynAck = 1,
    /// Fast retransmit: recovery without a timeout.
    Fast = 2,
    /// The head of the queue after a retransmission timeout.
    Timeout = 3,
    /// A tail loss probe that repeats data.
    TailLossProbe = 4,
    /// Anything else, slow start after a timeout included.
    Other = 5,
}

impl Retransmit {
    /// Label values, in the order of the discriminants.
    pub const NAMES: [&'static str; 6] = [
        "syn",
        "synack",
        "fast",
        "timeout",
        "tail_loss_probe",
        "other",
    ];
}

/// Why a TLS handshake was not completed: positions in [`Counters::tls_failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TlsFailed {
    /// The peer sent an alert.
    Alert = 0,
    /// Either end reset the connection.
    Reset = 1,
    /// The peer stopped answering.
    Timeout = 2,
    /// The connection was closed in order.
    Closed = 3,
}

impl TlsFailed {
    /// Label values, in the order of the discriminants.
    pub const NAMES: [&'static str; 4] = ["alert", "reset", "timeout", "closed"];
}

/// Histograms of a row, in their order there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// RTT samples during the life of a connection.
    Rtt = 0,
    /// First SYN (client) or SYN-ACK (server) to ESTABLISHED.
    Handshake = 1,
    /// ESTABLISHED to closed.
    Duration = 2,
    /// ESTABLISHED to the first use by the program that accepted it.
    AcceptQueue = 3,
    /// Last byte of a request to the first byte of its answer.
    FirstByte = 4,
    /// ClientHello to the first application data.
    Tls = 5,
}

/// Number of histograms in a row.
pub const KINDS: usize = 6;

/// Counters of a row. Each is raised with an atomic add, since a program can be
/// interrupted by another one on the same CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that reached ESTABLISHED.
    pub opened: u64,
    /// Connections that came into ESTABLISHED or CLOSE_WAIT less those that
    /// left; the sum over the shards is the number open.
    pub open: u64,
    /// Connections closed, by [`Closed`].
    pub closed: [u64; Closed::NAMES.len()],
    /// Connections closed straight from ESTABLISHED or CLOSE_WAIT.
    pub aborted: u64,
    /// Connections never established, by [`Failed`].
    pub failed: [u64; Failed::NAMES.len()],
    /// Payload bytes sent, first transmissions.
    pub sent_bytes: u64,
    /// Payload bytes received in order.
    pub received_bytes: u64,
    /// Segments sent.
    pub sent_segments: u64,
    /// Segments received.
    pub received_segments: u64,
    /// Segments retransmitted, by [`Retransmit`].
    pub retransmits: [u64; Retransmit::NAMES.len()],
    /// Segments that the peer reported as received twice.
    pub spurious_retransmits: u64,
    /// Segments received out of order.
    pub out_of_order: u64,
    /// Times that the receive window was found closed.
    pub zero_window: u64,
    /// Connections opened with a SYN cookie.
    pub syn_cookies: u64,
    /// TLS handshakes not completed, by [`TlsFailed`].
    pub tls_failed: [u64; TlsFailed::NAMES.len()],
}

/// One histogram: [`hist::SLOTS`] counts and the sum.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Histogram {
    /// Sum of the observations in microseconds.
    pub sum_us: u64,
    /// Observations for each slot of [`hist::slot`].
    pub slots: [u64; hist::SLOTS],
}

/// Value of the `ROWS` map: what one shard of one row holds.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The counters.
    pub counters: Counters,
    /// The histograms, by [`Kind`].
    pub histograms: [Histogram; KINDS],
}

/// Key of the `RESETS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResetKey {
    /// Row of the connection.
    pub row: u32,
    /// 0 sent, 1 received.
    pub direction: u32,
    /// `enum sk_rst_reason` of the running kernel, or [`REASON_UNAVAILABLE`].
    pub reason: u32,
}

impl ResetKey {
    /// The entry of those that find none.
    pub const fn overflow(direction: u32) -> Self {
        Self {
            row: OVERFLOW_ROW,
            direction,
            reason: REASON_OTHER,
        }
    }
}

/// Reset reason where the kernel does not tell.
pub const REASON_UNAVAILABLE: u32 = u32::MAX;
/// Reset reason of those that found no entry.
pub const REASON_OTHER: u32 = u32::MAX - 1;

/// Ports of services that can have a row in any case.
pub const NAMED_PORTS: usize = 4096;

/// Drop reasons of the core that have a place in the `CORE_DROPS` map, whose
/// index is `(shard * CORE_REASONS + reason) * protocols + protocol`. Linux 7.2
/// has some 130.
pub const CORE_REASONS: u32 = 256;

/// Key of the `DROPS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DropKey {
    /// `enum skb_drop_reason` of the running kernel; the upper 16 bits are the subsystem.
    pub reason: u32,
    /// A [`crate::abi::flow::Protocol`].
    pub protocol: u32,
}

const _: () = assert!(size_of::<SeriesKey>() == 24);
const _: () = assert!(size_of::<Counters>() == 33 * 8);
const _: () = assert!(size_of::<Histogram>() == 8 * (1 + hist::SLOTS));
const _: () = assert!(size_of::<Row>() == 33 * 8 + KINDS * size_of::<Histogram>());
const _: () = assert!(size_of::<ResetKey>() == 12);
const _: () = assert!(size_of::<DropKey>() == 8);

#[cfg(feature = "user")]
mod user {
    use super::*;
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for SeriesKey {}
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for Counters {}
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for Histogram {}
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for Row {}
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for ResetKey {}
    // SAFETY: integers only, without padding (asserted above).
    unsafe impl aya::Pod for DropKey {}
}
