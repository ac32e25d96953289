//! `struct sk_buff`.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::helpers::bpf_probe_read_kernel;
use probe_common::{
    labels::Protocol,
    packet::{ETH_P_IP, ETH_P_IPV6, classify, is_vlan},
};

use super::{
    addr::{Address, mapped},
    load, number,
    sock::{IPPROTO_TCP, Sock},
};
use crate::{
    globals::global,
    packet::parser::{Headers, last_header, untagged},
};

/// Next header of an IPv6 packet that has none (RFC 8200, section 4.7).
const NO_NEXT_HEADER: u8 = 59;
/// The ECN bits of the TOS or traffic class, all of them set: CE (RFC 3168,
/// section 5).
const ECN_CE: u8 = 3;
/// Flag of the TCP header, and what it adds to the sequence number.
const FIN: u8 = 1 << 0;
/// Flag of the TCP header.
pub const RST: u8 = 1 << 2;
/// Flag of the TCP header.
pub const ACK: u8 = 1 << 4;
/// The flags without those of ECN.
const TCP_FLAGS: u8 = 0x3f;

/// Bits of the IPv4 header's field of fragments that tell where in the packet it
/// belongs.
const IPV4_OFFSET: u16 = 0x1fff;

/// The two ends of a packet.
#[derive(Clone, Copy, Default)]
pub struct PacketFlow {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, 0 where there is none.
    pub source_port: u16,
    /// Destination port, likewise.
    pub destination_port: u16,
}

/// A `struct sk_buff *`.
#[derive(Clone, Copy)]
pub struct Skb(NonNull<c_void>);

impl Skb {
    /// `None` for null.
    #[inline(always)]
    pub fn new(pointer: *const c_void) -> Option<Self> {
        NonNull::new(pointer.cast_mut()).map(Self)
    }

    /// The pointer, for kernel functions.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// A number that identifies the packet as long as it lives, see
    /// [`Sock::id`].
    #[inline(always)]
    pub fn id(self) -> u64 {
        number(self.0.as_ptr())
    }

    /// Sequence number of the first byte of a segment in TCP.
    #[inline(always)]
    pub fn seq(self) -> u32 {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        unsafe { load!(self.0, cb_seq) }
    }

    /// Sequence number after the last byte of a segment in TCP, a FIN counted.
    #[inline(always)]
    pub fn end_seq(self) -> u32 {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        unsafe { load!(self.0, cb_end_seq) }
    }

    /// Bytes of payload of a segment in TCP.
    #[inline(always)]
    pub fn payload(self) -> u32 {
        let length = self.end_seq().wrapping_sub(self.seq());
        if length == 0 {
            return 0;
        }
        // SAFETY: a BTF-typed pointer; see [`load!`].
        let flags: u8 = unsafe { load!(self.0, cb_tcp_flags) };
        length.wrapping_sub(u32::from(flags & FIN))
    }

    /// Bytes of a segment in TCP from its TCP header on.
    #[inline(always)]
    pub fn len(self) -> u32 {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        unsafe { load!(self.0, skb_len) }
    }

    /// The socket that owns it.
    #[inline(always)]
    pub fn sk(self) -> Option<Sock> {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        Sock::new(unsafe { load!(self.0, skb_sk) })
    }

    /// Number of the network namespace of its device; 0 without a device.
    #[inline(always)]
    pub fn netns(self) -> u32 {
        // SAFETY: BTF-typed pointers; see [`load!`].
        unsafe {
            let dev: *mut c_void = load!(self.0, skb_dev);
            match NonNull::new(dev) {
                Some(dev) => super::netns_inum(load!(dev, nd_net)),
                None => 0,
            }
        }
    }

    #[inline(always)]
    fn ethertype(self) -> u16 {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        u16::from_be(unsafe { load!(self.0, skb_protocol) })
    }

    /// Reads from the header that begins `start` bytes into the buffer, which has no
    /// BTF type, so this takes the helper.
    #[inline(always)]
    fn header<T>(self, start: u16, offset: isize) -> Option<T> {
        // SAFETY: BTF-typed pointers; see [`load!`]. The helper checks the address.
        unsafe {
            let head: *const u8 = load!(self.0, skb_head);
            // Never set: all ones, or nothing.
            if matches!(start, 0 | u16::MAX) {
                return None;
            }
            let at = head
                .wrapping_add(usize::from(start))
                .wrapping_offset(offset);
            bpf_probe_read_kernel(at.cast::<T>()).ok()
        }
    }

    #[inline(always)]
    fn network<T>(self, offset: isize) -> Option<T> {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        self.header(unsafe { load!(self.0, skb_network_header) }, offset)
    }

    #[inline(always)]
    fn transport<T>(self, offset: isize) -> Option<T> {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        self.header(unsafe { load!(self.0, skb_transport_header) }, offset)
    }

    /// Segments received with the ECN mark CE that it stands for in TCP: itself, or
    /// those that were merged into it.
    #[inline(always)]
    pub fn ce_segments(self) -> u32 {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        let field: u8 = unsafe { load!(self.0, cb_ip_dsfield) };
        if field & ECN_CE != ECN_CE {
            return 0;
        }
        self.merged_segments().max(1).into()
    }

    /// Segments that were merged into it on receipt, 0 of a single one.
    #[inline(always)]
    fn merged_segments(self) -> u16 {
        // SAFETY: BTF-typed pointers; see [`load!`]. The helper checks the address.
        unsafe {
            let head: *const u8 = load!(self.0, skb_head);
            let end: u32 = load!(self.0, skb_end);
            let shared = head.wrapping_add(end as usize);
            let segments = shared.wrapping_add(global!(LAYOUT.shinfo_gso_segs) as usize);
            bpf_probe_read_kernel(segments.cast()).unwrap_or(0)
        }
    }

    /// What it is.
    #[inline(always)]
    pub fn protocol(self) -> Protocol {
        let ethertype = self.ethertype();
        if ethertype == 0 {
            // A segment that has not reached IP has no EtherType yet.
            return match self.sk() {
                Some(sk) if sk.protocol() == IPPROTO_TCP => Protocol::Tcp,
                _ => Protocol::Other,
            };
        }
        let (ethertype, at) = self.inner(ethertype);
        let protocol = match ethertype {
            ETH_P_IP => self.network(at as isize + 9).unwrap_or(0),
            ETH_P_IPV6 => match self.network(at as isize + 6) {
                Some(next) => last_header(&self, next, at + 40).protocol,
                None => NO_NEXT_HEADER,
            },
            _ => 0,
        };
        classify(ethertype, protocol)
    }

    /// The EtherType behind all VLAN tags, and where its header begins from the network
    /// header on.
    #[inline(always)]
    fn inner(self, ethertype: u16) -> (u16, usize) {
        if is_vlan(ethertype) {
            self.behind_tags()
        } else {
            (ethertype, 0)
        }
    }

    /// The two ends of an IP packet; of one that is not known to be TCP or UDP, and
    /// of a fragment without their header, the ports are 0.
    #[inline(always)]
    pub fn flow(self, has_ports: bool) -> Option<PacketFlow> {
        let (ethertype, at) = self.inner(self.ethertype());
        let ip = at as isize;
        let (source, destination, behind): (Address, Address, Option<usize>) = match ethertype {
            ETH_P_IP => {
                let first: u8 = self.network(ip)?;
                let fragment: u16 = self.network(ip + 6)?;
                let is_later = u16::from_be(fragment) & IPV4_OFFSET != 0;
                let behind = at + usize::from(first & 15) * 4;
                let source = mapped(self.network(ip + 12)?);
                let destination = mapped(self.network(ip + 16)?);
                (source, destination, (!is_later).then_some(behind))
            }
            ETH_P_IPV6 => {
                let last = last_header(&self, self.network(ip + 6)?, at + 40);
                let source = self.network(ip + 8)?;
                let destination = self.network(ip + 24)?;
                (source, destination, last.is_there.then_some(last.at))
            }
            _ => return None,
        };
        let ports: Option<[u16; 2]> = match behind {
            Some(behind) if has_ports => self.network(behind as isize),
            _ => None,
        };
        let [source_port, destination_port] = ports.unwrap_or_default();
        Some(PacketFlow {
            source,
            destination,
            source_port: u16::from_be(source_port),
            destination_port: u16::from_be(destination_port),
        })
    }

    /// The EtherType behind the VLAN tags that are in the buffer of a packet, and
    /// where its header begins. On its way in the network header is the first tag,
    /// on its way out it is what the tags are in front of.
    #[inline(always)]
    fn behind_tags(self) -> (u16, usize) {
        let before = self.network::<u16>(-2).map_or(0, u16::from_be);
        if is_vlan(before) {
            untagged(&self, before, 0)
        } else {
            (before, 0)
        }
    }

    /// Source address of the IP header.
    #[inline(always)]
    pub fn source(self) -> Option<Address> {
        match self.ethertype() {
            ETH_P_IP => Some(mapped(self.network(12)?)),
            ETH_P_IPV6 => self.network(8),
            _ => None,
        }
    }

    /// Destination address of the IP header.
    #[inline(always)]
    pub fn destination(self) -> Option<Address> {
        match self.ethertype() {
            ETH_P_IP => Some(mapped(self.network(16)?)),
            ETH_P_IPV6 => self.network(24),
            _ => None,
        }
    }

    /// The flags of the TCP header, those of ECN left out; none where there is no
    /// header.
    #[inline(always)]
    pub fn tcp_flags(self) -> u8 {
        let flags: Option<u8> = self.transport(13);
        flags.unwrap_or(0) & TCP_FLAGS
    }

    /// Source port and sequence number of the TCP header.
    #[inline(always)]
    pub fn port_and_seq(self) -> Option<(u16, u32)> {
        let port: u16 = self.transport(0)?;
        let seq: u32 = self.transport(4)?;
        Some((u16::from_be(port), u32::from_be(seq)))
    }
}

impl Headers for Skb {
    /// From the network header on. The end of the packet is not looked at: behind it
    /// is what the buffer held before.
    #[inline(always)]
    fn word(&self, at: usize) -> Option<u32> {
        self.network(at as isize)
    }
}
