//! What is remembered for each connection while it is open.

use super::pod;
use crate::tcp_metrics;

/// The handshake is going on: the connection has no row yet.
pub const CONNECTING: u16 = 1;
/// The connection counts as open.
pub const OPEN: u16 = 2;
/// The receive window was closed when it was last looked at.
pub const ZERO_WINDOW: u16 = 4;
/// The listener has had to answer with SYN cookies.
pub const MAYBE_COOKIE: u16 = 8;
/// The connection has been counted as closed or failed; its socket lives on.
pub const CLOSED: u16 = 16;

/// By how many jiffies at most a listener's last SYN cookie may be older than a
/// connection that it opened: two minutes (`TCP_SYNCOOKIE_VALID`) where a jiffy
/// is a millisecond, more where it is longer.
pub const COOKIE_JIFFIES: u32 = 120_000;
/// Slots beside its own in which a connection may be. That all of them are
/// taken is rare before the table is 80 % full.
pub const CONN_PROBE_LIMIT: u32 = 64;

/// Where the drops of a connection are no longer counted: short of 2^32, so that CPUs
/// which count at once do not begin again at 0.
pub const MOST_DROPS: u32 = u32::MAX - 0xffff;

/// How far the TLS handshake of a connection is: values of [`Conn::tls`].
pub mod tls {
    /// Nothing has been seen that tells.
    pub const UNKNOWN: u8 = 0;
    /// A ClientHello was seen (server), or a ServerHello has answered it (client).
    pub const HELLO: u8 = 1;
    /// The peer may send application data next: a client has seen the record that
    /// ends the server's part, or a server the client's ChangeCipherSpec.
    pub const ANSWERED: u8 = 2;
    /// It is not TLS, the handshake is over, or the records can be followed no more.
    pub const DONE: u8 = 3;
    /// A client was asked for another ClientHello (RFC 8446 section 4.1.4).
    pub const RETRY: u8 = 4;
    /// A client has sent a ClientHello, and has no answer.
    pub const GREETED: u8 = 5;
}

macro_rules! define_flushed {
    (
        counters {$(
            $(#[$help:meta])*
            $field:ident {
                name: $name:literal, type: $type:ident, unit: $unit:ident, $(by: $label:ident as $key:literal,)?
                from: $from:ident $(($getter:ident: $width:ident $(, $state:ident)?))?,
                kernel: $kernel:literal,
            }
        )*}
        histograms $histograms:tt
    ) => {
        define_flushed! { @collect {} $($field $(($width))?)* }
    };
    (@collect {$($member:ident: $width:ident,)*} $field:ident ($type:ident) $($rest:tt)*) => {
        define_flushed! { @collect {$($member: $width,)* $field: $type,} $($rest)* }
    };
    (@collect $members:tt $field:ident $($rest:tt)*) => {
        define_flushed! { @collect $members $($rest)* }
    };
    (@collect {$($member:ident: $width:ident,)*}) => {
        /// What a socket has counted that is in the connection's row already: a
        /// member for each counter that the table in [`crate::metrics`] takes from
        /// the socket.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Flushed {
            $(
                #[doc = concat!("For [`Counters::", stringify!($member), "`](crate::metrics::Counters).")]
                pub $member: $width,
            )*
            /// Zero.
            pub _pad: [u32; MEMBER_BYTES / 4 % 2],
        }

        pod! {
            Flushed { $($member,)* _pad }
        }

        /// Bytes of the counters in [`Flushed`].
        const MEMBER_BYTES: usize = 0 $(+ size_of::<$width>())*;
    };
}
tcp_metrics!(define_flushed);

/// Element of the `CONNS` map, a hash table of sockets with open addressing: a
/// connection is in the slot that follows from the number of its socket or,
/// where that was taken, in one of [`CONN_PROBE_LIMIT`] others.
///
/// Two cache lines: most events need the first only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Conn {
    /// Number of the socket; 0 where the slot is free.
    pub socket: u64,
    /// Time of ESTABLISHED, in nanoseconds of CLOCK_MONOTONIC; 0 where it lies before
    /// the start. While [`CONNECTING`] that of a client's first SYN, or of the SYN-ACK
    /// to a SYN with data that the program has read; else 0.
    pub since_ns: u64,
    /// When the request passed whose answer is awaited, in nanoseconds of
    /// CLOCK_MONOTONIC; 0 where none has passed, negative where it is answered. Written
    /// outside the socket's lock too, on kernels that tell of a send when it has
    /// returned: there with exchanges only.
    pub request_ns: u64,
    /// The row; while [`CONNECTING`] the overflow row until it is needed.
    pub row: u32,
    /// [`CONNECTING`], [`OPEN`] and so on.
    pub flags: u16,
    /// A [`crate::labels::Side`].
    pub side: u8,
    /// How far the TLS handshake is, see [`tls`]. Written like [`Self::request_ns`].
    pub tls: u8,
    /// `srtt_us` when it was last looked at.
    pub srtt_us: u32,
    /// `mdev_us` when it was last looked at.
    pub mdev_us: u32,
    /// 1 once the program has been seen to use the socket: it was accepted.
    /// Written like [`Self::request_ns`].
    pub used: u32,
    /// `write_seq` when a send was last seen. Written like [`Self::request_ns`].
    pub write_seq: u32,
    /// Process that called `connect()`; 0 of any other connection.
    pub pid: u32,
    /// Segments received with payload when the connection left ESTABLISHED, or
    /// after that when the program had last read all there was.
    pub data_segs: u32,
    /// Of the slot, not of the connection in it: connections that belong here
    /// and are elsewhere. Sockets are spread evenly, so that they are few.
    pub spilled: u16,
    /// Why the last of [`Self::drops`] was dropped, see
    /// [`packed_reason`](super::drop::packed_reason); of no meaning without one.
    /// Written like [`Self::request_ns`].
    pub drop_reason: u16,
    /// Packets to or from the connection that were dropped while it was open, those
    /// that nobody lacks left out; it stops at [`MOST_DROPS`]. Written likewise, with
    /// atomic adds.
    pub drops: u32,
    /// What is in the row already.
    pub flushed: Flushed,
    /// When the ClientHello passed, in nanoseconds of CLOCK_MONOTONIC; 0 where
    /// it has not.
    pub tls_ns: u64,
    /// Where the next TLS record from the peer begins, a sequence number.
    pub tls_seq: u32,
    /// Retransmitted segments that are in the row already: they are flushed by
    /// cause, when they are sent.
    pub retransmits: u32,
}

const _: () = assert!(core::mem::offset_of!(Conn, spilled) == 56);
// The two are added to as one word of 32 bits, whose lower half `spilled` is.
const _: () = assert!(core::mem::offset_of!(Conn, drop_reason) == 58);
const _: () = assert!(core::mem::offset_of!(Conn, flushed) == 64);
const _: () = assert!(
    size_of::<Conn>() == 128,
    "an entry has no room for one more counter of the socket: see ARCHITECTURE.md"
);

pod! {
    Conn {
        socket, since_ns, request_ns, row, flags, side, tls, srtt_us, mdev_us, used, write_seq, pid,
        data_segs, spilled, drop_reason, drops, flushed, tls_ns, tls_seq, retransmits,
    }
}
