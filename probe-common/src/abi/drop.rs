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

pod! {
    DropKey { row, reason, protocol }
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
