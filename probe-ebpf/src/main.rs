//! The kernel programs. One file in `probes` for each family of hooks; `kernel`
//! is the only place that knows how a kernel field is read; `maps` is what is
//! shared with user space.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "the next aya-ebpf takes keys and values of maps by reference only"
)]

mod atomic;
mod conn;
mod globals;
mod kernel;
mod latency;
mod lost;
mod maps;
mod packet;
mod preempt;
mod probes;
mod series;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
