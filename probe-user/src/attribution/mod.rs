//! Whose a number is: from the programs' keys to the names of services, peers,
//! owners and network namespaces.

pub mod cgroup_names;
pub mod owners;
mod peers;
mod services;
pub mod socket_pids;

use std::collections::HashMap;

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use probe_common::{abi::series::SeriesKey, labels::Side};

use self::owners::Owners;
pub use self::{
    peers::Peers,
    services::{At, Services},
};
use crate::{config::Config, kernel::netns, model::TcpLabels};

/// Label value of what is folded or not known.
pub const OTHER: &str = "other";
/// Label value of an owner whose name was never known.
pub const UNKNOWN: &str = "unknown";
/// Label value of what there is none of: an owner or a namespace without a socket, the
/// side and the service of a packet that was on its way to nobody.
pub const NOBODY_LABEL: &str = "none";

/// A prefix and its number.
pub type Prefix = (Key<[u8; 16]>, u32);

/// From the programs' keys to labels.
#[derive(Debug)]
pub struct Attribution {
    /// What the ends are called.
    pub services: Services,
    /// What the other ends are called.
    pub peers: Peers,
    /// Who the sockets belong to.
    pub owners: Owners,
    /// Whether the series have labels for these.
    owner_label: bool,
    netns_label: bool,
    /// Names of network namespaces, each as it was found first.
    namespaces: HashMap<u32, String>,
}

impl Attribution {
    /// What a configuration asks for.
    ///
    /// # Errors
    ///
    /// A service names a network namespace that is not there, or the services
    /// have more address ranges or control groups than the programs can number.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let owners = Owners::new(config)?;
        Ok(Self {
            services: Services::new(&config.services, &owners)?,
            peers: Peers::new(&config.peers),
            owners,
            owner_label: config.metrics.owner_label,
            netns_label: config.metrics.netns_label,
            namespaces: HashMap::new(),
        })
    }

    /// Whether network namespaces must be part of the rows' key.
    pub fn by_netns(&self) -> bool {
        self.netns_label || self.services.by_netns()
    }

    /// Gives namespaces their names, those that have none yet.
    pub fn learn_namespaces(&mut self, inums: impl Iterator<Item = u32>) {
        if !self.netns_label {
            return;
        }
        let new: Vec<u32> = inums
            .filter(|inum| *inum != 0 && !self.namespaces.contains_key(inum))
            .collect();
        if !new.is_empty() {
            let names = netns::names();
            for inum in new {
                let name = names.get(&inum).cloned();
                let name = name.unwrap_or_else(|| inum.to_string());
                self.namespaces.entry(inum).or_insert(name);
            }
        }
    }

    /// The labels of a row.
    pub fn labels(&self, key: &SeriesKey) -> TcpLabels {
        let side = Side::NAMES.get(usize::from(key.side)).unwrap_or(&"unknown");
        let at = At::In(self.services.group(key.group));
        let (owners, owner) = self.owners.of_key(key.owner);
        // Where there is no socket there is nobody to name.
        let nobody = if key.side == Side::None as u8 {
            NOBODY_LABEL
        } else {
            UNKNOWN
        };
        let netns = self.namespaces.get(&key.netns);
        TcpLabels {
            side: (*side).to_owned(),
            svc: (self.services).find(key.netns, key.side, key.port, at, owners),
            peer: self.peers.name(key.peer),
            owner: (self.owner_label).then(|| owner.unwrap_or_else(|| nobody.to_owned())),
            netns: (self.netns_label).then(|| netns.map_or(nobody, String::as_str).to_owned()),
        }
    }

    /// The labels of what is folded.
    pub fn folded(&self) -> TcpLabels {
        TcpLabels {
            side: "unknown".to_owned(),
            svc: OTHER.to_owned(),
            peer: OTHER.to_owned(),
            owner: self.owner_label.then(|| OTHER.to_owned()),
            netns: self.netns_label.then(|| OTHER.to_owned()),
        }
    }
}

/// A prefix in the programs' tries: IPv4 is mapped into `::ffff:0:0/96`.
fn prefix(net: IpNet, number: u32) -> Prefix {
    let key = match net {
        IpNet::V4(net) => Key::new(
            96 + u32::from(net.prefix_len()),
            net.network().to_ipv6_mapped().octets(),
        ),
        IpNet::V6(net) => Key::new(u32::from(net.prefix_len()), net.network().octets()),
    };
    (key, number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Peer, Service, ServiceSide};

    fn attribution() -> Attribution {
        let service = |name: &str, side, ports: &[u16], addresses: &[&str]| Service {
            name: name.to_owned(),
            side,
            ports: ports.to_vec(),
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
            ..Service::default()
        };
        let config = Config {
            services: vec![
                service("inside", ServiceSide::Server, &[443], &["10.0.0.0/8"]),
                service("web", ServiceSide::Server, &[80, 443], &[]),
                service("db", ServiceSide::Any, &[5432], &[]),
            ],
            peers: vec![Peer {
                name: "pop".to_owned(),
                cidrs: vec![
                    "192.0.2.0/24".parse().unwrap(),
                    "2001:db8::/32".parse().unwrap(),
                ],
            }],
            ..Config::default()
        };
        Attribution::new(&config).unwrap()
    }

    fn labels(port: u16, side: Side, group: u8, peer: u16) -> TcpLabels {
        attribution().labels(&SeriesKey {
            netns: 0,
            port,
            peer,
            side: side as u8,
            group,
            owner: 0,
            _pad: [0; 3],
        })
    }

    #[test]
    fn the_first_service_that_matches_names_the_port() {
        assert_eq!(labels(443, Side::Server, 1, 0).svc, "inside");
        assert_eq!(labels(443, Side::Server, 0, 0).svc, "web");
        assert_eq!(labels(443, Side::Client, 0, 0).svc, "443");
        assert_eq!(labels(5432, Side::Client, 0, 0).svc, "db");
        assert_eq!(labels(0, Side::None, 0, 0).svc, "other");
        assert_eq!(labels(443, Side::Unknown, 0, 0).svc, "other");
    }

    #[test]
    fn peers_have_their_configured_or_built_in_name() {
        for (number, name) in [
            (0, "other"),
            (1, "loopback"),
            (2, "private"),
            (3, "public"),
            (4, "pop"),
            (5, "other"),
        ] {
            assert_eq!(labels(1, Side::Client, 0, number).peer, name);
        }
    }

    #[test]
    fn prefixes_are_mapped_as_the_programs_hold_addresses() {
        let prefixes = attribution().peers.prefixes();
        assert_eq!({ prefixes[0].0.prefix_len() }, 96 + 24);
        assert_eq!(prefixes[0].0.data()[10..15], [0xff, 0xff, 192, 0, 2]);
        assert_eq!({ prefixes[1].0.prefix_len() }, 32);
        assert!(prefixes.iter().all(|&(_, number)| number == 4));
    }
}
