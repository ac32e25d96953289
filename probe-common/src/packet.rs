//! What a packet is: the one classifier, for frames that XDP sees, for packets
//! that the kernel drops and for the flows that user space shows.

use crate::labels::Protocol;

/// EtherType of IPv4.
pub const ETH_P_IP: u16 = 0x0800;
/// EtherType of ARP.
pub const ETH_P_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd;
/// EtherType of a VLAN tag (IEEE 802.1Q).
pub const ETH_P_8021Q: u16 = 0x8100;
/// EtherType of a service tag (IEEE 802.1ad).
pub const ETH_P_8021AD: u16 = 0x88a8;

/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// Next header of a fragment header (RFC 8200, section 4.5).
const FRAGMENT: u8 = 44;

/// VLAN tags of a frame that are followed: a service tag and a customer tag.
pub const VLAN_TAGS: u32 = 2;
/// Extension headers of an IPv6 packet that are followed.
pub const EXTENSIONS: u32 = 4;

/// The class of a packet, by the EtherType behind all VLAN tags and the protocol
/// behind the last IPv6 extension header.
#[inline(always)]
pub const fn classify(ethertype: u16, protocol: u8) -> Protocol {
    match (ethertype, protocol) {
        (ETH_P_IP | ETH_P_IPV6, PROTOCOL_TCP) => Protocol::Tcp,
        (ETH_P_IP | ETH_P_IPV6, PROTOCOL_UDP) => Protocol::Udp,
        (ETH_P_IP, PROTOCOL_ICMP) => Protocol::Icmp,
        (ETH_P_IPV6, PROTOCOL_ICMPV6) => Protocol::Icmp6,
        (ETH_P_IP, _) => Protocol::Ipv4,
        (ETH_P_IPV6, _) => Protocol::Ipv6,
        (ETH_P_ARP, _) => Protocol::Arp,
        _ => Protocol::Other,
    }
}

/// Whether an EtherType is that of a VLAN tag.
#[inline(always)]
pub const fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, ETH_P_8021Q | ETH_P_8021AD)
}

/// The EtherType behind a VLAN tag, the four bytes that follow the tag's own
/// EtherType as a little-endian word.
#[inline(always)]
pub const fn behind_tag(tag: u32) -> u16 {
    u16::from_be((tag >> 16) as u16)
}

/// Whether a next header is that of an extension header that is followed:
/// hop-by-hop, routing, fragment or destination options (RFC 8200, section 4).
#[inline(always)]
pub const fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | FRAGMENT | 60)
}

/// What an IPv6 extension header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The header that follows it.
    pub next: u8,
    /// Its own length in bytes.
    pub length: u32,
    /// Whether it is the header of a fragment other than the first, so that
    /// what follows it is no header.
    pub is_later_fragment: bool,
}

impl Extension {
    /// Reads an extension header of type `kind` from its first four bytes as a
    /// little-endian word.
    #[inline(always)]
    pub const fn read(kind: u8, word: u32) -> Self {
        let next = word as u8;
        if kind == FRAGMENT {
            Self {
                next,
                length: 8,
                is_later_fragment: u16::from_be((word >> 16) as u16) & !7 != 0,
            }
        } else {
            Self {
                next,
                length: ((word >> 8 & 0xff) + 1) * 8,
                is_later_fragment: false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn icmp_of_one_family_is_a_plain_protocol_of_the_other() {
        assert_eq!(classify(ETH_P_IP, PROTOCOL_ICMP), Protocol::Icmp);
        assert_eq!(classify(ETH_P_IPV6, PROTOCOL_ICMP), Protocol::Ipv6);
        assert_eq!(classify(ETH_P_IP, PROTOCOL_ICMPV6), Protocol::Ipv4);
        assert_eq!(classify(ETH_P_ARP, PROTOCOL_TCP), Protocol::Arp);
        assert_eq!(classify(ETH_P_8021Q, PROTOCOL_TCP), Protocol::Other);
    }

    #[test]
    fn extension_headers_tell_what_follows_and_where() {
        let word = |bytes| u32::from_le_bytes(bytes);
        let options = Extension::read(60, word([PROTOCOL_UDP, 2, 1, 0]));
        assert_eq!((options.next, options.length), (PROTOCOL_UDP, 24));
        let first = Extension::read(44, word([PROTOCOL_TCP, 0, 0, 1]));
        assert_eq!((first.length, first.is_later_fragment), (8, false));
        let later = Extension::read(44, word([PROTOCOL_TCP, 0, 0, 9]));
        assert!(later.is_later_fragment);
        assert_eq!(behind_tag(word([0, 5, 0x86, 0xdd])), ETH_P_IPV6);
    }
}
