//! XDP: packets and bytes of a device by protocol and by flow. Every packet is
//! passed on as it is.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, xdp_action::XDP_PASS},
    helpers::generated::bpf_get_smp_processor_id,
    macros::xdp,
    programs::XdpContext,
};
use probe_common::{
    lost::{Cause, Hook},
    packet::{FlowKey, Protocol, Traffic},
};

use crate::{
    atomic, lost,
    maps::{DEVICE, FLOWS, OVERFLOW},
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

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
        Some(traffic) => add(traffic, bytes),
        None => lost::count(Hook::Xdp, Cause::Limit),
    }
    let flow = FLOWS.get_ptr_mut(&key).or_else(|| {
        let inserted = FLOWS.insert(&key, &Traffic::default(), u64::from(BPF_NOEXIST));
        // Another CPU may have inserted it first; then that entry is found.
        let flow = FLOWS.get_ptr_mut(&key);
        if inserted.is_err() && flow.is_none() {
            lost::count(Hook::Xdp, Cause::MapFull);
        }
        flow
    });
    if let Some(traffic) = flow.or_else(|| OVERFLOW.get_ptr_mut(0)) {
        add(traffic, bytes);
    }
    XDP_PASS
}

#[inline(always)]
fn add(traffic: *mut Traffic, bytes: u64) {
    // SAFETY: a map value; flows are never removed.
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

/// Reads at an offset, if the linear part of the frame reaches that far.
#[inline(always)]
fn read<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the frame; headers need not be aligned.
    Some(unsafe { (start as *const T).read_unaligned() })
}

#[inline(always)]
fn parse(ctx: &XdpContext) -> (FlowKey, Protocol) {
    let mut key = FlowKey::default();
    let mut next = ETHERNET;
    let mut ethertype = u16::from_be(read(ctx, ETHERNET - 2).unwrap_or(0));
    // One tag, or a service tag and a customer tag.
    let mut tags = 0;
    while tags < 2 && matches!(ethertype, ETH_P_8021Q | ETH_P_8021AD) {
        ethertype = u16::from_be(read(ctx, next + 2).unwrap_or(0));
        next += VLAN_TAG;
        tags += 1;
    }
    key.ethertype = ethertype;
    let protocol = match ethertype {
        ETH_P_IP => ipv4(ctx, next, &mut key),
        ETH_P_IPV6 => ipv6(ctx, next, &mut key),
        ETH_P_ARP => Protocol::Arp,
        _ => Protocol::Other,
    };
    (key, protocol)
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, at: usize, key: &mut FlowKey) -> Protocol {
    let Some(header) = read::<[u8; 20]>(ctx, at) else {
        return Protocol::Ipv4;
    };
    let mut address = [0; 16];
    address[10] = 0xff;
    address[11] = 0xff;
    address[12..].copy_from_slice(&header[12..16]);
    key.source = address;
    address[12..].copy_from_slice(&header[16..20]);
    key.destination = address;
    key.protocol = header[9];
    let first = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_OFFSET == 0;
    let length = usize::from(header[0] & 0xf) * 4;
    match header[9] {
        6 | 17 => {
            if first {
                ports(ctx, at + length, key);
            }
            if header[9] == 6 {
                Protocol::Tcp
            } else {
                Protocol::Udp
            }
        }
        1 => Protocol::Icmp,
        _ => Protocol::Ipv4,
    }
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, at: usize, key: &mut FlowKey) -> Protocol {
    const FRAGMENT: u8 = 44;

    let Some(header) = read::<[u8; 40]>(ctx, at) else {
        return Protocol::Ipv6;
    };
    key.source.copy_from_slice(&header[8..24]);
    key.destination.copy_from_slice(&header[24..40]);
    let (mut next, mut at, mut first) = (header[6], at + 40, true);
    // Hop-by-hop, routing and destination options, and a fragment header.
    let mut extensions = 0;
    while extensions < 4 && matches!(next, 0 | 43 | 60 | FRAGMENT) {
        let Some(extension) = read::<[u8; 4]>(ctx, at) else {
            break;
        };
        if next == FRAGMENT {
            first = u16::from_be_bytes([extension[2], extension[3]]) & !7 == 0;
            at += 8;
        } else {
            at += (usize::from(extension[1]) + 1) * 8;
        }
        next = extension[0];
        extensions += 1;
    }
    key.protocol = next;
    match next {
        6 | 17 => {
            if first {
                ports(ctx, at, key);
            }
            if next == 6 {
                Protocol::Tcp
            } else {
                Protocol::Udp
            }
        }
        58 => Protocol::Icmp6,
        _ => Protocol::Ipv6,
    }
}

#[inline(always)]
fn ports(ctx: &XdpContext, at: usize, key: &mut FlowKey) {
    if let Some([source, destination]) = read::<[u16; 2]>(ctx, at) {
        key.source_port = u16::from_be(source);
        key.destination_port = u16::from_be(destination);
    }
}
