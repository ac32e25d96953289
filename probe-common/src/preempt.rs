//! Several programs for one event, where the kernel preempts programs.

/// Programs on a tracepoint there: one that does the work, and its copies, whose
/// names are its own with 2, 3, … after them.
pub const COPIES: u32 = 6;

/// Elements of the `MARKS` map, a power of two.
pub const MARKS: u32 = 1 << 16;
