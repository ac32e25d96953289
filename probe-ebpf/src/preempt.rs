//! Several programs for one event.
//!
//! The kernel does not run a program on a CPU where it is running already. From
//! 7.0 on it preempts programs, so one may stand still on its CPU for as long as
//! other processes run there, and all of its events are skipped meanwhile. There
//! each program that can be preempted has copies on the same tracepoint, which
//! the kernel runs one after the other. The first that is free leaves a mark and
//! takes the event, and the rest see the mark and pass it on.
//!
//! A copy takes an event by a tail call of the program: what the kernel then
//! holds back on this CPU is the copy.
//!
//! An event is missed while as many processes stand still on one CPU as there
//! are programs for it, each in another one. The least that any of these was
//! skipped at is an upper bound of that, and counted.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, btf_maps::ProgramArray};
use probe_common::{
    hooks::{Cause, Hook},
    preempt::MARKS as PLACES,
};

use crate::{globals::global, lost, maps::MARKS};

/// Bits of a mark: the number of the last copy that saw the event, 1 for the program itself.
const SEEN_BY: u64 = 7;
/// A copy has called the program.
const CALLED: u64 = 8;

/// The mark of an event, without who has seen it, and its place. `event` tells
/// those of the hook apart that happen at the same time, on any CPU.
///
/// If an event stands still between its programs and another one of the same
/// place comes along, it is taken twice. What is done to a connection that has an
/// entry has the same effect then as if it were done once; a drop, a reset or the
/// end of a connection without an entry counts once too often.
#[inline(always)]
fn mark(hook: Hook, event: u64) -> Option<(u64, *mut u64)> {
    // An address leaves the highest bits to the hook.
    let hash = (event ^ (hook as u64) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let place = MARKS.get_ptr_mut((hash >> 32) as u32 % PLACES)?;
    Some((hash & !(SEEN_BY | CALLED), place))
}

/// A mark, and the place for it; null where there is none. (The verifier follows
/// a pointer that lies on the stack, and not always a flag beside it.)
type Taken = (u64, *mut u64);

const NOTHING: Taken = (0, core::ptr::null_mut());

/// The program takes an event; `this` holds the program. Returns what to hand to
/// [`done`].
///
/// The kernel would give it a stack for each CPU, since it does not run twice on
/// one at a time (`verifier.c:bpf_enable_priv_stack`, 6.13), but called by its
/// copies it does. Programs with tail calls of their own keep the stack of
/// whoever is current: so there is one, and it is never reached.
#[inline(always)]
pub fn takes(
    hook: Hook,
    event: impl FnOnce() -> Option<u64>,
    ctx: &impl EbpfContext,
    this: &ProgramArray<1>,
) -> Taken {
    if global!(CONFIG.preempts) == 0 {
        return NOTHING;
    }
    if global!(CONFIG.preempts) > 1 {
        // SAFETY: nothing here needs to be dropped.
        unsafe { this.tail_call(ctx, 0) };
    }
    let Some((mark, place)) = event().and_then(|event| mark(hook, event)) else {
        return NOTHING;
    };
    // SAFETY: an element of the map; words are read and written whole.
    let known = unsafe { place.read_volatile() };
    let is_called = known & !SEEN_BY == mark | CALLED;
    let seen_by = if is_called { known & SEEN_BY } else { 1 };
    (mark | seen_by, place)
}

/// The program is done with the event: only now, as it may have stood still.
#[inline(always)]
pub fn done((mark, place): Taken) {
    if !place.is_null() {
        // SAFETY: an element of the map; words are written whole.
        unsafe { place.write_volatile(mark) };
    }
}

/// Copy number `copy` of a program takes an event, if no other has. `program`
/// holds the program.
///
/// The mark of an event stays where it is, and another one with the same number
/// may come. Its copies know the old mark by who has seen it last: the last copy,
/// or at least one that comes later than they do. (If the later ones stood still
/// at the first event and the earlier ones do at the second, it is missed.)
#[inline(always)]
pub fn copy(
    copy: u64,
    hook: Hook,
    event: Option<u64>,
    ctx: &impl EbpfContext,
    program: &ProgramArray<1>,
) {
    let Some((mark, place)) = event.and_then(|event| mark(hook, event)) else {
        return;
    };
    // SAFETY: an element of the map; words are read and written whole.
    let known = unsafe { place.read_volatile() };
    let is_taken = known & !SEEN_BY == mark && known & SEEN_BY < copy;
    let call = if is_taken { 0 } else { CALLED };
    // SAFETY: likewise.
    unsafe { place.write_volatile(mark | copy | call) };
    if !is_taken {
        // SAFETY: nothing here needs to be dropped.
        unsafe { program.tail_call(ctx, 0) };
        // It has not come back, unless there is no program.
        lost::count(hook, Cause::Limit);
    }
}

/// The program of a tracepoint and its copies: what numbers its events, what it
/// does with the context of one, and the map in which the copies find it.
macro_rules! copies {
    (
        $tracepoint:literal, $hook:path, $event:path, $body:path,
        $program:ident in $map:ident, $($name:ident = $copy:literal),*
    ) => {
        /// The program, for its copies. Written by the loader.
        #[aya_ebpf::macros::btf_map]
        static $map: aya_ebpf::btf_maps::ProgramArray<1> = aya_ebpf::btf_maps::ProgramArray::new();

        #[aya_ebpf::macros::btf_tracepoint(function = $tracepoint)]
        fn $program(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            let arguments = aya_ebpf::EbpfContext::as_ptr(&ctx).cast_const();
            let taken = $crate::preempt::takes($hook, || $event(arguments), &ctx, &$map);
            $body(arguments);
            $crate::preempt::done(taken);
            0
        }

        $(
            #[aya_ebpf::macros::btf_tracepoint(function = $tracepoint)]
            fn $name(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
                let event = $event(aya_ebpf::EbpfContext::as_ptr(&ctx));
                $crate::preempt::copy($copy, $hook, event, &ctx, &$map);
                0
            }
        )*
    };
}
pub(crate) use copies;

/// The number of an event of a socket.
#[inline(always)]
pub fn of_socket(ctx: *const c_void) -> Option<u64> {
    use crate::kernel::{arg, sock::Sock};

    Sock::new(arg(ctx, 0) as *const c_void).map(Sock::id)
}
