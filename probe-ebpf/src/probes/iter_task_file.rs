//! `iter/task_file`: which process holds which TCP socket, over all open files.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated::bpf_sock_from_file};
use probe_common::{abi::iter::SocketPid, layout::ABSENT};

use crate::{
    globals::global,
    kernel::{
        load,
        sock::{IPPROTO_MPTCP, IPPROTO_TCP, Sock},
    },
};

/// `struct bpf_iter__task_file`.
#[repr(C)]
pub struct Context {
    /// `struct bpf_iter_meta *`; its first member is the `struct seq_file *`.
    meta: *const *mut c_void,
    task: *mut c_void,
    fd: u32,
    file: *mut c_void,
}

/// Reports a file that is a TCP socket.
#[inline(always)]
pub fn iter_task_file(ctx: *const Context) {
    // SAFETY: the verifier knows the context and the types behind it.
    let (seq, task, file) = unsafe {
        let meta = core::ptr::read_volatile(&raw const (*ctx).meta);
        (
            core::ptr::read_volatile(meta),
            NonNull::new(core::ptr::read_volatile(&raw const (*ctx).task)),
            NonNull::new(core::ptr::read_volatile(&raw const (*ctx).file)),
        )
    };
    let (Some(task), Some(file)) = (task, file) else {
        return;
    };
    // SAFETY: the helper takes any `struct file *`.
    let socket = unsafe { bpf_sock_from_file(file.as_ptr().cast()) };
    let Some(socket) = NonNull::new(socket.cast::<c_void>()) else {
        return;
    };
    // SAFETY: what the helper returns is BTF-typed; see [`load!`].
    let Some(sk) = Sock::new(unsafe { load!(socket, socket_sk) }) else {
        return;
    };
    let id = match sk.protocol() {
        IPPROTO_TCP => sk.id(),
        IPPROTO_MPTCP => first(socket, sk),
        _ => return,
    };
    let record = SocketPid {
        id,
        // SAFETY: a BTF-typed pointer; see [`load!`].
        pid: unsafe { load!(task, task_tgid) },
        _pad: 0,
    };
    super::write(seq, &record);
}

/// Number of the first TCP socket of an MPTCP one, 0 without one. The verifier
/// takes the latter for a `struct sock`, which is too short to load from.
#[inline(always)]
fn first(socket: NonNull<c_void>, sk: Sock) -> u64 {
    let offset = global!(LAYOUT.mptcp_first);
    if offset == ABSENT {
        return 0;
    }
    let at = |base: *const c_void, offset: u32| {
        let member = base.cast::<u8>().wrapping_add(offset as usize);
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(member.cast::<u64>()).unwrap_or(0) }
    };
    let own = at(socket.as_ptr(), global!(LAYOUT.socket_sk));
    match at(sk.as_ptr(), offset) {
        0 => 0,
        // Of plain addresses the verifier allows no other difference.
        first => sk.id().wrapping_add(first.wrapping_sub(own)),
    }
}
