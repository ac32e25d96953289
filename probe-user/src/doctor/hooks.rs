//! What the programs use of the kernel beside the hooks of
//! [`probe_common::hooks`], and what is lost without it.

/// An argument of a tracepoint that older kernels lack.
pub struct Argument {
    /// The tracepoint.
    pub hook: &'static str,
    /// The argument.
    pub name: &'static str,
    /// First kernel that has it.
    pub since: &'static str,
    /// What is lost without it.
    pub lost: &'static str,
}

/// What is lost without [`DYNPTR_FROM_SKB`](probe_common::kfunc::DYNPTR_FROM_SKB).
pub const PAYLOAD_LOST: &str = "the duration of TLS handshakes";

/// Where a socket keeps its owner.
pub const OWNER: &str = "sock.sk_cgrp_data.cgroup";

/// What is lost without [`OWNER`], or without a mount of cgroup v2.
pub const OWNER_LOST: &str = "units and containers as owners of sockets, and services by \"cgroup\" or \
                              \"unit\"; the process is still shown";

/// Arguments that are used where they are there.
pub const ARGUMENTS: &[Argument] = &[
    Argument {
        hook: "kfree_skb",
        name: "rx_sk",
        since: "6.11",
        lost: "the receiving socket of a dropped packet: a half-open connection that is reset is \
               counted as a drop only, not as a connect failure",
    },
    Argument {
        hook: "tcp_send_reset",
        name: "reason",
        since: "6.10",
        lost: "why resets are sent (reason is \"unavailable\"), and resets sent without a socket",
    },
];
