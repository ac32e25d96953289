//! `struct sock`, `struct tcp_sock` and the request sockets.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{bpf_jiffies64, bpf_skc_to_tcp_request_sock, bpf_skc_to_tcp_sock},
};

pub use probe_common::abi::iter::state;
use probe_common::{abi::conn::COOKIE_JIFFIES, layout::ABSENT};

use super::{
    addr::{Address, mapped},
    cgroup::Cgroup,
    kfunc, load, number,
};
use crate::globals::global;

/// `IPPROTO_TCP`.
pub const IPPROTO_TCP: u16 = 6;
/// `IPPROTO_MPTCP`.
pub const IPPROTO_MPTCP: u16 = 262;
/// `AF_INET`.
pub const AF_INET: u16 = 2;
/// `AF_INET6`.
pub const AF_INET6: u16 = 10;
const SOCK_DONE: u64 = 1 << 1;
/// Nothing is read any more.
const RCV_SHUTDOWN: u8 = 1;

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident: $field:ident as $type:ty;)*) => {
        getters! { from pointer: $($(#[$doc])* $name: $field as $type;)* }
    };
    (from $pointer:ident: $($(#[$doc:meta])* $name:ident: $field:ident as $type:ty;)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $name(self) -> $type {
                // SAFETY: a BTF-typed pointer; see [`load!`].
                unsafe { load!(self.$pointer(), $field) }
            }
        )*
    };
}

/// A bit field of a TCP socket; see [`probe_common::layout::Source::Bits`].
macro_rules! bits {
    ($tp:expr, $field:ident) => {{
        let field = global!(LAYOUT.$field);
        // SAFETY: a BTF-typed pointer; see [`load!`].
        let byte: u8 = unsafe { load!($tp.tp, $field) };
        (byte >> (field >> 16 & 7)) & ((1u16 << (field >> 24)) - 1) as u8
    }};
}

/// A `struct sock *` or `struct sock_common *`.
#[derive(Clone, Copy)]
pub struct Sock(NonNull<c_void>);

impl Sock {
    /// `None` for null.
    #[inline(always)]
    pub fn new(pointer: *const c_void) -> Option<Self> {
        NonNull::new(pointer.cast_mut()).map(Self)
    }

    /// The pointer, for helpers.
    #[inline(always)]
    pub fn as_ptr(self) -> *const c_void {
        self.0.as_ptr()
    }

    #[inline(always)]
    fn pointer(self) -> NonNull<c_void> {
        self.0
    }

    getters! {
        /// `AF_INET` or `AF_INET6`.
        family: skc_family as u16;
        /// A constant of [`state`].
        state: skc_state as u8;
        /// Local port.
        local_port: skc_num as u16;
        /// IP protocol; of full sockets only.
        protocol: sk_protocol as u16;
    }

    /// A number that identifies the socket as long as it lives, see [`number`].
    #[inline(always)]
    pub fn id(self) -> u64 {
        number(self.0.as_ptr())
    }

    /// Whether a program has it: a connection that waits for `accept()` is
    /// nobody's.
    #[inline(always)]
    pub fn has_user(self) -> bool {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        let socket: *const c_void = unsafe { load!(self.0, sk_socket) };
        !socket.is_null()
    }

    /// Number of the owner's control group: that of the program that made the
    /// socket, and a connection has it from its listener. 0 where this kernel
    /// does not tell, and of request and TIME_WAIT sockets.
    #[inline(always)]
    pub fn cgroup(self) -> u64 {
        if global!(LAYOUT.sk_cgroup) == ABSENT
            || matches!(self.state(), state::TIME_WAIT | state::NEW_SYN_RECV)
        {
            return 0;
        }
        // SAFETY: a BTF-typed pointer; see [`load!`].
        Cgroup::new(unsafe { load!(self.0, sk_cgroup) }).map_or(0, Cgroup::id)
    }

    /// Remote port.
    #[inline(always)]
    pub fn remote_port(self) -> u16 {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        u16::from_be(unsafe { load!(self.0, skc_dport) })
    }

    /// Number of the network namespace.
    #[inline(always)]
    pub fn netns(self) -> u32 {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        super::netns_inum(unsafe { load!(self.0, skc_net) })
    }

    /// Remote address.
    #[inline(always)]
    pub fn remote(self) -> Address {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        unsafe {
            match self.family() {
                AF_INET => mapped(load!(self.0, skc_daddr)),
                AF_INET6 => [load!(self.0, skc_v6_daddr), load!(self.0, skc_v6_daddr + 8)],
                _ => [0; 2],
            }
        }
    }

    /// Local address.
    #[inline(always)]
    pub fn local(self) -> Address {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        unsafe {
            match self.family() {
                AF_INET => mapped(load!(self.0, skc_rcv_saddr)),
                AF_INET6 => [
                    load!(self.0, skc_v6_rcv_saddr),
                    load!(self.0, skc_v6_rcv_saddr + 8),
                ],
                _ => [0; 2],
            }
        }
    }

    /// The `tcp_sock`; `None` for request and TIME_WAIT sockets and for other
    /// protocols.
    #[inline(always)]
    pub fn tcp(self) -> Option<TcpSock> {
        // SAFETY: the helper takes any socket.
        let tp = unsafe { bpf_skc_to_tcp_sock(self.0.as_ptr()) };
        NonNull::new(tp.cast()).map(|tp| TcpSock { sk: self, tp })
    }

    /// [`Self::tcp`] of a socket that surely is one of TCP, and no request or TIME_WAIT
    /// socket: nothing is checked where the kernel can do without.
    #[inline(always)]
    pub fn surely_tcp(self) -> Option<TcpSock> {
        NonNull::new(kfunc::tcp_sock(self.0.as_ptr())).map(|tp| TcpSock { sk: self, tp })
    }

    /// [`Self::tcp`] where the pointer is one to a `struct sock_common`, through which
    /// the rest of a socket cannot be read.
    #[inline(always)]
    pub fn tcp_of_common(self) -> Option<TcpSock> {
        self.tcp()
            .map(|TcpSock { tp, .. }| TcpSock { sk: Self(tp), tp })
    }

    /// When the first SYN-ACK was sent, in microseconds of CLOCK_MONOTONIC, of
    /// a request socket.
    #[inline(always)]
    pub fn first_synack_us(self) -> Option<u64> {
        let offset = global!(LAYOUT.snt_synack);
        // SAFETY: the helper takes any socket.
        let req = unsafe { bpf_skc_to_tcp_request_sock(self.0.as_ptr()) };
        if let Some(req) = NonNull::new(req.cast()) {
            // SAFETY: what the helper returns is BTF-typed; see [`load!`].
            return Some(unsafe { load!(req, snt_synack) });
        }
        // The helper refuses the requests of an MPTCP listener, which begin
        // with a `struct tcp_request_sock` too.
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(self.0.cast::<u8>().as_ptr().add(offset as usize).cast()) }
            .ok()
    }
}

/// A `struct tcp_sock *`.
///
/// Members of its `struct sock` are read through the pointer that the hook has given:
/// the kernel trusts that one, and loads take one instruction. Through any other
/// pointer it checks the address of each load first.
#[derive(Clone, Copy)]
pub struct TcpSock {
    sk: Sock,
    tp: NonNull<c_void>,
}

impl TcpSock {
    /// The same as a socket.
    #[inline(always)]
    pub fn sock(self) -> Sock {
        self.sk
    }

    #[inline(always)]
    fn as_sock(self) -> NonNull<c_void> {
        self.sk.0
    }

    #[inline(always)]
    fn pointer(self) -> NonNull<c_void> {
        self.tp
    }

    getters! { from as_sock:
        /// Positive error number, or 0.
        err: sk_err as i32;
        /// An error that did not end the connection: a positive number, or 0.
        soft_err: sk_err_soft as i32;
        /// Packets in the queue of errors.
        errors_queued: error_queue_len as u32;
        /// Packets dropped on the socket.
        drops: sk_drops as u32;
        /// Connections waiting for `accept()`.
        accept_queue: sk_ack_backlog as u32;
        /// The backlog, of what a listener accepted that of the listener.
        backlog: sk_max_ack_backlog as u32;
        shut_down: sk_shutdown as u8;
    }

    getters! {
        /// Timeouts since something was last acknowledged.
        timeouts: icsk_retransmits as u8;
        /// Probes of the window and keepalives that were not answered.
        probes_unanswered: icsk_probes_out as u8;
        /// Of a listener: for how many SYN-ACKs it waits for data.
        defer_accept: defer_accept as u8;
        /// Half-open connections.
        syn_queue: icsk_synq_len as u32;
        /// Timer that is pending.
        pending: icsk_pending as u8;
        /// Smoothed RTT in microseconds, shifted left by 3.
        srtt: srtt_us as u32;
        /// Mean deviation in microseconds, shifted left by 2.
        mdev: mdev_us as u32;
        /// RTT in microseconds of the newest segment acknowledged.
        rack_rtt_us: rack_rtt_us as u32;
        /// Segments retransmitted.
        total_retrans: total_retrans as u32;
        /// Segments received.
        segs_in: segs_in as u32;
        /// Segments received with payload.
        data_segs_in: data_segs_in as u32;
        /// Negative where the socket is not to stay in FIN_WAIT2.
        linger2: linger2 as i32;
        /// Segments sent.
        segs_out: segs_out as u32;
        /// Duplicate segments that the peer reported.
        dsack_dups: dsack_dups as u32;
        /// Segments acknowledged while the peer echoed the ECN mark CE.
        delivered_ce: delivered_ce as u32;
        /// Segments received out of order.
        out_of_order: rcv_ooopack as u32;
        /// Congestion window in segments.
        snd_cwnd: snd_cwnd as u32;
        /// Receive window in bytes.
        rcv_wnd: rcv_wnd as u32;
        /// Next sequence number that a program reads.
        copied_seq: copied_seq as u32;
        /// Next sequence number expected.
        rcv_nxt: rcv_nxt as u32;
        /// Time that the socket last looked at, in nanoseconds of
        /// CLOCK_MONOTONIC: when a handshake completes, that of the segment.
        clock_ns: tcp_clock_cache as u64;
        /// Time of the last transmission in nanoseconds of CLOCK_MONOTONIC.
        last_sent_ns: tcp_wstamp_ns as u64;
        /// End of the data written, a sequence number.
        write_seq: write_seq as u32;
        /// Of a listener: when its SYN queue last overflowed, in jiffies, or 0.
        /// One that shares its port keeps that with its group.
        syn_queue_overflow: ts_recent_stamp as u32;
        /// Next sequence number to send.
        snd_nxt: snd_nxt as u32;
        /// First one that is not acknowledged.
        snd_una: snd_una as u32;
        /// Payload, SYN and FIN acknowledged, in bytes.
        bytes_acked: bytes_acked as u64;
        bytes_received: bytes_received as u64;
        /// Payload transmitted, in bytes, with what was sent again.
        bytes_sent: bytes_sent as u64;
        /// Payload sent again, in bytes.
        bytes_retrans: bytes_retrans as u64;
    }

    /// Local port, also of a socket that has given it up: at the transition to
    /// CLOSE an accepted one has (`inet_hashtables.c:inet_put_port`).
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        match self.sock().local_port() {
            // SAFETY: a BTF-typed pointer; see [`load!`].
            0 => u16::from_be(unsafe { load!(self.tp, inet_sport) }),
            port => port,
        }
    }

    /// Least RTT in microseconds; all ones without a sample.
    #[inline(always)]
    pub fn min_rtt_us(self) -> u32 {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        unsafe { load!(self.tp, rtt_min + 4) }
    }

    /// Whether the timer that is pending has run out. `false` where this kernel
    /// does not tell.
    #[inline(always)]
    pub fn timer_is_due(self) -> bool {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        let expires: u64 = unsafe {
            if global!(LAYOUT.icsk_timer_expires) != ABSENT {
                load!(self.tp, icsk_timer_expires)
            } else if global!(LAYOUT.sk_timer_expires) != ABSENT {
                load!(self.tp, sk_timer_expires)
            } else {
                return false;
            }
        };
        // SAFETY: the helper takes no arguments.
        let now = unsafe { bpf_jiffies64() };
        expires.wrapping_sub(now).cast_signed() <= 0
    }

    /// Whether the listener's SYN queue has overflowed in the last few minutes.
    #[inline(always)]
    pub fn overflowed_lately(self) -> bool {
        let stamp = self.syn_queue_overflow();
        // SAFETY: the helper takes no arguments.
        let now = unsafe { bpf_jiffies64() } as u32;
        stamp != 0 && now.wrapping_sub(stamp) <= COOKIE_JIFFIES
    }

    /// Whether the listener shares its port with others.
    #[inline(always)]
    pub fn shares_port(self) -> bool {
        bits!(self, skc_reuseport) != 0
    }

    /// The error that the program was told of though it did not end the connection:
    /// an ICMP error that met a locked socket. A program that asks for it
    /// (`SO_ERROR`) clears `sk_err_soft`, but leaves the queue of errors. 0 where there
    /// is none.
    #[inline(always)]
    pub fn told_error(self) -> i32 {
        if self.errors_queued() == 0 {
            return self.soft_err();
        }
        // SAFETY: BTF-typed pointers; see [`load!`]. A queue that is not empty has a last
        // packet.
        unsafe {
            let last: *mut c_void = load!(self.sk.0, error_queue_last);
            match NonNull::new(last) {
                Some(skb) => load!(skb, queued_errno),
                None => 0,
            }
        }
    }

    /// Whether the peer has left a timer of the connection without an answer.
    #[inline(always)]
    pub fn is_unanswered(self) -> bool {
        self.timeouts() != 0 || self.probes_unanswered() != 0
    }

    /// Whether a program moves the connection to another socket, or from one: it
    /// sends nothing meanwhile (`TCP_REPAIR`).
    #[inline(always)]
    pub fn is_repaired(self) -> bool {
        bits!(self, repair) != 0
    }

    /// When the SYN-ACK was sent, in nanoseconds of CLOCK_MONOTONIC, of a connection
    /// that began with data in its SYN (TCP Fast Open) and has not ended its handshake.
    #[inline(always)]
    pub fn early_synack_ns(self) -> Option<u64> {
        // SAFETY: a BTF-typed pointer, see [`load!`]; the helper checks the address.
        unsafe {
            let req: *mut u8 = load!(self.tp, fastopen_rsk);
            let req = NonNull::new(req)?;
            let sent = req.as_ptr().add(global!(LAYOUT.snt_synack) as usize);
            let sent_us: u64 = bpf_probe_read_kernel(sent.cast()).ok()?;
            Some(sent_us * 1000)
        }
    }

    /// Whether the SYN was sent with data.
    #[inline(always)]
    pub fn sent_syn_data(self) -> bool {
        bits!(self, syn_data) != 0
    }

    /// Whether data that came with the SYN was taken.
    #[inline(always)]
    pub fn took_syn_data(self) -> bool {
        bits!(self, syn_data_acked) != 0
    }

    /// `enum tcp_ca_state`.
    #[inline(always)]
    pub fn ca_state(self) -> u8 {
        bits!(self, icsk_ca_state)
    }

    /// Payload bytes transmitted at least once, plus the SYN of an active
    /// opener. `state` is the state before the present transition: from
    /// FIN_WAIT1 on, `write_seq` holds a FIN.
    #[inline(always)]
    pub fn sent(self, state: u8) -> u64 {
        let nxt = self.snd_nxt();
        let sent = self.bytes_acked() + u64::from(nxt.wrapping_sub(self.snd_una()));
        let fin_queued = matches!(
            state,
            state::FIN_WAIT1 | state::FIN_WAIT2 | state::LAST_ACK | state::CLOSING
        );
        sent.saturating_sub(u64::from(fin_queued && nxt == self.write_seq()))
    }

    /// Whether the peer has acknowledged a FIN. `syn` is what it has acknowledged
    /// beside that and payload. Where this host has dropped segments that it sent,
    /// it may say no.
    #[inline(always)]
    pub fn fin_acked(self, syn: u64) -> bool {
        let payload = self.bytes_sent().wrapping_sub(self.bytes_retrans());
        self.bytes_acked() > payload.wrapping_add(syn)
    }

    /// Payload bytes received in order.
    #[inline(always)]
    pub fn received(self) -> u64 {
        self.bytes_received()
            .saturating_sub(u64::from(self.has_fin()))
    }

    /// Whether the peer's FIN has come.
    #[inline(always)]
    fn has_fin(self) -> bool {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        let flags: u64 = unsafe { load!(self.sk.0, skc_flags) };
        flags & SOCK_DONE != 0
    }

    /// Whether a program has read all data there is.
    #[inline(always)]
    pub fn has_read_all(self) -> bool {
        self.copied_seq() == self.rcv_nxt()
    }

    /// Whether nobody can read what the peer still sends.
    #[inline(always)]
    pub fn is_deaf(self) -> bool {
        self.shut_down() & RCV_SHUTDOWN != 0 && !self.has_fin()
    }
}
