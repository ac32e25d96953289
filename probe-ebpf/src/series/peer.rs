//! Groups of addresses: the peers, and the addresses that narrow a service.

use aya_ebpf::{btf_maps::LpmTrie, maps::lpm_trie::Key};
use probe_common::abi::series::{PEER_LOOPBACK, PEER_OTHER, PEER_PRIVATE, PEER_PUBLIC};

use crate::{
    globals::global,
    kernel::addr::{Address, bytes},
    maps::{GROUPS, PEERS},
};

#[inline(always)]
fn lookup<const N: usize>(trie: &LpmTrie<[u8; 16], u32, N>, address: Address) -> u32 {
    trie.get(&Key::new(128, bytes(address)))
        .copied()
        .unwrap_or(0)
}

/// The number of the service address group of an address, 0 for none.
#[inline(always)]
pub fn group(address: Address) -> u8 {
    if global!(CONFIG.groups) == 0 {
        return 0;
    }
    lookup(&GROUPS, address) as u8
}

/// The peer number of an address.
#[inline(always)]
pub fn peer(address: Address) -> u16 {
    if global!(CONFIG.peers) != 0 {
        let peer = lookup(&PEERS, address) as u16;
        if peer != PEER_OTHER {
            return peer;
        }
    }
    let [high, low] = address.map(u64::from_be);
    match (high, low >> 32, low) {
        (0, 0xffff, _) => match low as u32 {
            v4 if v4 >> 24 == 127 => PEER_LOOPBACK,
            v4 if v4 >> 24 == 10
                || v4 >> 20 == 0xac1
                || v4 >> 16 == 0xc0a8
                || v4 >> 22 == 0x6440_0000 >> 22
                || v4 >> 16 == 0xa9fe =>
            {
                PEER_PRIVATE
            }
            0 => PEER_OTHER,
            _ => PEER_PUBLIC,
        },
        (0, _, 1) => PEER_LOOPBACK,
        (0, _, 0) => PEER_OTHER,
        _ if high >> 57 == 0xfc >> 1 || high >> 54 == 0xfe80 >> 6 => PEER_PRIVATE,
        _ => PEER_PUBLIC,
    }
}
