//! The programs, one file for each family of hooks.

mod accept;
mod cgroup;
mod iter_task_file;
mod iter_tcp;
mod noop;
mod skb_drop;
mod tcp_probe;
mod tcp_reset;
mod tcp_retransmit;
mod tcp_state;
mod xdp;

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_seq_write;

/// Hands a record of an iterator to user space.
#[inline(always)]
fn write<T>(seq: *mut c_void, record: &T) {
    // Does not fit: the kernel enlarges its buffer and visits the object again.
    // SAFETY: the record is initialised, without padding, and of the length that
    // is given.
    let _ = unsafe {
        bpf_seq_write(
            seq.cast(),
            core::ptr::from_ref(record).cast_mut().cast(),
            size_of::<T>() as u32,
        )
    };
}
