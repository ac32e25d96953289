//! Which group of addresses a peer is of.

use ipnet::IpNet;
use probe_common::abi::series::{PEER_CONFIGURED, PEER_LOOPBACK, PEER_PRIVATE, PEER_PUBLIC};

use super::{OTHER, Prefix, prefix};
use crate::config::Peer;

/// The configured groups of peers, longest prefix wins.
#[derive(Debug)]
pub struct Peers {
    names: Vec<String>,
    nets: Vec<(IpNet, u32)>,
}

impl Peers {
    /// The peers of a configuration.
    pub fn new(peers: &[Peer]) -> Self {
        let mut nets = Vec::new();
        for (n, peer) in peers.iter().enumerate() {
            let number = u32::from(PEER_CONFIGURED) + n as u32;
            nets.extend(peer.cidrs.iter().map(|net| (net.trunc(), number)));
        }
        let names = peers.iter().map(|peer| peer.name.clone()).collect();
        Self { names, nets }
    }

    /// Their prefixes.
    pub fn prefixes(&self) -> Vec<Prefix> {
        self.nets
            .iter()
            .map(|&(net, number)| prefix(net, number))
            .collect()
    }

    /// The name of a number that the programs gave.
    pub fn name(&self, number: u16) -> String {
        match number {
            PEER_LOOPBACK => "loopback",
            PEER_PRIVATE => "private",
            PEER_PUBLIC => "public",
            _ => {
                let configured = number.checked_sub(PEER_CONFIGURED).map(usize::from);
                let name = configured.and_then(|n| self.names.get(n));
                name.map_or(OTHER, String::as_str)
            }
        }
        .to_owned()
    }
}
