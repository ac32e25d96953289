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

/// Element of the `STATUS` map: 1 once a connection has found no place.
pub const STATUS_FULL: u32 = 0;
/// Element of the `STATUS` map: 1 once all sockets have been visited, so that
/// a socket without an entry was not there at the start.
pub const STATUS_COMPLETE: u32 = 1;

/// Element of the `STATUS` map: 1 while a visit of all sockets is to report the
/// connections.
pub const STATUS_REPORT: u32 = 3;
/// Element of the `STATUS` map: 1 while SYN cookies come back.
pub const STATUS_COOKIES: u32 = 2;
/// Element of the `STATUS` map: the number of a row that was taken and not
/// needed, or 0.
pub const STATUS_SPARE_ROW: u32 = 4;
/// By how many jiffies at most a listener's last SYN cookie may be older than a
/// connection that it opened: two minutes (`TCP_SYNCOOKIE_VALID`) where a jiffy
/// is a millisecond, more where it is longer.
pub const COOKIE_JIFFIES: u32 = 120_000;
/// Elements of the `STATUS` map.
pub const STATUS_LEN: usize = 5;
/// Places beside its own in which a connection may be. That all of them are
/// taken is rare before the table is 80 % full.
pub const PROBES: u32 = 64;

/// Element of the `CONNS` map, a hash table of sockets with open addressing: a
/// connection is in the place that follows from the number of its socket or,
/// where that was taken, in one of [`PROBES`] others.
///
/// Two cache lines: most events need the first only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Conn {
    /// Number of the socket; 0 where the place is free.
    pub socket: u64,
    /// Time of ESTABLISHED, or of the first SYN while [`CONNECTING`] as a
    /// client, in nanoseconds of CLOCK_MONOTONIC; 0 where it lies before the start.
    pub since_ns: u64,
    /// When the request passed whose answer is awaited, in nanoseconds of
    /// CLOCK_MONOTONIC; 0 where none is. Written outside the socket's lock too,
    /// on kernels that tell of a send when it has returned.
    pub turn_ns: u64,
    /// The row.
    pub row: u32,
    /// [`CONNECTING`], [`OPEN`] and so on.
    pub flags: u32,
    /// A [`crate::abi::series::Side`].
    pub side: u32,
    /// `srtt_us` when it was last looked at.
    pub srtt_us: u32,
    /// `mdev_us` when it was last looked at.
    pub mdev_us: u32,
    /// How far the TLS handshake is, see [`crate::abi::tls`].
    pub tls: u32,
    /// 1 once the program has been seen to use the socket: it was accepted.
    /// Written like [`Self::turn_ns`].
    pub used: u64,
    /// Of the place, not of the connection in it: connections that belong here
    /// and are elsewhere.
    pub spilled: u64,
    /// Payload bytes sent that are in the row already.
    pub sent_bytes: u64,
    /// Payload bytes received that are in the row already.
    pub received_bytes: u64,
    /// When the ClientHello passed, in nanoseconds of CLOCK_MONOTONIC; 0 where
    /// it has not.
    pub tls_ns: u64,
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
    /// Process that called `connect()`; 0 of any other connection.
    pub pid: u32,
    /// Where the next TLS record from the peer begins, a sequence number.
    pub tls_seq: u32,
    /// `write_seq` when a send was last seen.
    pub write_seq: u32,
    /// Segments received with payload when the connection left ESTABLISHED, or
    /// after that when the program had last read all there was.
    pub data_segs: u32,
    /// Zero.
    pub _pad: u32,
}

const _: () = assert!(size_of::<Conn>() == 128);
const _: () = assert!(core::mem::offset_of!(Conn, spilled) == 56);
const _: () = assert!(core::mem::offset_of!(Conn, sent_bytes) == 64);

// SAFETY: integers only, without padding (asserted above).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Conn {}
