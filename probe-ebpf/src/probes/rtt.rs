//! `tcp_probe`: RTT samples during the life of a connection. It fires for each
//! segment that arrives in ESTABLISHED, before the segment counts.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    conn,
    kernel::{arg, sock::Sock},
};

#[btf_tracepoint(function = "tcp_probe")]
fn tcp_probe(ctx: BtfTracePointContext) -> i32 {
    let ctx: *const c_void = ctx.as_ptr();
    // A socket with an entry is watched and is TCP.
    if let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void)
        && let Some(tp) = sk.tcp()
        && let Some(conn) = conn::settled(tp)
    {
        conn::observe_rtt(conn, tp);
    }
    0
}
