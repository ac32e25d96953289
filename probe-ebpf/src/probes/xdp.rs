//! `xdp_packets`: packets and bytes of a device by protocol and by flow. Every
//! packet is passed on as it is.

use core::arch::asm;

use aya_ebpf::{helpers::generated::bpf_get_smp_processor_id, programs::XdpContext};
use probe_common::{
    abi::flow::Traffic,
    labels::Protocol,
    loss,
    packet::{ETH_P_IP, ETH_P_IPV6, PROTOCOL_TCP, PROTOCOL_UDP, classify},
};

use crate::{
    atomic,
    kernel::addr::{Address, mapped},
    lost,
    maps::{DEVICE, OVERFLOW},
    packet::{
        flow_table::{self, Key},
        parser::{Headers, last_header, untagged},
    },
};

const ETHERNET: usize = 14;
/// Bits of `frag_off` that are zero in an unfragmented or first fragment.
const FRAGMENT_OFFSET: u16 = 0x1fff;

#[inline(always)]
pub fn xdp_packets(ctx: &XdpContext) {
    let (key, protocol) = parse(ctx);
    let bytes = length(ctx);
    // SAFETY: the helper takes no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let index = cpu * Protocol::NAMES.len() as u32 + protocol as u32;
    match DEVICE.get_ptr_mut(index) {
        // Softirqs of a CPU come one at a time.
        // SAFETY: an element of `DEVICE` that this CPU alone writes.
        Some(traffic) => unsafe {
            (*traffic).packets += 1;
            (*traffic).bytes += bytes;
        },
        None => lost::count(loss!(xdp_packets, Limit), index.into()),
    }
    if let Some(traffic) = flow_table::traffic(key).or_else(|| OVERFLOW.get_ptr_mut(0)) {
        add(traffic, bytes);
    }
}

/// To a flow, which other CPUs add to as well.
#[inline(always)]
fn add(traffic: *mut Traffic, bytes: u64) {
    // SAFETY: an element of `FLOWS` or `OVERFLOW`. The collector empties that of an
    // evicted flow by an exchange, so what is added too late counts for the next one.
    unsafe {
        atomic::add(&raw mut (*traffic).packets, 1);
        atomic::add(&raw mut (*traffic).bytes, bytes);
    }
}

/// Length of the frame, fragments of a jumbo frame included.
#[inline(always)]
fn length(ctx: &XdpContext) -> u64 {
    // SAFETY: the context is that of the program that runs.
    unsafe { aya_ebpf::helpers::generated::bpf_xdp_get_buff_len(ctx.ctx) }
}

/// Where a header begins, if the linear part of the frame holds all of it.
#[inline(always)]
fn header(ctx: &XdpContext, offset: usize, length: usize) -> Option<*const u8> {
    let start = ctx.data() + offset;
    (start + length <= ctx.data_end()).then_some(start as *const u8)
}

/// Loads a word of a header in the order of the machine. Headers need not be
/// aligned, and for such words the compiler would load single bytes.
macro_rules! word {
    ($width:literal, $header:expr, $offset:expr) => {{
        let word: u64;
        // SAFETY: the header is from `header`, which has compared its length with the
        // end of the frame; the verifier checks that.
        unsafe {
            asm!(
                concat!("{0} = *(", $width, " *)({1} + {2})"),
                out(reg) word, in(reg) $header, const $offset,
                options(pure, readonly, nostack),
            );
        }
        word
    }};
}

impl Headers for XdpContext {
    #[inline(always)]
    fn word(&self, at: usize) -> Option<u32> {
        let header = header(self, at, 4)?;
        Some(word!("u32", header, 0) as u32)
    }
}

/// A flow as the words of its [`FlowKey`](probe_common::abi::flow::FlowKey).
#[derive(Default)]
struct Flow {
    source: Address,
    destination: Address,
    /// In network order, the source first.
    ports: u32,
    protocol: u8,
}

impl Flow {
    #[inline(always)]
    fn key(self, ethertype: u16) -> Key {
        let [source, destination] = [self.ports as u16, (self.ports >> 16) as u16];
        let last = u64::from(u16::from_be(source))
            | u64::from(u16::from_be(destination)) << 16
            | u64::from(ethertype) << 32
            | u64::from(self.protocol) << 48;
        let [s0, s1] = self.source;
        let [d0, d1] = self.destination;
        [s0, s1, d0, d1, last]
    }
}

#[inline(always)]
fn parse(ctx: &XdpContext) -> (Key, Protocol) {
    let ethertype = match header(ctx, 0, ETHERNET) {
        Some(header) => u16::from_be(word!("u16", header, 12) as u16),
        None => 0,
    };
    let (ethertype, at) = untagged(ctx, ethertype, ETHERNET);
    let mut flow = Flow::default();
    match ethertype {
        ETH_P_IP => ipv4(ctx, at, &mut flow),
        ETH_P_IPV6 => ipv6(ctx, at, &mut flow),
        _ => {}
    }
    let protocol = classify(ethertype, flow.protocol);
    (flow.key(ethertype), protocol)
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, at: usize, flow: &mut Flow) {
    let Some(header) = header(ctx, at, 20) else {
        return;
    };
    flow.source = mapped(word!("u32", header, 12) as u32);
    flow.destination = mapped(word!("u32", header, 16) as u32);
    flow.protocol = word!("u8", header, 9) as u8;
    let is_first = u16::from_be(word!("u16", header, 6) as u16) & FRAGMENT_OFFSET == 0;
    let length = (word!("u8", header, 0) as usize & 0xf) * 4;
    if is_first {
        ports(ctx, at + length, flow);
    }
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, at: usize, flow: &mut Flow) {
    let Some(fixed) = header(ctx, at, 40) else {
        return;
    };
    flow.source = [word!("u64", fixed, 8), word!("u64", fixed, 16)];
    flow.destination = [word!("u64", fixed, 24), word!("u64", fixed, 32)];
    let last = last_header(ctx, word!("u8", fixed, 6) as u8, at + 40);
    flow.protocol = last.protocol;
    if last.is_there {
        ports(ctx, last.at, flow);
    }
}

/// The ports of a flow of TCP or UDP, whose header begins at an offset.
#[inline(always)]
fn ports(ctx: &XdpContext, at: usize, flow: &mut Flow) {
    if matches!(flow.protocol, PROTOCOL_TCP | PROTOCOL_UDP)
        && let Some(header) = header(ctx, at, 4)
    {
        flow.ports = word!("u32", header, 0) as u32;
    }
}
