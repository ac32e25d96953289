//! The programs, one file for each family of hooks. The body of a program is the
//! function of its name; the entry points are made here, from the table of programs
//! in [`probe_common::hooks`].

mod accept;
mod cgroup;
mod iter_task_file;
mod iter_tcp;
mod skb_drop;
mod tcp_io;
mod tcp_probe;
mod tcp_reset;
mod tcp_retransmit;
mod tcp_state;
mod xdp;

use core::ffi::c_void;

use aya_ebpf::{
    bindings::xdp_action::XDP_PASS,
    btf_maps::ProgramArray,
    helpers::generated::bpf_seq_write,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use probe_common::{
    hooks::{Loss, REPLICAS, position},
    loss, programs,
};

use crate::preempt;

/// An entry point on a BTF tracepoint: its name, the tracepoint, and what it does
/// with the context. Its function has its name too, since `bpftool` shows that where
/// a name is as long as the kernel takes.
macro_rules! tracepoint {
    ($name:ident, $hook:literal, |$ctx:ident| $body:expr) => {
        #[unsafe(no_mangle)]
        #[unsafe(link_section = concat!("tp_btf/", $hook))]
        extern "C" fn $name($ctx: *mut c_void) -> i32 {
            $body;
            0
        }
    };
}

const _: () = assert!(REPLICAS == 2, "the replicas below are as many");

macro_rules! entry_points {
    ($(
        $name:ident {
            hook: $hook_type:ident $hook:literal, body: $body:ident,
            replicas: $replicas:ident $(by $($event:ident)::+)?, twin: $twin:ident,
            $($rest:tt)*
        }
    )*) => {
        $(entry_points!(@$hook_type $name $hook $body $twin $replicas $(crate::$($event)::+)?);)*
    };
    (@tp_btf $name:ident $hook:literal $body:ident $twin:ident none) => {
        tracepoint!($name, $hook, |ctx| $body::$name(ctx));
        tracepoint!($twin, $hook, |_ctx| ());
    };
    (@tp_btf $name:ident $hook:literal $body:ident $twin:ident $replicas:ident $event:path) => {
        /// The program, for its replicas. Written by the loader.
        #[btf_map]
        static $replicas: ProgramArray<1> = ProgramArray::new();

        tracepoint!($name, $hook, |ctx| {
            const PROGRAM: usize = position(stringify!($name));
            let taken = preempt::begin(PROGRAM, || $event(ctx), ctx, &$replicas);
            $body::$name(ctx);
            preempt::end(taken);
        });
        pastey::paste! {
            entry_points!(@replica $name [<$name 2>] $hook $replicas $event, 2);
            entry_points!(@replica $name [<$name 3>] $hook $replicas $event, 3);
        }
        tracepoint!($twin, $hook, |_ctx| ());
    };
    (@replica $name:ident $replica:ident $hook:literal $replicas:ident $event:path, $number:literal) => {
        tracepoint!($replica, $hook, |ctx| {
            const PROGRAM: usize = position(stringify!($name));
            const NOT_CALLED: Loss = loss!($name, Limit);
            preempt::replica($number, PROGRAM, $event(ctx), ctx, &$replicas, NOT_CALLED);
        });
    };
    (@iter $name:ident $target:literal $body:ident $twin:ident none) => {
        #[unsafe(no_mangle)]
        #[unsafe(link_section = concat!("iter/", $target))]
        extern "C" fn $name(ctx: *const $body::Context) -> i32 {
            $body::$name(ctx);
            0
        }
    };
    (@xdp $name:ident $hook:literal $body:ident $twin:ident none) => {
        #[xdp(frags)]
        fn $name(ctx: XdpContext) -> u32 {
            $body::$name(&ctx);
            XDP_PASS
        }

        #[xdp(frags)]
        fn $twin(_ctx: XdpContext) -> u32 {
            XDP_PASS
        }
    };
}
programs!(entry_points);

/// Hands a record of an iterator to user space.
#[inline(always)]
fn write<T>(seq: *mut c_void, record: &T) {
    // Does not fit: the kernel enlarges its buffer and visits the object again.
    // SAFETY: a record is `repr(C)` without padding, so all of its bytes are
    // initialised, and the length given is its own.
    let _ = unsafe {
        bpf_seq_write(
            seq.cast(),
            core::ptr::from_ref(record).cast_mut().cast(),
            size_of::<T>() as u32,
        )
    };
}
