//! Kernels that preempt programs: how little of it happens, and several programs for
//! one event.
//!
//! The kernel does not run a program on a CPU where it is running already. From
//! 7.0 on it preempts programs, so one may stand still on its CPU for as long as
//! other processes run there, and all of its events are skipped meanwhile. So a program
//! forbids it up to its end, see [`kfunc::allow_preemption`].
//!
//! It can still be stopped before its first and after its last instruction. There each
//! program has replicas on the same tracepoint, which the kernel runs one after the
//! other. The first that is free leaves a mark and takes the event, and the rest see the
//! mark and leave it alone.
//!
//! A replica takes an event by a tail call of the program: what the kernel then
//! holds back on this CPU is the replica.
//!
//! An event is missed while as many processes stand still on one CPU as there
//! are programs for it, each in another one. Of those that the program was skipped at
//! these are what no replica has taken. An event that tells nothing is taken by nobody
//! and is among them.

use core::ffi::c_void;

use aya_ebpf::{btf_maps::ProgramArray, programs::BtfTracePointContext};
use probe_common::hooks::{Loss, MARK_SLOTS};

use crate::{
    atomic,
    globals::global,
    kernel::{arg, kfunc, skb::Skb, sock::Sock},
    lost,
    maps::{MARKS, TAKEN},
};

/// Bits of a mark: the number of the last replica that saw the event, 1 for the
/// program itself.
const SEEN_BY: u64 = 7;
/// A replica has called the program.
const CALLED: u64 = 8;

/// The mark of an event, without who has seen it, and its slot. `event` is a number
/// that events of the program at position `program` of the table do not share while
/// they happen at the same time, on any CPU.
///
/// If an event stands still between its programs and another one of the same
/// slot comes along, it is taken twice. What is done to a connection that has an
/// entry has the same effect then as if it were done once; a drop, a reset or the
/// end of a connection without an entry counts once too often.
#[inline(always)]
fn mark(program: usize, event: u64) -> Option<(u64, *mut u64)> {
    // An address leaves the highest bits to the program.
    let hash = (event ^ (program as u64) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let slot = MARKS.get_ptr_mut((hash >> 32) as u32 % MARK_SLOTS)?;
    Some((hash & !(SEEN_BY | CALLED), slot))
}

/// A mark, and the slot for it; null where there is none. (The verifier follows
/// a pointer that lies on the stack, and not always a flag beside it.)
type Taken = (u64, *mut u64);

const NOTHING: Taken = (0, core::ptr::null_mut());

/// The program takes an event; `this` holds the program. Returns what to hand to
/// [`end`].
///
/// The kernel would give it a stack for each CPU, since it does not run twice on
/// one at a time (`verifier.c:bpf_enable_priv_stack`, 6.13), but called by its
/// replicas it does. Programs with tail calls of their own keep the stack of
/// whoever is current: so there is one, and it is never reached.
#[inline(always)]
pub fn begin(
    program: usize,
    event: impl FnOnce() -> Option<u64>,
    ctx: *mut c_void,
    this: &ProgramArray<1>,
) -> Taken {
    if global!(CONFIG.preempts) == 0 {
        return NOTHING;
    }
    if global!(CONFIG.preempts) > 1 {
        tail_call(ctx, this);
    }
    kfunc::forbid_preemption();
    let Some((mark, slot)) = event().and_then(|event| mark(program, event)) else {
        return NOTHING;
    };
    // SAFETY: an element of `MARKS`, of which every reader and writer takes the
    // whole word.
    let known = unsafe { slot.read_volatile() };
    let is_called = known & !SEEN_BY == mark | CALLED;
    let seen_by = if is_called { known & SEEN_BY } else { 1 };
    (mark | seen_by, slot)
}

/// The program is done with the event: only now, as it may have stood still.
#[inline(always)]
pub fn end((mark, slot): Taken) {
    if global!(CONFIG.preempts) == 0 {
        return;
    }
    if !slot.is_null() {
        // SAFETY: an element of `MARKS`, of which every reader and writer takes the
        // whole word.
        unsafe { slot.write_volatile(mark) };
    }
    kfunc::allow_preemption();
}

/// Replica number `replica` of a program takes an event, if no other has. `this`
/// holds the program.
///
/// The mark of an event stays where it is, and another one with the same number
/// may come. Its replicas know the old mark by who has seen it last: the last
/// replica, or at least one that comes later than they do. (If the later ones stood
/// still at the first event and the earlier ones do at the second, it is missed.)
#[inline(always)]
pub fn replica(
    replica: u64,
    program: usize,
    event: Option<u64>,
    ctx: *mut c_void,
    this: &ProgramArray<1>,
    not_called: Loss,
) {
    let Some((mark, slot)) = event.and_then(|event| mark(program, event)) else {
        return;
    };
    // SAFETY: an element of `MARKS`, of which every reader and writer takes the
    // whole word.
    let known = unsafe { slot.read_volatile() };
    let is_taken = known & !SEEN_BY == mark && known & SEEN_BY < replica;
    let call = if is_taken { 0 } else { CALLED };
    // SAFETY: as above.
    unsafe { slot.write_volatile(mark | replica | call) };
    if !is_taken {
        if let Some(taken) = TAKEN.get_ptr_mut(program as u32) {
            // SAFETY: an element of `TAKEN`.
            unsafe { atomic::add(taken, 1) };
        }
        tail_call(ctx, this);
        // It has not come back, unless there is no program.
        lost::count(not_called, replica);
    }
}

/// Goes on with the program in a map; returns where there is none.
#[inline(always)]
fn tail_call(ctx: *mut c_void, program: &ProgramArray<1>) {
    // SAFETY: the callers own nothing that would have to be dropped.
    unsafe { program.tail_call(&BtfTracePointContext::new(ctx), 0) };
}

/// The number of an event of a socket, its first argument.
#[inline(always)]
pub fn of_socket(ctx: *const c_void) -> Option<u64> {
    Sock::new(arg(ctx, 0) as *const c_void).map(Sock::id)
}

/// The number of an event of a packet, its first argument.
#[inline(always)]
pub fn of_packet(ctx: *const c_void) -> Option<u64> {
    Skb::new(arg(ctx, 0) as *const c_void).map(Skb::id)
}
