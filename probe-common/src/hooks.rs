//! Where an event can be lost, and why: the slots of the `LOST` map.

/// Hooks, in the order of the slots; [`Hook::NAMES`] has their label values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// `tp_btf/inet_sock_set_state`.
    SockSetState = 0,
    /// `tp_btf/tcp_probe`.
    TcpProbe = 1,
    /// `tp_btf/tcp_retransmit_skb`.
    TcpRetransmitSkb = 2,
    /// `tp_btf/tcp_retransmit_synack`.
    TcpRetransmitSynack = 3,
    /// `tp_btf/tcp_send_reset`.
    TcpSendReset = 4,
    /// `tp_btf/tcp_receive_reset`.
    TcpReceiveReset = 5,
    /// `tp_btf/kfree_skb`.
    KfreeSkb = 6,
    /// `xdp`.
    Xdp = 7,
    /// `iter/tcp`.
    IterTcp = 8,
    /// `tp_btf/tcp_destroy_sock`.
    TcpDestroySock = 9,
    /// `tp_btf/tcp_rcv_space_adjust`.
    TcpRcvSpaceAdjust = 10,
    /// `tp_btf/tcp_sendmsg_locked`.
    TcpSendmsgLocked = 11,
    /// `tp_btf/sock_send_length`.
    SockSendLength = 12,
    /// `tp_btf/sys_exit`.
    SysExit = 13,
    /// `tp_btf/cgroup_mkdir`.
    CgroupMkdir = 14,
    /// `tp_btf/cgroup_release`.
    CgroupRelease = 15,
}

impl Hook {
    /// Label values of the hooks, in the order of the slots.
    pub const NAMES: [&'static str; 16] = [
        "inet_sock_set_state",
        "tcp_probe",
        "tcp_retransmit_skb",
        "tcp_retransmit_synack",
        "tcp_send_reset",
        "tcp_receive_reset",
        "kfree_skb",
        "xdp",
        "iter_tcp",
        "tcp_destroy_sock",
        "tcp_rcv_space_adjust",
        "tcp_sendmsg_locked",
        "sock_send_length",
        "sys_exit",
        "cgroup_mkdir",
        "cgroup_release",
    ];
}

/// Why an event was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Cause {
    /// An insert into a full map failed.
    MapFull = 0,
    /// A ring-buffer reservation failed.
    RingFull = 1,
    /// The event's data could not be read as what it claims to be.
    Parse = 2,
    /// A fixed limit of the tool was reached.
    Limit = 3,
}

impl Cause {
    /// Label values of the causes, in the order of the slots.
    pub const NAMES: [&'static str; 4] = ["map_full", "ring_full", "parse", "limit"];
}

/// Number of slots of the `LOST` map.
pub const SLOTS: u32 = (Hook::NAMES.len() * Cause::NAMES.len()) as u32;

/// The slot of a hook and a cause.
#[inline(always)]
pub const fn slot(hook: Hook, cause: Cause) -> u32 {
    hook as u32 * Cause::NAMES.len() as u32 + cause as u32
}
