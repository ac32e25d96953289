//! The programs, one file for each family of hooks.

/// A program and its twin on one tracepoint, see [`crate::conn`]. Once a
/// connection has found no place, what is done twice is not the same as once:
/// then the twin rests.
macro_rules! twins {
    ($hook:literal, $first:ident, $second:ident, $body:path) => {
        #[aya_ebpf::macros::btf_tracepoint(function = $hook)]
        fn $first(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            $body(aya_ebpf::EbpfContext::as_ptr(&ctx));
            0
        }

        #[aya_ebpf::macros::btf_tracepoint(function = $hook)]
        fn $second(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            if !crate::conn::overflowed() {
                $body(aya_ebpf::EbpfContext::as_ptr(&ctx));
            }
            0
        }
    };
}

mod accepts;
mod drops;
mod noop;
mod packets;
mod resets;
mod retransmits;
mod segments;
mod sockets;
mod states;
