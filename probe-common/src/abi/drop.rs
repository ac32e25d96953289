//! Packets that the kernel dropped.

use super::{pod, series::OVERFLOW_ROW};

/// Drop reasons of the core that have an element in the `CORE_DROPS` map, whose
/// index is `(shard * CORE_REASONS + reason) * protocols + protocol`. Linux 7.2
/// has some 130.
///
/// The shards are those of a row and one more: the last has the drops that are
/// somebody's and found no entry in `SERVICE_DROPS`.
pub const CORE_REASONS: u32 = 256;

/// Words of the set of the core's reasons that are counted as nobody's at once.
pub const REASON_WORDS: usize = CORE_REASONS as usize / 32;

/// In place of a row: the drop is nobody's.
pub const NOBODY: u32 = u32::MAX;

/// A drop reason in 16 bits, four of which are the subsystem; 0, which is none, where it
/// does not fit.
#[inline(always)]
pub const fn packed_reason(reason: u32) -> u16 {
    let (subsystem, number) = (reason >> 16, reason & 0xffff);
    if subsystem > 0xf || number > 0xfff {
        return 0;
    }
    (subsystem << 12 | number) as u16
}

/// What [`packed_reason`] was given.
pub const fn unpacked_reason(packed: u16) -> u32 {
    let packed = packed as u32;
    packed >> 12 << 16 | packed & 0xfff
}

/// Key of the `DROPS` and `SERVICE_DROPS` maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DropKey {
    /// The row whose side and service it has, [`FOLDED`] or [`NOBODY`].
    pub row: u32,
    /// `enum skb_drop_reason` of the running kernel; the upper 16 bits are the subsystem.
    pub reason: u32,
    /// A [`crate::labels::Protocol`].
    pub protocol: u32,
}

/// In place of a row: it is somebody's, and found no entry of its own.
pub const FOLDED: u32 = OVERFLOW_ROW;

/// Groups into which reasons are put for their samples, so that many drops of one reason
/// do not replace the samples of the others.
pub const SAMPLE_GROUPS: u32 = 32;
/// The newest samples of a group that are kept.
pub const GROUP_SAMPLES: u32 = 4;
/// Of a group there is at most one sample in 2^so many jiffies: 16 of them are 16 to
/// 160 ms.
pub const SAMPLE_JIFFIES_SHIFT: u32 = 4;
/// Bytes of the text that tells where in the kernel a packet was dropped, its end
/// included.
pub const PLACE_LEN: usize = 88;

/// The group of a reason.
#[inline(always)]
pub const fn sample_group(reason: u32) -> u32 {
    reason.wrapping_mul(0x9e37_79b1) >> (32 - SAMPLE_GROUPS.ilog2())
}

/// Element of the `SAMPLE_GROUPS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SampleGroup {
    /// When the last sample was taken, in 2^[`SAMPLE_JIFFIES_SHIFT`] jiffies.
    pub taken_at: u64,
    /// Samples that were taken.
    pub taken: u64,
}

/// Element of the `DROP_SAMPLES` map, one dropped packet: number `n` of group `g` is
/// at `g * GROUP_SAMPLES + n % GROUP_SAMPLES`. It is written in place, while others read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DropSample {
    /// `2 * n + 2` of sample number `n`, one less while it is written, 0 where there was
    /// none.
    pub sequence: u64,
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Number of the receiving or the sending socket, 0 without one.
    pub socket: u64,
    /// Number of the control group of that socket; 0 where it has none or is not told.
    pub cgroup: u64,
    /// Source address in network order, IPv4 mapped into `::ffff:0:0/96`; all zeros
    /// where it cannot be read.
    pub source: [u64; 2],
    /// Destination address, likewise.
    pub destination: [u64; 2],
    /// As [`DropKey::row`].
    pub row: u32,
    /// As [`DropKey::reason`].
    pub reason: u32,
    /// Number of the network namespace.
    pub netns: u32,
    /// Process that called `connect()`; 0 of any other connection.
    pub pid: u32,
    /// Source port, 0 without one.
    pub source_port: u16,
    /// Destination port, likewise.
    pub destination_port: u16,
    /// As [`DropKey::protocol`].
    pub protocol: u32,
    /// The function that dropped it, as the kernel writes it (`%pB`): name, offset and
    /// size, and the module. Ends with a zero; empty where the kernel did not tell.
    pub place: [u8; PLACE_LEN],
}

pod! {
    DropKey { row, reason, protocol }
    SampleGroup { taken_at, taken }
    DropSample {
        sequence, time_ns, socket, cgroup, source, destination, row, reason, netns, pid,
        source_port, destination_port, protocol, place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_reason_is_the_same_or_none() {
        for reason in [2, 130, 0xfff, 0x1_0001, 0x3_0007, 0xf_0fff] {
            assert_eq!(unpacked_reason(packed_reason(reason)), reason);
        }
        for reason in [0x1000, 0x10_0001, u32::MAX] {
            assert_eq!(packed_reason(reason), 0);
        }
    }
}
