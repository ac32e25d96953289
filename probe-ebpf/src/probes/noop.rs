//! Empty programs on the same hooks: what the hooks themselves cost, for the
//! benchmark to compare with.

use aya_ebpf::{
    bindings::xdp_action::XDP_PASS,
    macros::{btf_tracepoint, xdp},
    programs::{BtfTracePointContext, XdpContext},
};

macro_rules! empty {
    ($($program:ident: $hook:literal;)*) => {
        $(
            #[btf_tracepoint(function = $hook)]
            fn $program(_ctx: BtfTracePointContext) -> i32 {
                0
            }
        )*
    };
}

empty! {
    noop_set_state: "inet_sock_set_state";
    noop_tcp_probe: "tcp_probe";
    noop_retransmit: "tcp_retransmit_skb";
    noop_synack: "tcp_retransmit_synack";
    noop_send_reset: "tcp_send_reset";
    noop_recv_reset: "tcp_receive_reset";
    noop_destroy: "tcp_destroy_sock";
    noop_kfree_skb: "kfree_skb";
    noop_tcp_read: "tcp_rcv_space_adjust";
    noop_tcp_send: "tcp_sendmsg_locked";
    noop_sock_send: "sock_send_length";
    noop_accept: "sys_exit";
    noop_cgroup_new: "cgroup_mkdir";
    noop_cgroup_end: "cgroup_release";
}

#[xdp(frags)]
fn noop_xdp(_ctx: XdpContext) -> u32 {
    XDP_PASS
}
