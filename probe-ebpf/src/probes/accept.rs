//! `accept_exit`: `accept()` returns. Attached only where it is asked for: with any
//! program on system calls, every one of the machine takes the slow way.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{bpf_get_current_task, bpf_get_current_task_btf},
};

use crate::{
    conn,
    globals::global,
    kernel::{arg, load, number},
    latency::accept_queue,
};

/// Numbers of the system calls on x86-64
/// (`arch/x86/entry/syscalls/syscall_64.tbl`).
const ACCEPT: u64 = 43;
const ACCEPT4: u64 = 288;

#[inline(always)]
pub fn accept_exit(ctx: *const c_void) {
    let Some(regs) = NonNull::new(arg(ctx, 0) as *mut c_void) else {
        return;
    };
    // SAFETY: the first argument of the tracepoint `sys_exit`, a `struct pt_regs *`
    // to the verifier; see `load`.
    let call: u64 = unsafe { load(regs, global!(LAYOUT.orig_ax)) };
    let fd = arg(ctx, 1).cast_signed();
    if !matches!(call, ACCEPT | ACCEPT4) || fd < 0 {
        return;
    }
    if let Some(socket) = socket_of(fd.cast_unsigned())
        // SAFETY: null or an element of `CONNS`; what is written here may be written
        // without the socket's lock.
        && let Some(conn) = unsafe { conn::find(socket).as_mut() }
        && !conn::is_connecting(conn)
    {
        accept_queue::used(conn);
    }
}

/// The number of the socket behind a descriptor of the current process.
#[inline(always)]
fn socket_of(fd: u64) -> Option<u64> {
    // SAFETY: BTF-typed pointers where there are loads; elsewhere the helper
    // checks the address.
    unsafe {
        let task = NonNull::new(bpf_get_current_task_btf().cast::<c_void>())?;
        let files = NonNull::new(load(task, global!(LAYOUT.task_files)))?;
        let table = NonNull::new(load(files, global!(LAYOUT.files_fdt)))?;
        let array: *const u64 = load(table, global!(LAYOUT.fdtable_fd));
        let file = bpf_probe_read_kernel(array.wrapping_add(fd as usize)).ok()?;
        let private = file + u64::from(global!(LAYOUT.file_private_data));
        let socket = bpf_probe_read_kernel(private as *const u64).ok()?;
        let at = socket + u64::from(global!(LAYOUT.socket_sk));
        let sk = bpf_probe_read_kernel(at as *const u64).ok()?;
        // The same address as a number and as what is left when that of the
        // layout is taken away: the difference is that of the layout.
        let layout = bpf_get_current_task() - number(task.as_ptr());
        Some(sk - layout)
    }
}
