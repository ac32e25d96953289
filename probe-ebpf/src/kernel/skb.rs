//! `struct sk_buff`.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::helpers::bpf_probe_read_kernel;
use probe_common::abi::flow::Protocol;

use super::{
    load,
    sock::{Address, IPPROTO_TCP, Sock, mapped, number},
};
use crate::globals::global;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
/// Flags of the TCP header; FIN is also what it adds to the sequence number.
const FIN: u8 = 1 << 0;
const RST: u8 = 1 << 2;

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
        // SAFETY: a BTF-typed pointer; see `load`.
        unsafe { load(self.0, global!(LAYOUT.skb_cb) + global!(LAYOUT.cb_seq)) }
    }

    /// Sequence number after the last byte of a segment in TCP, a FIN counted.
    #[inline(always)]
    pub fn end_seq(self) -> u32 {
        // SAFETY: a BTF-typed pointer; see `load`.
        unsafe { load(self.0, global!(LAYOUT.skb_cb) + global!(LAYOUT.cb_end_seq)) }
    }

    /// Bytes of payload of a segment in TCP.
    #[inline(always)]
    pub fn payload(self) -> u32 {
        let length = self.end_seq().wrapping_sub(self.seq());
        if length == 0 {
            return 0;
        }
        // SAFETY: a BTF-typed pointer; see `load`.
        let flags: u8 = unsafe {
            load(
                self.0,
                global!(LAYOUT.skb_cb) + global!(LAYOUT.cb_tcp_flags),
            )
        };
        length.wrapping_sub(u32::from(flags & FIN))
    }

    /// Bytes of a segment in TCP from its TCP header on.
    #[inline(always)]
    pub fn len(self) -> u32 {
        // SAFETY: a BTF-typed pointer; see `load`.
        unsafe { load(self.0, global!(LAYOUT.skb_len)) }
    }

    /// The socket that owns it.
    #[inline(always)]
    pub fn sk(self) -> Option<Sock> {
        // SAFETY: a BTF-typed pointer; see `load`.
        Sock::new(unsafe { load(self.0, global!(LAYOUT.skb_sk)) })
    }

    /// Number of the network namespace of its device; 0 without a device.
    #[inline(always)]
    pub fn netns(self) -> u32 {
        // SAFETY: BTF-typed pointers; see `load`.
        unsafe {
            let dev: *mut c_void = load(self.0, global!(LAYOUT.skb_dev));
            match NonNull::new(dev) {
                Some(dev) => super::netns_inum(load(dev, global!(LAYOUT.nd_net))),
                None => 0,
            }
        }
    }

    #[inline(always)]
    fn ethertype(self) -> u16 {
        // SAFETY: a BTF-typed pointer; see `load`.
        u16::from_be(unsafe { load(self.0, global!(LAYOUT.skb_protocol)) })
    }

    /// Reads from the header that begins at the 16-bit offset in `field`. The
    /// buffer has no BTF type, so this takes the helper.
    #[inline(always)]
    fn header<T>(self, field: u32, offset: usize) -> Option<T> {
        // SAFETY: a BTF-typed pointer; the helper checks the address.
        unsafe {
            let head: *const u8 = load(self.0, global!(LAYOUT.skb_head));
            let start: u16 = load(self.0, field);
            // All ones: the offset was never set.
            if start == u16::MAX {
                return None;
            }
            bpf_probe_read_kernel(head.add(usize::from(start) + offset).cast::<T>()).ok()
        }
    }

    #[inline(always)]
    fn network<T>(self, offset: usize) -> Option<T> {
        self.header(global!(LAYOUT.skb_network_header), offset)
    }

    /// What it is, as far as labels tell.
    #[inline(always)]
    pub fn protocol(self) -> Protocol {
        let (next, rest) = match self.ethertype() {
            ETH_P_IP => (self.network::<u8>(9), Protocol::Ipv4),
            ETH_P_IPV6 => (self.network::<u8>(6), Protocol::Ipv6),
            ETH_P_ARP => return Protocol::Arp,
            // A segment that has not reached IP has no EtherType yet.
            0 => {
                return match self.sk() {
                    Some(sk) if sk.protocol() == IPPROTO_TCP => Protocol::Tcp,
                    _ => Protocol::Other,
                };
            }
            _ => return Protocol::Other,
        };
        match next {
            Some(6) => Protocol::Tcp,
            Some(17) => Protocol::Udp,
            Some(1) if matches!(rest, Protocol::Ipv4) => Protocol::Icmp,
            Some(58) if matches!(rest, Protocol::Ipv6) => Protocol::Icmp6,
            _ => rest,
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

    /// Whether the TCP header has the RST flag.
    #[inline(always)]
    pub fn is_reset(self) -> bool {
        let flags: Option<u8> = self.header(global!(LAYOUT.skb_transport_header), 13);
        matches!(flags, Some(flags) if flags & RST != 0)
    }
}
