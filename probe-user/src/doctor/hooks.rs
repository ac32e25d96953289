//! The kernel hooks that the programs use, and what is lost without each.

use crate::loader;

/// A tracepoint.
pub struct Hook {
    /// Its name.
    pub name: &'static str,
    /// Whether the tool is of no use without it.
    pub required: bool,
    /// What is lost without it.
    pub lost: &'static str,
}

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

/// The tracepoints.
pub const HOOKS: &[Hook] = &[
    Hook {
        name: "inet_sock_set_state",
        required: true,
        lost: "connections opened, open, closed and failed",
    },
    Hook {
        name: "tcp_probe",
        required: true,
        lost: "the RTT during connections",
    },
    Hook {
        name: "kfree_skb",
        required: true,
        lost: "packets dropped, by reason",
    },
    Hook {
        name: "tcp_retransmit_skb",
        required: false,
        lost: "why segments were retransmitted",
    },
    Hook {
        name: "tcp_retransmit_synack",
        required: false,
        lost: "retransmitted SYN-ACKs",
    },
    Hook {
        name: "tcp_send_reset",
        required: false,
        lost: "resets sent",
    },
    Hook {
        name: "tcp_receive_reset",
        required: false,
        lost: "resets received",
    },
    Hook {
        name: "tcp_destroy_sock",
        required: true,
        lost: "when a connection can be forgotten",
    },
    Hook {
        name: "tcp_rcv_space_adjust",
        required: false,
        lost: "the time in the accept queue up to the first read",
    },
    Hook {
        name: "cgroup_mkdir",
        required: false,
        lost: "a service's name, by \"cgroup\" or \"unit\", for units that are started later; rows \
               that owners of one name share",
    },
    Hook {
        name: "cgroup_release",
        required: false,
        lost: "room for new control groups once many have come and gone",
    },
];

/// Tracepoints of which one is enough: a program sends.
pub const SENDS: [&str; 2] = [loader::TCP_SEND, loader::SOCK_SEND];

/// What is lost without any of [`SENDS`].
pub const SENDS_LOST: &str = "the time to the first byte";

/// What is lost without [`DYNPTR_FROM_SKB`](probe_common::kfunc::DYNPTR_FROM_SKB).
pub const PAYLOAD_LOST: &str = "the duration of TLS handshakes";

/// The iterator over TCP sockets; required.
pub const ITERATOR: &str = "bpf_iter_tcp";

/// The iterator over open files.
pub const HOLDERS: &str = "bpf_iter_task_file";

/// What is lost without [`HOLDERS`].
pub const HOLDERS_LOST: &str = "the processes of listeners and of accepted connections";

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
