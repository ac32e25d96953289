//! The tracepoints, and the programs on each.

/// A program on a tracepoint.
pub(super) struct Hook {
    pub program: &'static str,
    /// The map in which its copies find it, for kernels that preempt programs.
    pub copies: Option<&'static str>,
    /// The empty program on the same hook.
    pub noop: &'static str,
    pub tracepoint: &'static str,
    /// Whether the tool is of no use without it.
    pub required: bool,
}

impl Hook {
    /// Name of its copy `n`; the first is the program itself.
    pub fn copy(&self, n: u32) -> String {
        match n {
            1 => self.program.to_owned(),
            _ => format!("{}{n}", self.program),
        }
    }
}

/// One that the kernel preempts nowhere, or where it does little harm.
const fn alone(program: &'static str, noop: &'static str, tracepoint: &'static str) -> Hook {
    Hook {
        program,
        copies: None,
        noop,
        tracepoint,
        required: false,
    }
}

pub(super) const HOOKS: [Hook; 13] = [
    Hook {
        program: "sock_set_state",
        copies: Some("SET_STATE"),
        noop: "noop_set_state",
        tracepoint: "inet_sock_set_state",
        required: true,
    },
    Hook {
        program: "tcp_probe",
        copies: Some("PROBE"),
        noop: "noop_tcp_probe",
        tracepoint: "tcp_probe",
        required: true,
    },
    Hook {
        program: "tcp_retransmit",
        copies: Some("RETRANSMIT"),
        noop: "noop_retransmit",
        tracepoint: "tcp_retransmit_skb",
        required: false,
    },
    alone("retrans_synack", "noop_synack", "tcp_retransmit_synack"),
    Hook {
        program: "tcp_send_reset",
        copies: Some("SEND_RESET"),
        noop: "noop_send_reset",
        tracepoint: "tcp_send_reset",
        required: false,
    },
    Hook {
        program: "tcp_recv_reset",
        copies: Some("RECEIVE_RESET"),
        noop: "noop_recv_reset",
        tracepoint: "tcp_receive_reset",
        required: false,
    },
    Hook {
        program: "tcp_destroy",
        copies: Some("DESTROY"),
        noop: "noop_destroy",
        tracepoint: "tcp_destroy_sock",
        required: true,
    },
    Hook {
        program: "kfree_skb",
        copies: Some("KFREE_SKB"),
        noop: "noop_kfree_skb",
        tracepoint: "kfree_skb",
        required: true,
    },
    Hook {
        program: "tcp_read",
        copies: Some("READ"),
        noop: "noop_tcp_read",
        tracepoint: "tcp_rcv_space_adjust",
        required: false,
    },
    Hook {
        program: "tcp_send",
        copies: Some("SEND"),
        noop: "noop_tcp_send",
        tracepoint: TCP_SEND,
        required: false,
    },
    alone("sock_send", "noop_sock_send", SOCK_SEND),
    alone("cgroup_mkdir", "noop_cgroup_new", CGROUPS[0]),
    alone("cgroup_release", "noop_cgroup_end", CGROUPS[1]),
];

/// Tell of control groups that come and go: for where owners are told apart.
pub(super) const CGROUPS: [&str; 2] = ["cgroup_mkdir", "cgroup_release"];

/// Tells of a send when it begins.
pub const TCP_SEND: &str = "tcp_sendmsg_locked";
/// Tells of a send when it has returned: for kernels without the other.
pub const SOCK_SEND: &str = "sock_send_length";

/// The program that sees `accept()` return, attached only where it is asked for.
pub(super) const ACCEPT: Hook = alone("accept_exit", "noop_accept", "sys_exit");
