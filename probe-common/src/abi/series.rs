//! Rows: counters and histograms for each combination of side, service port and
//! peer group, and what else is counted by one.

use super::pod;
use crate::{
    hist,
    labels::Direction,
    metrics::{Counters, HISTOGRAMS},
};

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

/// Element of the `SPARE_ROWS` map: numbers of rows that were taken and not needed, as
/// another CPU was quicker with the same key; 0 where there is none. As many CPUs can
/// come too late for one key at once.
pub type SpareRows = [u64; 64];

/// Key of the `ROW_OF` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    /// The owner, see [`super::owner`].
    pub owner: u64,
    /// Number of the network namespace, 0 where namespaces are not tracked
    /// separately.
    pub netns: u32,
    /// Port of the service in host order, 0 where it is not known.
    pub port: u16,
    /// Peer number.
    pub peer: u16,
    /// A [`crate::labels::Side`].
    pub side: u8,
    /// Number of the service address group, 0 for none.
    pub group: u8,
    /// Zero.
    pub _pad: [u16; 3],
}

/// One histogram: [`hist::SLOTS`] counts and the sum.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Histogram {
    /// Sum of the observations, in units of [`crate::metrics::Buckets::sum_unit_ns`].
    /// Wraps: on a busy host a sum of nanoseconds does so after days.
    pub sum: u64,
    /// Observations for each slot of [`hist::slot`].
    pub slots: [u64; hist::SLOTS],
}

/// Value of the `ROWS` map: what one shard of one row holds.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The counters.
    pub counters: Counters,
    /// The histograms, by [`crate::metrics::HistogramId`].
    pub histograms: [Histogram; HISTOGRAMS.len()],
}

/// Key of the `RESETS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResetKey {
    /// Row of the connection.
    pub row: u32,
    /// A [`Direction`].
    pub direction: u32,
    /// `enum sk_rst_reason` of the running kernel, or [`REASON_UNAVAILABLE`].
    pub reason: u32,
}

impl ResetKey {
    /// The entry of those that find none.
    pub const fn overflow(direction: Direction) -> Self {
        Self {
            row: OVERFLOW_ROW,
            direction: direction as u32,
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
/// Networks of all groups of peers.
pub const PEER_NETWORKS: usize = 4096;
/// Networks that services are narrowed by.
pub const GROUP_NETWORKS: usize = 255;

pod! {
    SeriesKey { owner, netns, port, peer, side, group, _pad }
    Histogram { sum, slots }
    Row { counters, histograms }
    ResetKey { row, direction, reason }
}
