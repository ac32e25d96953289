//! Which service a connection or a listener is of.

use std::collections::BTreeSet;

use anyhow::ensure;
use ipnet::IpNet;
use probe_common::labels::Side;

use super::{OTHER, Owners, Prefix, prefix};
use crate::{
    config::{Service, ServiceSide},
    kernel::{address::address, netns::NetNs},
};

/// The configured services, first match wins.
#[derive(Debug)]
pub struct Services {
    matchers: Vec<ServiceMatcher>,
    /// Address ranges of the services; the number of one is its position + 1.
    groups: Vec<IpNet>,
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
struct ServiceMatcher {
    name: String,
    side: ServiceSide,
    ports: Vec<u16>,
    netns: Option<NamedNetns>,
    addresses: Vec<IpNet>,
    /// Bits of its control groups; 0: any.
    owners: u64,
}

/// A namespace by name. One that is made again has another number.
#[derive(Debug)]
struct NamedNetns {
    name: String,
    /// The numbers that it has had: what was counted under one keeps its service.
    inums: BTreeSet<u32>,
}

impl NamedNetns {
    /// The one that a service names. It may come later.
    fn of_service(service: &str, name: &str) -> Self {
        let found = NetNs::named(name);
        if let Err(why) = &found {
            tracing::warn!("service {service}: {why}; waiting for it");
        }
        Self {
            name: name.to_owned(),
            inums: found.iter().map(|netns| netns.inum).collect(),
        }
    }

    /// Learns its number, if it is there and has another one.
    fn follow(&mut self, service: &str) {
        if let Ok(found) = NetNs::named(&self.name)
            && self.inums.insert(found.inum)
        {
            let name = &self.name;
            tracing::info!("service {service}: network namespace {name} has come");
        }
    }
}

impl Services {
    /// The services of a configuration.
    ///
    /// # Errors
    ///
    /// The services have more address ranges than the programs can number.
    pub fn new(services: &[Service], owners: &Owners) -> anyhow::Result<Self> {
        let mut matchers = Vec::new();
        let mut groups: Vec<IpNet> = Vec::new();
        for service in services {
            let netns = service.netns.as_deref();
            let netns = netns.map(|name| NamedNetns::of_service(&service.name, name));
            for &net in &service.addresses {
                if !groups.contains(&net.trunc()) {
                    groups.push(net.trunc());
                }
            }
            matchers.push(ServiceMatcher {
                name: service.name.clone(),
                side: service.side,
                ports: service.ports.clone(),
                netns,
                addresses: service.addresses.clone(),
                owners: (service.owners()).fold(0, |bits, one| bits | owners.bit(&one)),
            });
        }
        ensure!(
            groups.len() <= usize::from(u8::MAX),
            "the services have {} address ranges, 255 is the most",
            groups.len()
        );
        Ok(Self { matchers, groups })
    }

    /// Whether a service is narrowed by its network namespace.
    pub fn by_netns(&self) -> bool {
        self.matchers.iter().any(|service| service.netns.is_some())
    }

    /// Learns the numbers of namespaces that have come, or were made again under their
    /// names.
    pub fn follow_namespaces(&mut self) {
        for service in &mut self.matchers {
            if let Some(netns) = &mut service.netns {
                netns.follow(&service.name);
            }
        }
    }

    /// Names of the namespaces that services are narrowed by.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        let named = self.matchers.iter().filter_map(|one| one.netns.as_ref());
        named.map(|netns| netns.name.as_str())
    }

    /// Prefixes of the services' addresses.
    pub fn prefixes(&self) -> Vec<Prefix> {
        (1..)
            .zip(&self.groups)
            .map(|(number, &net)| prefix(net, number))
            .collect()
    }

    /// The address range of that number; `None` for 0, which is none of them.
    pub fn group(&self, number: u8) -> Option<&IpNet> {
        let position = usize::from(number).checked_sub(1)?;
        self.groups.get(position)
    }

    /// Ports of the configured services.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let ports = self.matchers.iter().flat_map(|service| &service.ports);
        ports.copied()
    }

    /// The service on a port: the first that matches, else the number. `owners`
    /// are the bits of the socket's control group.
    pub fn find(&self, netns: u32, side: u8, port: u16, at: At<'_>, owners: u64) -> String {
        let wanted = match side {
            side if side == Side::Server as u8 => ServiceSide::Server,
            side if side == Side::Client as u8 => ServiceSide::Client,
            _ => return OTHER.to_owned(),
        };
        let found = self.matchers.iter().find(|service| {
            (service.side == ServiceSide::Any || service.side == wanted)
                && (service.ports.is_empty() || service.ports.contains(&port))
                && (service.netns.as_ref()).is_none_or(|one| one.inums.contains(&netns))
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

    /// The service of a listener. Of one that listens on all addresses the
    /// connections may be of several services: it is the first one's.
    pub fn of_listener(&self, netns: u32, local: [u8; 16], port: u16, owners: u64) -> String {
        let net = address(local).into();
        let at = if address(local).is_unspecified() {
            At::Any
        } else {
            At::In(Some(&net))
        };
        self.find(netns, Side::Server as u8, port, at, owners)
    }
}
