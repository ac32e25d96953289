//! Records that the iterators write.
//!
//! `iter/tcp` writes records of two kinds one after the other; each begins with a
//! [`RecordKind`], which tells its length.

use super::pod;

/// States of a TCP socket (`include/net/tcp_states.h`).
pub mod state {
    #![expect(missing_docs, reason = "the names are those of RFC 9293")]
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
    /// A request socket.
    pub const NEW_SYN_RECV: u8 = 12;
}

/// The states by which sockets are counted, with their names.
pub const SOCKET_STATES: [(u8, &str); 6] = [
    (state::ESTABLISHED, "established"),
    (state::FIN_WAIT1, "fin_wait1"),
    (state::FIN_WAIT2, "fin_wait2"),
    (state::CLOSE_WAIT, "close_wait"),
    (state::LAST_ACK, "last_ack"),
    (state::CLOSING, "closing"),
];

/// Position of a state in [`SOCKET_STATES`].
#[inline(always)]
pub const fn state_index(state: u8) -> u32 {
    match state {
        state::ESTABLISHED => 0,
        state::FIN_WAIT1 => 1,
        state::FIN_WAIT2 => 2,
        state::CLOSE_WAIT => 3,
        state::LAST_ACK => 4,
        _ => 5,
    }
}

/// Kind of a record of `iter/tcp`: its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RecordKind {
    /// A [`ListenerRecord`].
    Listener = 1,
    /// A [`ConnectionRecord`].
    Connection = 2,
}

/// A socket, as the records of `iter/tcp` have it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Number of the socket, as in [`SocketPid`].
    pub id: u64,
    /// Number of the owner's control group; 0 where this kernel does not tell.
    pub cgroup: u64,
    /// Local address; IPv4 is mapped into `::ffff:0:0/96`.
    pub local: [u8; 16],
    /// Number of the network namespace.
    pub netns: u32,
    /// Local port.
    pub local_port: u16,
    /// Zero.
    pub _pad: u16,
}

/// A listener.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerRecord {
    /// [`RecordKind::Listener`].
    pub kind: u32,
    /// Packets dropped on the socket (`sk_drops`).
    pub drops: u32,
    /// The socket.
    pub socket: Endpoint,
    /// Connections that wait for `accept()`.
    pub accept_queue: u32,
    /// How many may wait.
    pub backlog: u32,
    /// Half-open connections.
    pub syn_queue: u32,
    /// Zero.
    pub _pad: u32,
}

/// A connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionRecord {
    /// [`RecordKind::Connection`].
    pub kind: u32,
    /// Row of the connection.
    pub row: u32,
    /// The socket.
    pub socket: Endpoint,
    /// Remote address; IPv4 is mapped into `::ffff:0:0/96`.
    pub remote: [u8; 16],
    /// Payload bytes sent since it was opened.
    pub sent_bytes: u64,
    /// Payload bytes received since it was opened.
    pub received_bytes: u64,
    /// Time of ESTABLISHED in nanoseconds of CLOCK_MONOTONIC; 0 if before the start.
    pub since_ns: u64,
    /// Remote port.
    pub remote_port: u16,
    /// One of [`state`].
    pub state: u8,
    /// `enum tcp_ca_state`.
    pub ca_state: u8,
    /// Smoothed RTT in microseconds.
    pub srtt_us: u32,
    /// Least RTT in microseconds; all ones without a sample.
    pub min_rtt_us: u32,
    /// Congestion window in segments.
    pub snd_cwnd: u32,
    /// Retransmitted segments.
    pub retransmits: u32,
    /// Process that called `connect()`; 0 of other sockets.
    pub pid: u32,
    /// As [`Conn::drops`](super::conn::Conn::drops).
    pub drops: u32,
    /// As [`Conn::drop_reason`](super::conn::Conn::drop_reason).
    pub drop_reason: u16,
    /// Zero.
    pub _pad: u16,
}

/// Record that `iter/task_file` writes for each TCP socket that a process holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketPid {
    /// Number of the socket: the same in all programs as long as it lives.
    pub id: u64,
    /// The process.
    pub pid: u32,
    /// Zero.
    pub _pad: u32,
}

pod! {
    Endpoint { id, cgroup, local, netns, local_port, _pad }
    ListenerRecord { kind, drops, socket, accept_queue, backlog, syn_queue, _pad }
    ConnectionRecord {
        kind, row, socket, remote, sent_bytes, received_bytes, since_ns, remote_port, state,
        ca_state, srtt_us, min_rtt_us, snd_cwnd, retransmits, pid, drops,
        drop_reason, _pad,
    }
    SocketPid { id, pid, _pad }
}
