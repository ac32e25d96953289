//! What is remembered for each connection while it is open.

/// The handshake is going on: the connection has no row yet.
pub const CONNECTING: u32 = 1;
/// The connection counts as open.
pub const OPEN: u32 = 2;
/// The receive window was closed when it was last looked at.
pub const ZERO_WINDOW: u32 = 4;
/// The listener has had to answer with SYN cookies.
pub const MAYBE_COOKIE: u32 = 8;
/// The connection has been counted as closed or failed; its socket lives on.
pub const CLOSED: u32 = 16;

/// Connections in a [`Bucket`]: with `spilled` their numbers fill a cache line.
pub const BUCKET_CONNS: usize = 7;

/// Element of the `CONNS` map, a hash table of sockets in an array: a socket is
/// in the first of two buckets that follow from its number or, where that was
/// full, in the second. The kernel's own hash map takes some ten times as long
/// to insert and to remove.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Sockets whose first bucket this is and that are in their second.
    pub spilled: u64,
    /// Numbers of the sockets; 0 where the place is free.
    pub sockets: [u64; BUCKET_CONNS],
    /// What is remembered of them.
    pub conns: [Conn; BUCKET_CONNS],
}

const _: () = assert!(size_of::<Bucket>() == 64 + 128 * BUCKET_CONNS);

/// Element of the `STATUS` map: 1 once a connection has found no place.
pub const STATUS_FULL: u32 = 0;
/// Element of the `STATUS` map: 1 once all sockets have been visited, so that
/// a socket without an entry was not there at the start.
pub const STATUS_COMPLETE: u32 = 1;

/// Element of the `STATUS` map: 1 while a visit of all sockets is to report the
/// connections.
pub const STATUS_REPORT: u32 = 3;
/// Element of the `STATUS` map: 1 once a SYN cookie has come back.
pub const STATUS_COOKIES: u32 = 4;
/// Elements of the `STATUS` map.
pub const STATUS_LEN: usize = 5;
/// Element of the `STATUS` map: 0 for ever, which the verifier does not know.
pub const STATUS_ZERO: u32 = 2;

/// What is remembered of one connection: two cache lines, of which most events
/// need the first only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Conn {
    /// Time of ESTABLISHED, or of the first SYN while [`CONNECTING`] as a
    /// client, in nanoseconds of CLOCK_MONOTONIC; 0 where it lies before the start.
    pub since_ns: u64,
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
    /// When the request passed whose answer is awaited, in nanoseconds of
    /// CLOCK_MONOTONIC; 0 where none is. Written outside the socket's lock too,
    /// on kernels that tell of a send when it has returned.
    pub turn_ns: u64,
    /// When the ClientHello passed, likewise; 0 where it has not.
    pub tls_ns: u64,
    /// Control group of the owner, the number of its folder in cgroup v2; 0
    /// where it is not known.
    pub cgroup: u64,
    /// Process of the owner; 0 where it is not known.
    pub pid: u32,
    /// Where the next TLS record from the peer begins, a sequence number.
    pub tls_seq: u32,
    /// How far the TLS handshake is, see [`crate::tls`].
    pub tls: u32,
    /// `write_seq` when a send was last seen.
    pub write_seq: u32,
    /// 1 once the program has been seen to use the socket: it was accepted.
    /// Written like [`Self::turn_ns`].
    pub used: u32,
    /// Zero.
    pub _pad: [u32; 5],
}

const _: () = assert!(size_of::<Conn>() == 128);

// SAFETY: integers only, without padding (the sizes are asserted above).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Bucket {}
