//! Follows VLAN tags and IPv6 extension headers. What they mean stands in
//! [`probe_common::packet`]; here they are read, wherever the packet lies.

use probe_common::packet::{EXTENSIONS, Extension, VLAN_TAGS, behind_tag, is_extension, is_vlan};

/// The bytes of a packet.
pub trait Headers {
    /// The four bytes at an offset as a little-endian word, where they can be read.
    fn word(&self, at: usize) -> Option<u32>;
}

/// The EtherType behind all VLAN tags, 0 where a tag is cut short, and where the
/// header of that type begins. The first tag, if `ethertype` is that of one,
/// begins at `at`.
#[inline(always)]
pub fn untagged(headers: &impl Headers, mut ethertype: u16, mut at: usize) -> (u16, usize) {
    let mut tags = 0;
    while tags < VLAN_TAGS && is_vlan(ethertype) {
        ethertype = headers.word(at).map_or(0, behind_tag);
        at += 4;
        tags += 1;
    }
    (ethertype, at)
}

/// The header behind all extension headers of an IPv6 packet.
pub struct LastHeader {
    /// Its protocol number.
    pub protocol: u8,
    /// Where it begins.
    pub at: usize,
    /// Whether it is there: only the first fragment has it.
    pub is_there: bool,
}

/// The last header of an IPv6 packet whose fixed header names `next`, which begins
/// at `at`.
#[inline(always)]
pub fn last_header(headers: &impl Headers, next: u8, at: usize) -> LastHeader {
    let mut last = LastHeader {
        protocol: next,
        at,
        is_there: true,
    };
    let mut extensions = 0;
    while extensions < EXTENSIONS && last.is_there && is_extension(last.protocol) {
        let Some(word) = headers.word(last.at) else {
            break;
        };
        let extension = Extension::read(last.protocol, word);
        last.protocol = extension.next;
        last.at += extension.length as usize;
        last.is_there = !extension.is_later_fragment;
        extensions += 1;
    }
    last
}
