//! `accept_exit`: `accept()` returns. Attached only where it is asked for: with any
//! program on system calls, every one of the machine takes the slow way.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{bpf_get_current_task, bpf_get_current_task_btf},
};

use probe_common::layout::ABSENT;

use crate::{
    conn,
    globals::global,
    kernel::{arg, load, number},
    latency::accept_queue,
};

/// Numbers of the system calls on x86-64
/// (`arch/x86/entry/syscalls/syscall_64.tbl`).
const ACCEPT: u32 = 43;
const ACCEPT4: u32 = 288;
/// Set in those of the x32 ABI (`__X32_SYSCALL_BIT`).
const X32: u32 = 0x4000_0000;
/// The same of 32-bit programs (`arch/x86/entry/syscalls/syscall_32.tbl`).
const ACCEPT4_32: u32 = 364;
const SOCKETCALL_32: u32 = 102;
/// First arguments of `socketcall()` (`SYS_ACCEPT`, `SYS_ACCEPT4`).
const CALL_ACCEPT: u32 = 5;
const CALL_ACCEPT4: u32 = 18;
/// Set while a thread is in a system call of 32 bits (`TS_COMPAT`).
const COMPAT: u32 = 2;

#[inline(always)]
pub fn accept_exit(ctx: *const c_void) {
    let Some(regs) = NonNull::new(arg(ctx, 0) as *mut c_void) else {
        return;
    };
    let fd = arg(ctx, 1).cast_signed();
    if fd < 0 || !is_accept(regs) {
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

/// Whether a system call is one that accepts. `regs` are those that it was called with.
#[inline(always)]
fn is_accept(regs: NonNull<c_void>) -> bool {
    // SAFETY: the first argument of the tracepoint `sys_exit`, a `struct pt_regs *`
    // to the verifier; see [`load!`].
    let call: u64 = unsafe { load!(regs, orig_ax) };
    // Numbers of one kind mean something else as the other.
    match call as u32 {
        SOCKETCALL_32 if is_compat() => {
            // SAFETY: as above.
            let call: u64 = unsafe { load!(regs, regs_bx) };
            matches!(call as u32, CALL_ACCEPT | CALL_ACCEPT4)
        }
        ACCEPT4_32 => is_compat(),
        call => matches!(call & !X32, ACCEPT | ACCEPT4) && !is_compat(),
    }
}

/// Whether the system call is one of a 32-bit program.
#[inline(always)]
fn is_compat() -> bool {
    if global!(LAYOUT.task_status) == ABSENT || global!(LAYOUT.regs_bx) == ABSENT {
        return false;
    }
    // SAFETY: the helper takes no arguments, and returns a `struct task_struct *` to the
    // verifier; see [`load!`].
    unsafe {
        let task = NonNull::new(bpf_get_current_task_btf().cast::<c_void>());
        task.is_some_and(|task| {
            let status: u32 = load!(task, task_status);
            status & COMPAT != 0
        })
    }
}

/// The number of the socket behind a descriptor of the current process.
#[inline(always)]
fn socket_of(fd: u64) -> Option<u64> {
    // SAFETY: BTF-typed pointers where there are loads; elsewhere the helper
    // checks the address.
    unsafe {
        let task = NonNull::new(bpf_get_current_task_btf().cast::<c_void>())?;
        let files = NonNull::new(load!(task, task_files))?;
        let table = NonNull::new(load!(files, files_fdt))?;
        // What is behind the end of the table is no file.
        let files: u32 = load!(table, fdtable_max_fds);
        if fd >= u64::from(files) {
            return None;
        }
        let array: *const u64 = load!(table, fdtable_fd);
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
