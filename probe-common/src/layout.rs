//! The one list of kernel fields that the programs read.
//!
//! User space looks each of them up in the running kernel's BTF. A load of a field is
//! compiled with a [`Marker`] in place of the byte offset, and user space puts the
//! offset there before it loads the programs; the verifier then checks every load
//! against the type. What a program wants to know of a field beside that it reads from
//! read-only globals: what this kernel lacks is [`ABSENT`], which a program tests before
//! it touches the field, and the verifier removes the branch.

/// Offset of a field, or position of an argument, that this kernel lacks.
pub const ABSENT: u32 = u32::MAX;

/// What stands in the place of an offset in a load that is not linked yet: which entry
/// of [`KernelLayout`], and how many bytes after it, below [`Marker::STEP`].
///
/// The offset of a load is 16 bits wide. The compiler makes none that are this far
/// below zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Position in [`ENTRIES`].
    pub entry: usize,
    /// Bytes after that.
    pub add: u32,
}

impl Marker {
    /// Bytes that may be added.
    pub const STEP: u32 = 16;
    const FIRST: i32 = -0x7000;

    /// What is subtracted from the address in such a load. `member` is the offset of a
    /// member in [`KernelLayout`].
    ///
    /// # Panics
    ///
    /// Where too much is added.
    pub const fn below(member: usize, add: u32) -> i32 {
        assert!(add < Self::STEP);
        let entry = member / size_of::<u32>();
        -(Self::FIRST + entry as i32 * Self::STEP as i32 + add as i32)
    }

    /// The marker in a load with that offset, if there is one.
    pub fn of(offset: i16) -> Option<Self> {
        let number = u32::try_from(i32::from(offset) - Self::FIRST).ok()?;
        let entry = (number / Self::STEP) as usize;
        (entry < ENTRIES.len()).then_some(Self {
            entry,
            add: number % Self::STEP,
        })
    }
}

/// Where BTF tells about an entry of [`KernelLayout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Byte offset of a member, as `struct.member.member`; members of anonymous
    /// structs and unions are found through them.
    Field(&'static str),
    /// Byte offset in a `struct sk_buff` of a member of what lies in its control block
    /// (`sk_buff.cb`), as `struct.member`.
    ControlBlock(&'static str),
    /// Bit offset and width of a bit field: `bytes | shift << 16 | bits << 24`.
    Bits(&'static str),
    /// Number of a struct.
    Type(&'static str),
    /// Position of an argument of a tracepoint, as `(tracepoint, argument)`.
    Argument(&'static str, &'static str),
}

/// One entry of the list.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Where its value comes from.
    pub source: Source,
    /// Size that the field must have, in bytes; 0 where only the position counts.
    pub size: u32,
    /// Whether the tool cannot run without it.
    pub required: bool,
}

macro_rules! layout {
    ($($(#[$doc:meta])* $name:ident: $source:expr, $size:expr, $required:ident;)*) => {
        /// Offsets and argument positions, one `u32` for each entry of [`ENTRIES`].
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct KernelLayout {
            $($(#[$doc])* pub $name: u32,)*
        }

        crate::abi::pod! {
            KernelLayout { $($name),* }
        }

        /// The entries, in the order of the members of [`KernelLayout`].
        pub const ENTRIES: &[Entry] = &[
            $(Entry { source: $source, size: $size, required: layout!(@$required) },)*
        ];

        impl KernelLayout {
            /// A layout with the values of [`ENTRIES`], in their order.
            pub const fn from_values(values: [u32; ENTRIES.len()]) -> Self {
                let [$($name),*] = values;
                Self { $($name),* }
            }

            /// The values of [`ENTRIES`], in their order.
            pub const fn values(&self) -> [u32; ENTRIES.len()] {
                let Self { $($name),* } = *self;
                [$($name),*]
            }
        }
    };
    (@required) => { true };
    (@optional) => { false };
}

use Source::{Argument, Bits, ControlBlock, Field, Type};

layout! {
    /// `u16`, `AF_INET` or `AF_INET6`.
    skc_family: Field("sock_common.skc_family"), 2, required;
    /// `u8`, a TCP state.
    skc_state: Field("sock_common.skc_state"), 1, required;
    /// `u16`, local port in host order.
    skc_num: Field("sock_common.skc_num"), 2, required;
    /// `__be16`, local port in network order; it stays when the socket gives up
    /// its port.
    inet_sport: Field("tcp_sock.inet_conn.icsk_inet.inet_sport"), 2, required;
    /// `u16`, remote port in network order.
    skc_dport: Field("sock_common.skc_dport"), 2, required;
    /// `u32`, remote IPv4 address in network order.
    skc_daddr: Field("sock_common.skc_daddr"), 4, required;
    /// `u32`, local IPv4 address in network order.
    skc_rcv_saddr: Field("sock_common.skc_rcv_saddr"), 4, required;
    /// `struct in6_addr`, remote address.
    skc_v6_daddr: Field("sock_common.skc_v6_daddr"), 16, required;
    /// `struct in6_addr`, local address.
    skc_v6_rcv_saddr: Field("sock_common.skc_v6_rcv_saddr"), 16, required;
    /// `struct net *`.
    skc_net: Field("sock_common.skc_net.net"), 8, required;
    /// `unsigned long`, bits of `enum sock_flags`.
    skc_flags: Field("sock_common.skc_flags"), 8, required;
    /// `u16`, an IP protocol number.
    sk_protocol: Field("sock.sk_protocol"), 2, required;
    /// `struct socket *`; null for a connection that waits for `accept()`.
    sk_socket: Field("sock.sk_socket"), 8, required;
    /// `struct cgroup *` of cgroup v2, that of the program that made the socket
    /// or of the listener that a connection was accepted from.
    sk_cgroup: Field("sock.sk_cgrp_data.cgroup"), 8, optional;
    /// `struct kernfs_node *`, the folder of a control group.
    cgroup_kn: Field("cgroup.kn"), 8, required;
    /// `struct cgroup_root *`, the hierarchy.
    cgroup_root: Field("cgroup.root"), 8, required;
    /// `int`, 0 of cgroup v2.
    root_hierarchy: Field("cgroup_root.hierarchy_id"), 4, required;
    /// `struct cgroup_subsys_state *`, that of the group above.
    cgroup_parent: Field("cgroup.self.parent"), 8, required;
    /// `struct cgroup *`, the group that a state is of.
    css_cgroup: Field("cgroup_subsys_state.cgroup"), 8, required;
    /// `const char *`, the name of a folder.
    kn_name: Field("kernfs_node.name"), 8, required;
    /// `u64`, the number of a folder.
    kn_id: Field("kernfs_node.id"), 8, required;
    /// `struct sock *`, the first TCP connection of MPTCP, or its listener.
    mptcp_first: Field("mptcp_sock.first"), 8, optional;
    /// `pid_t`, the process that a thread belongs to.
    task_tgid: Field("task_struct.tgid"), 4, required;
    /// Bit field, whether the socket shares its port with others.
    skc_reuseport: Bits("sock_common.skc_reuseport"), 1, required;
    /// `int`; of a listener when its SYN queue overflowed, in jiffies.
    ts_recent_stamp: Field("tcp_sock.rx_opt.ts_recent_stamp"), 4, required;
    /// `int`, a positive error number.
    sk_err: Field("sock.sk_err"), 4, required;
    /// `int`, an error that does not end the connection, a positive number.
    sk_err_soft: Field("sock.sk_err_soft"), 4, required;
    /// `__u32`, packets in the queue of errors.
    error_queue_len: Field("sock.sk_error_queue.qlen"), 4, required;
    /// `struct sk_buff *`, the last one of them.
    error_queue_last: Field("sock.sk_error_queue.prev"), 8, required;
    /// `__u32` of such a packet, a positive error number.
    queued_errno: ControlBlock("sock_exterr_skb.ee.ee_errno"), 4, required;
    /// `atomic_t`, packets dropped on this socket.
    sk_drops: Field("sock.sk_drops"), 4, required;
    /// `u32`, length of a listener's accept queue.
    sk_ack_backlog: Field("sock.sk_ack_backlog"), 4, required;
    /// `u32`, a listener's backlog, also of the connections that it accepted.
    sk_max_ack_backlog: Field("sock.sk_max_ack_backlog"), 4, required;
    /// `atomic_t`, length of a listener's SYN queue.
    icsk_synq_len: Field("tcp_sock.inet_conn.icsk_accept_queue.qlen"), 4, required;
    /// `u8`; of a listener, for how many SYN-ACKs it waits for data (`TCP_DEFER_ACCEPT`).
    defer_accept: Field("tcp_sock.inet_conn.icsk_accept_queue.rskq_defer_accept"), 1, required;
    /// `struct request_sock *`, the handshake of a connection that began with data in
    /// its SYN and has not ended it.
    fastopen_rsk: Field("tcp_sock.fastopen_rsk"), 8, required;
    /// `__u8`, timeouts since something was last acknowledged.
    icsk_retransmits: Field("tcp_sock.inet_conn.icsk_retransmits"), 1, required;
    /// `__u8`, probes of the window and keepalives that were not answered.
    icsk_probes_out: Field("tcp_sock.inet_conn.icsk_probes_out"), 1, required;
    /// Bit field, whether a program moves the connection (`TCP_REPAIR`).
    repair: Bits("tcp_sock.repair"), 1, required;
    /// Bit field, whether the SYN was sent with data.
    syn_data: Bits("tcp_sock.syn_data"), 1, required;
    /// Bit field, whether data that came with a SYN was taken.
    syn_data_acked: Bits("tcp_sock.syn_data_acked"), 1, required;
    /// Bit field, `enum tcp_ca_state`.
    icsk_ca_state: Bits("tcp_sock.inet_conn.icsk_ca_state"), 1, required;
    /// `u8`, the timer that is pending.
    icsk_pending: Field("tcp_sock.inet_conn.icsk_pending"), 1, required;
    /// `unsigned long`, when that timer runs out, in jiffies, where it is here.
    icsk_timer_expires: Field("tcp_sock.inet_conn.icsk_retransmit_timer.expires"), 8, optional;
    /// The same on kernels whose timer has moved to the socket.
    sk_timer_expires: Field("sock.tcp_retransmit_timer.expires"), 8, optional;
    /// `u32`, smoothed RTT in microseconds, shifted left by 3.
    srtt_us: Field("tcp_sock.srtt_us"), 4, required;
    /// `u32`, mean deviation in microseconds, shifted left by 2.
    mdev_us: Field("tcp_sock.mdev_us"), 4, required;
    /// `struct minmax`; the least RTT in microseconds is its second `u32`, the value of its first sample.
    rtt_min: Field("tcp_sock.rtt_min"), 24, required;
    /// `u32`, RTT in microseconds of the newest segment acknowledged.
    rack_rtt_us: Field("tcp_sock.rack.rtt_us"), 4, required;
    /// `u32`, segments retransmitted.
    total_retrans: Field("tcp_sock.total_retrans"), 4, required;
    /// `u64`, payload, SYN and FIN acknowledged.
    bytes_acked: Field("tcp_sock.bytes_acked"), 8, required;
    /// `u64`, payload and FIN received in order.
    bytes_received: Field("tcp_sock.bytes_received"), 8, required;
    /// `u64`, payload transmitted, what was sent again included.
    bytes_sent: Field("tcp_sock.bytes_sent"), 8, required;
    /// `u64`, payload sent again.
    bytes_retrans: Field("tcp_sock.bytes_retrans"), 8, required;
    /// `u32`, next sequence number to send.
    snd_nxt: Field("tcp_sock.snd_nxt"), 4, required;
    /// `u32`, first sequence number not acknowledged.
    snd_una: Field("tcp_sock.snd_una"), 4, required;
    /// `u32`, end of the data written.
    write_seq: Field("tcp_sock.write_seq"), 4, required;
    /// `u32`, the receive window in bytes.
    rcv_wnd: Field("tcp_sock.rcv_wnd"), 4, required;
    /// `u32`, next sequence number expected.
    rcv_nxt: Field("tcp_sock.rcv_nxt"), 4, required;
    /// `u64`, the time that the socket last looked at, in nanoseconds of
    /// CLOCK_MONOTONIC.
    tcp_clock_cache: Field("tcp_sock.tcp_clock_cache"), 8, required;
    /// `u64`, when a segment was last sent, in nanoseconds.
    tcp_wstamp_ns: Field("tcp_sock.tcp_wstamp_ns"), 8, required;
    /// `u32`, segments received.
    segs_in: Field("tcp_sock.segs_in"), 4, required;
    /// `u32`, next sequence number to be read.
    copied_seq: Field("tcp_sock.copied_seq"), 4, required;
    /// `u32`, segments received with payload.
    data_segs_in: Field("tcp_sock.data_segs_in"), 4, required;
    /// `int`, how long to stay in FIN_WAIT2; negative: not at all.
    linger2: Field("tcp_sock.linger2"), 4, required;
    /// `u8`, the directions that are shut down.
    sk_shutdown: Field("sock.sk_shutdown"), 1, required;
    /// `u32`, segments sent.
    segs_out: Field("tcp_sock.segs_out"), 4, required;
    /// `u32`, duplicate segments that the peer reported.
    dsack_dups: Field("tcp_sock.dsack_dups"), 4, required;
    /// `u32`, segments acknowledged while the peer echoed the ECN mark CE.
    delivered_ce: Field("tcp_sock.delivered_ce"), 4, required;
    /// `u32`, segments received out of order.
    rcv_ooopack: Field("tcp_sock.rcv_ooopack"), 4, required;
    /// `u32`, congestion window in segments.
    snd_cwnd: Field("tcp_sock.snd_cwnd"), 4, required;
    /// `unsigned long`, number of a system call (x86-64 only).
    orig_ax: Field("pt_regs.orig_ax"), 8, optional;
    /// `unsigned long`, the first argument of a 32-bit system call (x86-64 only).
    regs_bx: Field("pt_regs.bx"), 8, optional;
    /// `u32`, flags of a thread, one of which tells of a 32-bit system call (x86-64
    /// only).
    task_status: Field("task_struct.thread_info.status"), 4, optional;
    /// `struct files_struct *` of a process.
    task_files: Field("task_struct.files"), 8, required;
    /// `struct fdtable *`.
    files_fdt: Field("files_struct.fdt"), 8, required;
    /// `struct file **`, by descriptor.
    fdtable_fd: Field("fdtable.fd"), 8, required;
    /// `unsigned int`, how many there are.
    fdtable_max_fds: Field("fdtable.max_fds"), 4, required;
    /// `void *`; of a socket's file its `struct socket *`.
    file_private_data: Field("file.private_data"), 8, required;
    /// `struct sock *`.
    socket_sk: Field("socket.sk"), 8, required;
    /// `u64`, time of the first SYN-ACK in microseconds, CLOCK_MONOTONIC.
    snt_synack: Field("tcp_request_sock.snt_synack"), 8, required;
    /// `unsigned int`, the number of a network namespace.
    net_inum: Field("net.ns.inum"), 4, required;
    /// `struct net *` of a device.
    nd_net: Field("net_device.nd_net.net"), 8, required;
    /// `struct net_device *`.
    skb_dev: Field("sk_buff.dev"), 8, required;
    /// `struct sock *`.
    skb_sk: Field("sk_buff.sk"), 8, required;
    /// `unsigned char *`, start of the buffer.
    skb_head: Field("sk_buff.head"), 8, required;
    /// `__u32`, sequence number of the first byte.
    cb_seq: ControlBlock("tcp_skb_cb.seq"), 4, required;
    /// `__u32`, sequence number after the last byte, a FIN counted.
    cb_end_seq: ControlBlock("tcp_skb_cb.end_seq"), 4, required;
    /// `__u8` or `__u16`, flags of the TCP header; those that are read are in
    /// the first byte of either.
    cb_tcp_flags: ControlBlock("tcp_skb_cb.tcp_flags"), 0, required;
    /// `__u8`, the IPv4 TOS or the IPv6 traffic class.
    cb_ip_dsfield: ControlBlock("tcp_skb_cb.ip_dsfield"), 1, required;
    /// `sk_buff_data_t`, offset from `head` of the `struct skb_shared_info`.
    skb_end: Field("sk_buff.end"), 4, required;
    /// `unsigned short`, segments that were merged into the packet, 0 of a single one.
    shinfo_gso_segs: Field("skb_shared_info.gso_segs"), 2, required;
    /// `unsigned int`, bytes from `data` on, those in fragments included.
    skb_len: Field("sk_buff.len"), 4, required;
    /// `size_t`, bytes that a send is about.
    msg_count: Field("msghdr.msg_iter.count"), 8, required;
    /// `u8`, `enum iter_type`: what the bytes of a send lie in.
    msg_iter_type: Field("msghdr.msg_iter.iter_type"), 1, optional;
    /// `size_t`, how many of the first piece have been taken.
    msg_iov_offset: Field("msghdr.msg_iter.iov_offset"), 8, optional;
    /// `void __user *` or `const struct iovec *`, by that type.
    msg_ubuf: Field("msghdr.msg_iter.ubuf"), 8, optional;
    /// `void __user *`, the bytes.
    iov_base: Field("iovec.iov_base"), 8, optional;
    /// `__be16`, the EtherType.
    skb_protocol: Field("sk_buff.protocol"), 2, required;
    /// `__u16`, offset of the network header from `head`.
    skb_network_header: Field("sk_buff.network_header"), 2, required;
    /// `__u16`, offset of the transport header from `head`.
    skb_transport_header: Field("sk_buff.transport_header"), 2, required;
    /// `struct tcp_sock`.
    tcp_sock: Type("tcp_sock"), 0, required;
    /// Receiving socket of a dropped packet (6.11 and later).
    arg_kfree_rx_sk: Argument("kfree_skb", "rx_sk"), 0, optional;
    /// Reason of a reset sent (6.10 and later).
    arg_reset_reason: Argument("tcp_send_reset", "reason"), 0, optional;
}
