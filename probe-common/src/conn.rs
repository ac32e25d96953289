//! What is remembered for each connection while it is open.

/// The connection is in SYN_SENT: it has no row yet.
pub const CONNECTING: u32 = 1;
/// The connection counts as open.
pub const OPEN: u32 = 2;

/// Value of the `CONNS` map; the key is the address of the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Conn {
    /// Time of ESTABLISHED, or of the first SYN while [`CONNECTING`], in
    /// nanoseconds of CLOCK_MONOTONIC; 0 where it lies before the start.
    pub since_ns: u64,
    /// What `sent_bytes` was when the socket was first seen.
    pub first_sent_bytes: u64,
    /// What `received_bytes` was when the socket was first seen.
    pub first_received_bytes: u64,
    /// Payload bytes sent that are in the row already.
    pub sent_bytes: u64,
    /// Payload bytes received that are in the row already.
    pub received_bytes: u64,
    /// The row.
    pub row: u32,
    /// [`CONNECTING`], [`OPEN`].
    pub flags: u32,
    /// `srtt_us` when it was last looked at.
    pub srtt_us: u32,
    /// `mdev_us` when it was last looked at.
    pub mdev_us: u32,
    /// Retransmitted segments that are in the row already.
    pub retransmits: u32,
    /// Segments received that are in the row already.
    pub segs_in: u32,
    /// Segments sent that are in the row already.
    pub segs_out: u32,
    /// Duplicates reported that are in the row already.
    pub dsack_dups: u32,
    /// Segments out of order that are in the row already.
    pub out_of_order: u32,
    /// A [`crate::series::Side`].
    pub side: u32,
}

const _: () = assert!(size_of::<Conn>() == 80);

// SAFETY: integers only, without padding (asserted above).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Conn {}
