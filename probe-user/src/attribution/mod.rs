//! From keys to names: services, peers, addresses, network namespaces.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use anyhow::bail;
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use probe_common::{
    packet::{FlowKey, Protocol, Traffic},
    series::{PEER_CONFIGURED, PEER_LOOPBACK, PEER_PRIVATE, PEER_PUBLIC, SeriesKey, Side},
    sock::SockRecord,
};

pub mod cgroup_names;
pub mod owners;
pub mod socket_pids;

use self::owners::{Owner, Owners};
use crate::{
    config::{Config, ServiceSide},
    kernel::netns::{self, NetNs},
    model::{Connection, ListenSocket, PacketFlow, TcpLabels},
};

/// Label value of what is folded or not known.
pub const OTHER: &str = "other";
/// Label value of an owner whose name was never known.
pub const UNKNOWN: &str = "unknown";
/// Label value of an owner or a namespace where there is no socket.
const NOBODY: &str = "none";

/// A prefix and its number.
pub type Prefix = (Key<[u8; 16]>, u32);

/// The configured names.
#[derive(Debug)]
pub struct Names {
    services: Vec<Service>,
    peer_names: Vec<String>,
    peers: Vec<(IpNet, u32)>,
    /// Address ranges of the services; the number of one is its position + 1.
    groups: Vec<IpNet>,
    /// Who the sockets belong to.
    pub owners: Owners,
    /// Whether the series have labels for these.
    owner_label: bool,
    netns_label: bool,
    /// Names of network namespaces, each as it was found first.
    namespaces: HashMap<u32, String>,
}

/// The address of a service, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// Every address.
    Any,
    /// One in this range, or in none that a service is narrowed by.
    In(Option<&'a IpNet>),
}

#[derive(Debug)]
struct Service {
    name: String,
    side: ServiceSide,
    ports: Vec<u16>,
    netns: Option<u32>,
    addresses: Vec<IpNet>,
    /// Bits of its control groups; 0: any.
    owners: u64,
}

impl Names {
    /// The names of a configuration.
    ///
    /// # Errors
    ///
    /// A service names a network namespace that is not there, or the services
    /// have more address ranges than the programs can tell apart.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let owners = Owners::new(config)?;
        let mut services = Vec::new();
        let mut groups: Vec<IpNet> = Vec::new();
        for service in &config.services {
            let netns = service.netns.as_deref().map(NetNs::named).transpose()?;
            for &net in &service.addresses {
                if !groups.contains(&net.trunc()) {
                    groups.push(net.trunc());
                }
            }
            services.push(Service {
                name: service.name.clone(),
                side: service.side,
                ports: service.ports.clone(),
                netns: netns.map(|netns| netns.inum),
                addresses: service.addresses.clone(),
                owners: (service.owners()).fold(0, |bits, one| bits | owners.bit(&one)),
            });
        }
        if groups.len() > usize::from(u8::MAX) {
            bail!(
                "the services have {} address ranges, 255 can be told apart",
                groups.len()
            );
        }
        let mut peers = Vec::new();
        for (n, peer) in config.peers.iter().enumerate() {
            let number = u32::from(PEER_CONFIGURED) + n as u32;
            peers.extend(peer.cidrs.iter().map(|net| (net.trunc(), number)));
        }
        let peer_names = config.peers.iter().map(|peer| peer.name.clone()).collect();
        Ok(Self {
            services,
            peer_names,
            peers,
            groups,
            owners,
            owner_label: config.metrics.owner_label,
            netns_label: config.metrics.netns_label,
            namespaces: HashMap::new(),
        })
    }

    /// Whether network namespaces must be told apart.
    pub fn by_netns(&self) -> bool {
        self.netns_label || self.services.iter().any(|service| service.netns.is_some())
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

    /// Prefixes of the configured peers.
    pub fn peers(&self) -> Vec<Prefix> {
        self.peers
            .iter()
            .map(|&(net, number)| (key(net), number))
            .collect()
    }

    /// Prefixes of the services' addresses.
    pub fn groups(&self) -> Vec<Prefix> {
        (1..)
            .zip(&self.groups)
            .map(|(number, &net)| (key(net), number))
            .collect()
    }

    /// The labels of a row.
    pub fn labels(&self, key: &SeriesKey) -> TcpLabels {
        let side = Side::NAMES.get(usize::from(key.side)).unwrap_or(&"unknown");
        let group = usize::from(key.group)
            .checked_sub(1)
            .and_then(|n| self.groups.get(n));
        let (owners, owner) = self.owners.of_key(key.owner);
        // Where there is no socket there is nobody to name.
        let nobody = if key.side == Side::None as u8 {
            NOBODY
        } else {
            UNKNOWN
        };
        let netns = self.namespaces.get(&key.netns);
        TcpLabels {
            side: (*side).to_owned(),
            svc: self.service(key.netns, key.side, key.port, At::In(group), owners),
            peer: self.peer(key.peer),
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

    fn peer(&self, number: u16) -> String {
        match number {
            PEER_LOOPBACK => "loopback",
            PEER_PRIVATE => "private",
            PEER_PUBLIC => "public",
            _ => {
                let configured = number.checked_sub(PEER_CONFIGURED).map(usize::from);
                let name = configured.and_then(|n| self.peer_names.get(n));
                name.map_or(OTHER, String::as_str)
            }
        }
        .to_owned()
    }

    /// The service of a listener. Of one that listens on all addresses the
    /// connections may be of several services: it is the first one's.
    pub fn listens(&self, netns: u32, local: [u8; 16], port: u16, owners: u64) -> String {
        let net = address(local).into();
        let at = if address(local).is_unspecified() {
            At::Any
        } else {
            At::In(Some(&net))
        };
        self.service(netns, Side::Server as u8, port, at, owners)
    }

    /// Ports of the configured services.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let ports = self.services.iter().flat_map(|service| &service.ports);
        ports.copied()
    }

    /// The service on a port: the first that matches, else the number. `owners`
    /// are the bits of the socket's control group.
    pub fn service(&self, netns: u32, side: u8, port: u16, at: At<'_>, owners: u64) -> String {
        let wanted = match side {
            side if side == Side::Server as u8 => ServiceSide::Server,
            side if side == Side::Client as u8 => ServiceSide::Client,
            _ => return OTHER.to_owned(),
        };
        let found = self.services.iter().find(|service| {
            (service.side == ServiceSide::Any || service.side == wanted)
                && (service.ports.is_empty() || service.ports.contains(&port))
                && service.netns.is_none_or(|inum| inum == netns)
                && (service.owners == 0 || service.owners & owners != 0)
                && (service.addresses.is_empty()
                    || match at {
                        At::Any => true,
                        At::In(group) => group.is_some_and(|group| {
                            service.addresses.iter().any(|net| net.contains(group))
                        }),
                    })
        });
        found.map_or_else(|| port.to_string(), |service| service.name.clone())
    }
}

/// The key of a prefix in the programs' tries: IPv4 is mapped into `::ffff:0:0/96`.
fn key(net: IpNet) -> Key<[u8; 16]> {
    match net {
        IpNet::V4(net) => Key::new(
            96 + u32::from(net.prefix_len()),
            net.network().to_ipv6_mapped().octets(),
        ),
        IpNet::V6(net) => Key::new(u32::from(net.prefix_len()), net.network().octets()),
    }
}

/// An address as the programs hold it.
pub fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// A connection for people.
pub fn connection(record: &SockRecord, labels: TcpLabels, owner: Owner, now_ns: u64) -> Connection {
    let seconds = |us: u32| f64::from(us) / 1e6;
    Connection {
        // The connection has these itself.
        labels: TcpLabels {
            owner: None,
            netns: None,
            ..labels
        },
        owner: owner.name,
        pid: owner.pid,
        process: owner.process,
        cgroup: owner.cgroup,
        local: end(record.local, record.local_port),
        remote: end(record.remote, record.remote_port),
        state: state(record.state).to_owned(),
        netns: record.netns,
        age_seconds: (record.since_ns != 0)
            .then(|| now_ns.saturating_sub(record.since_ns) as f64 / 1e9),
        srtt_seconds: seconds(record.srtt_us),
        min_rtt_seconds: (record.min_rtt_us != u32::MAX).then(|| seconds(record.min_rtt_us)),
        cwnd_segments: record.snd_cwnd,
        congestion: congestion(record.ca_state).to_owned(),
        sent_bytes: record.sent_bytes,
        received_bytes: record.received_bytes,
        retransmits: u64::from(record.retransmits),
    }
}

/// A listening socket for people.
pub fn listen_socket(record: &SockRecord, owner: Owner) -> ListenSocket {
    ListenSocket {
        local: end(record.local, record.local_port),
        netns: record.netns,
        owner: owner.name,
        pid: owner.pid,
        process: owner.process,
        cgroup: owner.cgroup,
        ..ListenSocket::default()
    }
}

fn end(bytes: [u8; 16], port: u16) -> String {
    SocketAddr::new(address(bytes), port).to_string()
}

/// Name of a state of congestion control (`enum tcp_ca_state`).
fn congestion(number: u8) -> &'static str {
    const NAMES: [&str; 5] = ["open", "disorder", "cwr", "recovery", "loss"];
    NAMES.get(usize::from(number)).unwrap_or(&"other")
}

/// Name of a TCP state (`include/net/tcp_states.h`).
fn state(number: u8) -> &'static str {
    match number {
        1 => "ESTABLISHED",
        4 => "FIN_WAIT1",
        5 => "FIN_WAIT2",
        8 => "CLOSE_WAIT",
        9 => "LAST_ACK",
        10 => "LISTEN",
        11 => "CLOSING",
        _ => "UNKNOWN",
    }
}

/// A flow for people.
pub fn flow(key: &FlowKey, traffic: Traffic) -> PacketFlow {
    const ETH_P_IP: u16 = 0x0800;
    const ETH_P_ARP: u16 = 0x0806;
    const ETH_P_IPV6: u16 = 0x86dd;

    let protocol = match (key.ethertype, key.protocol) {
        (ETH_P_IP | ETH_P_IPV6, 6) => Protocol::Tcp,
        (ETH_P_IP | ETH_P_IPV6, 17) => Protocol::Udp,
        (ETH_P_IP, 1) => Protocol::Icmp,
        (ETH_P_IPV6, 58) => Protocol::Icmp6,
        (ETH_P_IP, _) => Protocol::Ipv4,
        (ETH_P_IPV6, _) => Protocol::Ipv6,
        (ETH_P_ARP, _) => Protocol::Arp,
        _ => Protocol::Other,
    };
    let end = |bytes, port| match (protocol, port) {
        (Protocol::Arp | Protocol::Other, _) => String::new(),
        (_, 0) => address(bytes).to_string(),
        (_, port) => SocketAddr::new(address(bytes), port).to_string(),
    };
    PacketFlow {
        protocol: Protocol::NAMES[protocol as usize].to_owned(),
        source: end(key.source, key.source_port),
        destination: end(key.destination, key.destination_port),
        packets: traffic.packets,
        bytes: traffic.bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let service =
            |name: &str, side, ports: &[u16], addresses: &[&str]| crate::config::Service {
                name: name.to_owned(),
                side,
                ports: ports.to_vec(),
                addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
                ..crate::config::Service::default()
            };
        let config = Config {
            services: vec![
                service("inside", ServiceSide::Server, &[443], &["10.0.0.0/8"]),
                service("web", ServiceSide::Server, &[80, 443], &[]),
                service("db", ServiceSide::Any, &[5432], &[]),
            ],
            peers: vec![crate::config::Peer {
                name: "pop".to_owned(),
                cidrs: vec![
                    "192.0.2.0/24".parse().unwrap(),
                    "2001:db8::/32".parse().unwrap(),
                ],
            }],
            ..Config::default()
        };
        Names::new(&config).unwrap()
    }

    fn labels(port: u16, side: Side, group: u8, peer: u16) -> TcpLabels {
        names().labels(&SeriesKey {
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
        let prefixes = names().peers();
        assert_eq!({ prefixes[0].0.prefix_len() }, 96 + 24);
        assert_eq!(prefixes[0].0.data()[10..15], [0xff, 0xff, 192, 0, 2]);
        assert_eq!({ prefixes[1].0.prefix_len() }, 32);
        assert!(prefixes.iter().all(|&(_, number)| number == 4));
    }

    #[test]
    fn addresses_lose_their_mapping() {
        let mapped = "192.0.2.1"
            .parse::<std::net::Ipv4Addr>()
            .unwrap()
            .to_ipv6_mapped()
            .octets();
        assert_eq!(address(mapped).to_string(), "192.0.2.1");
    }
}
