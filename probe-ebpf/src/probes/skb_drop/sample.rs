//! Samples of dropped packets: what a person asks for first of one of them. They are
//! written in place into a map that user space reads now and then, a few for each reason,
//! so that a flood costs no more than a look at when the last was taken.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_snprintf};
use probe_common::{
    abi::drop::{DropSample, GROUP_SAMPLES, PLACE_LEN, SAMPLE_JIFFIES_SHIFT, sample_group},
    labels::Protocol,
};

use crate::{
    atomic,
    conn::{self, now_ns},
    globals::PLACE_FORMAT,
    kernel::{
        any_sock::AnySock,
        arg,
        skb::{PacketFlow, Skb},
        sock::Sock,
    },
    maps::{DROP_SAMPLES, SAMPLE_GROUPS},
};

/// Whether a drop is to be a sample: none of its group was taken a moment ago. Of CPUs
/// that ask at once one gets the answer yes.
#[inline(always)]
pub fn is_due(reason: u32) -> bool {
    let Some(group) = SAMPLE_GROUPS.get_ptr_mut(sample_group(reason)) else {
        return false;
    };
    // SAFETY: the helper takes no arguments; a member of an element of `SAMPLE_GROUPS`,
    // of which every reader and writer takes the whole word.
    unsafe {
        let now = bpf_jiffies64() >> SAMPLE_JIFFIES_SHIFT;
        let taken_at = &raw mut (*group).taken_at;
        let before = taken_at.read_volatile();
        before != now && atomic::compare_exchange(taken_at, before, now) == before
    }
}

/// Keeps a sample of the drop that a program was called for. `protocol` is a [`Protocol`].
///
/// A function of its own, with a stack of its own.
#[inline(never)]
pub fn take(ctx: *const c_void, rx_sk: Option<Sock>, row: u32, protocol: u32) {
    let reason = arg(ctx, 2) as u32;
    let Some(skb) = Skb::new(arg(ctx, 0) as *const c_void) else {
        return;
    };
    let Some((slot, sequence)) = claim(sample_group(reason)) else {
        return;
    };
    let sk = AnySock::of(rx_sk, skb);
    let socket = sk.map_or(0, AnySock::id);
    let netns = match (skb.netns(), sk) {
        (0, Some(sk)) => sk.netns(),
        (netns, _) => netns,
    };
    let pid = match sk {
        Some(_) => conn::get_numbered(socket).map_or(0, |conn| conn.pid),
        None => 0,
    };
    let has_ports = protocol == Protocol::Tcp as u32 || protocol == Protocol::Udp as u32;
    let flow = match skb.flow(has_ports) {
        Some(flow) => flow,
        None => flow_of(sk, rx_sk.is_some()),
    };
    let location = [arg(ctx, 1)];
    // SAFETY: members of an element of `DROP_SAMPLES` that nobody else writes before its
    // sequence is even again; the format is a constant, and the helper writes so many
    // bytes at most.
    unsafe {
        (&raw mut (*slot).time_ns).write_volatile(now_ns());
        (&raw mut (*slot).socket).write_volatile(socket);
        (&raw mut (*slot).cgroup).write_volatile(sk.map_or(0, AnySock::cgroup));
        (&raw mut (*slot).source).write_volatile(flow.source);
        (&raw mut (*slot).destination).write_volatile(flow.destination);
        (&raw mut (*slot).row).write_volatile(row);
        (&raw mut (*slot).reason).write_volatile(reason);
        (&raw mut (*slot).netns).write_volatile(netns);
        (&raw mut (*slot).pid).write_volatile(pid);
        (&raw mut (*slot).source_port).write_volatile(flow.source_port);
        (&raw mut (*slot).destination_port).write_volatile(flow.destination_port);
        (&raw mut (*slot).protocol).write_volatile(protocol);
        let place = (&raw mut (*slot).place).cast::<u8>();
        let length = bpf_snprintf(
            place.cast(),
            PLACE_LEN as u32,
            (&raw const PLACE_FORMAT).cast(),
            location.as_ptr().cast_mut().cast(),
            size_of_val(&location) as u32,
        );
        if length < 0 {
            place.write_volatile(0);
        }
        atomic::store(&raw mut (*slot).sequence, sequence);
    }
}

/// The slot for the next sample of a group and the sequence that it gets when it has been
/// written. `None` where one is being written there, or a newer one is there.
#[inline(always)]
fn claim(group: u32) -> Option<(*mut DropSample, u64)> {
    let taken = SAMPLE_GROUPS.get_ptr_mut(group)?;
    // SAFETY: a member of an element of `SAMPLE_GROUPS` that is written with adds only.
    let number = unsafe { atomic::fetch_add(&raw mut (*taken).taken, 1) };
    let index = group * GROUP_SAMPLES + number as u32 % GROUP_SAMPLES;
    let slot = DROP_SAMPLES.get_ptr_mut(index)?;
    let sequence = 2 * number + 2;
    // SAFETY: a member of an element of `DROP_SAMPLES`, of which every reader and writer
    // takes the whole word.
    unsafe {
        let cell = &raw mut (*slot).sequence;
        let before = cell.read_volatile();
        let is_free = before % 2 == 0 && before < sequence;
        (is_free && atomic::compare_exchange(cell, before, sequence - 1) == before)
            .then_some((slot, sequence))
    }
}

/// The ends of a packet without headers, as its socket has them.
#[inline(always)]
fn flow_of(sk: Option<AnySock>, is_received: bool) -> PacketFlow {
    let Some(sk) = sk else {
        return PacketFlow::default();
    };
    let sent = PacketFlow {
        source: sk.local(),
        destination: sk.remote(),
        source_port: sk.local_port(),
        destination_port: sk.remote_port(),
    };
    if !is_received {
        return sent;
    }
    PacketFlow {
        source: sent.destination,
        destination: sent.source,
        source_port: sent.destination_port,
        destination_port: sent.source_port,
    }
}
