//! XDP: packets and bytes of a device by protocol and by flow. Every packet is
//! passed on as it is.

use core::arch::asm;

use aya_ebpf::{
    bindings::xdp_action::XDP_PASS, helpers::generated::bpf_get_smp_processor_id, macros::xdp,
    programs::XdpContext,
};
use probe_common::{
    abi::flow::{Protocol, Traffic},
    hooks::{Cause, Hook},
};

use crate::{
    atomic,
    kernel::sock::{Address, mapped},
    lost,
    maps::{DEVICE, OVERFLOW},
    packet::flow_table::{self, Key},
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
/// Bits of `frag_off` that are zero in an unfragmented or first fragment.
const FRAGMENT_OFFSET: u16 = 0x1fff;

#[xdp(frags)]
fn xdp_packets(ctx: XdpContext) -> u32 {
    let (key, protocol) = parse(&ctx);
    let bytes = length(&ctx);
    // SAFETY: the helper takes no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let index = cpu * Protocol::NAMES.len() as u32 + protocol as u32;
    match DEVICE.get_ptr_mut(index) {
        // Nothing else writes to the shard: softirqs of a CPU come one at a time.
        // SAFETY: a map value.
        Some(traffic) => unsafe {
            (*traffic).packets += 1;
            (*traffic).bytes += bytes;
        },
        None => lost::count(Hook::Xdp, Cause::Limit),
    }
    if let Some(traffic) = flow_table::traffic(key).or_else(|| OVERFLOW.get_ptr_mut(0)) {
        add(traffic, bytes);
    }
    XDP_PASS
}

/// To a flow, which other CPUs add to as well.
#[inline(always)]
fn add(traffic: *mut Traffic, bytes: u64) {
    // SAFETY: a map value. The collector empties one that has been given up by an
    // exchange, so what is added too late counts for the next flow.
    unsafe {
        atomic::add(&raw mut (*traffic).packets, 1);
        atomic::add(&raw mut (*traffic).bytes, bytes);
    }
}

/// Length of the frame, fragments of a jumbo frame included.
#[inline(always)]
fn length(ctx: &XdpContext) -> u64 {
    // SAFETY: the context is the program's own.
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
        // SAFETY: the verifier knows how long the header is.
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
    let mut next = ETHERNET;
    let mut ethertype = match header(ctx, 0, ETHERNET) {
        Some(header) => u16::from_be(word!("u16", header, 12) as u16),
        None => 0,
    };
    // One tag, or a service tag and a customer tag.
    let mut tags = 0;
    while tags < 2 && matches!(ethertype, ETH_P_8021Q | ETH_P_8021AD) {
        ethertype = match header(ctx, next, VLAN_TAG) {
            Some(tag) => u16::from_be(word!("u16", tag, 2) as u16),
            None => 0,
        };
        next += VLAN_TAG;
        tags += 1;
    }
    let mut flow = Flow::default();
    let protocol = match ethertype {
        ETH_P_IP => ipv4(ctx, next, &mut flow),
        ETH_P_IPV6 => ipv6(ctx, next, &mut flow),
        ETH_P_ARP => Protocol::Arp,
        _ => Protocol::Other,
    };
    (flow.key(ethertype), protocol)
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, at: usize, flow: &mut Flow) -> Protocol {
    let Some(header) = header(ctx, at, 20) else {
        return Protocol::Ipv4;
    };
    flow.source = mapped(word!("u32", header, 12) as u32);
    flow.destination = mapped(word!("u32", header, 16) as u32);
    flow.protocol = word!("u8", header, 9) as u8;
    let first = u16::from_be(word!("u16", header, 6) as u16) & FRAGMENT_OFFSET == 0;
    let length = (word!("u8", header, 0) as usize & 0xf) * 4;
    match flow.protocol {
        TCP | UDP => transport(ctx, at + length, first, flow),
        1 => Protocol::Icmp,
        _ => Protocol::Ipv4,
    }
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, at: usize, flow: &mut Flow) -> Protocol {
    const FRAGMENT: u8 = 44;

    let Some(fixed) = header(ctx, at, 40) else {
        return Protocol::Ipv6;
    };
    flow.source = [word!("u64", fixed, 8), word!("u64", fixed, 16)];
    flow.destination = [word!("u64", fixed, 24), word!("u64", fixed, 32)];
    let (mut next, mut at, mut first) = (word!("u8", fixed, 6) as u8, at + 40, true);
    // Hop-by-hop, routing and destination options, and a fragment header.
    let mut extensions = 0;
    while extensions < 4 && matches!(next, 0 | 43 | 60 | FRAGMENT) {
        let Some(extension) = header(ctx, at, 4) else {
            break;
        };
        if next == FRAGMENT {
            first = u16::from_be(word!("u16", extension, 2) as u16) & !7 == 0;
            at += 8;
        } else {
            at += (word!("u8", extension, 1) as usize + 1) * 8;
        }
        next = word!("u8", extension, 0) as u8;
        extensions += 1;
    }
    flow.protocol = next;
    match next {
        TCP | UDP => transport(ctx, at, first, flow),
        58 => Protocol::Icmp6,
        _ => Protocol::Ipv6,
    }
}

#[inline(always)]
fn transport(ctx: &XdpContext, at: usize, first: bool, flow: &mut Flow) -> Protocol {
    if first && let Some(header) = header(ctx, at, 4) {
        flow.ports = word!("u32", header, 0) as u32;
    }
    match flow.protocol {
        TCP => Protocol::Tcp,
        _ => Protocol::Udp,
    }
}
