//! Owners of sockets as the programs know them: by control group.

/// Owners are not tracked separately: [`super::series::SeriesKey::owner`] is 0.
pub const NONE: u32 = 0;
/// It is what the configured services say of the control group: a bit for each
/// of their paths and units. 0 for most groups, which so share their rows.
pub const BY_SERVICE: u32 = 1;
/// It is the number that user space has given to owners of that name, or
/// [`CGROUP`] with the number of the control group.
pub const BY_NAME: u32 = 2;

/// Paths and units of services that can be tracked separately.
pub const PATTERNS: usize = 63;

/// Set where the rest is the number of a control group.
pub const CGROUP: u64 = 1 << 63;

/// Length of [`Name`].
pub const NAME_LEN: usize = 128;

/// The path of a control group, or the name of its folder, filled up with
/// zeros; a zero comes last.
pub type Name = [u8; NAME_LEN];

/// Elements of the `OWNER_OF` map.
pub const CGROUPS: usize = 16_384;
/// Elements of the `PATH_OF` map, where owners go by name.
pub const PATHS: u32 = 4096;
/// Elements of the `OWNER_BY` map.
pub const NAMES: usize = 1024;
