//! What a configuration must fulfil beyond its syntax.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;

use probe_common::abi::owner::NAME_LEN;

use super::{Config, KEYS, Peer, Service};

const MAX_NAME: usize = 63;
/// Names that the tool itself gives to peers.
const PEER_NAMES: [&str; 4] = ["loopback", "private", "public", "other"];

impl Config {
    /// Checks the values.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong.
    pub fn validate(&self) -> anyhow::Result<()> {
        for key in KEYS {
            for check in key.checks {
                check(self).with_context(|| key.path())?;
            }
        }
        check_services(&self.services)?;
        check_peers(&self.peers)
    }
}

/// Checks a path.
pub(super) fn absolute(path: &Path) -> anyhow::Result<()> {
    ensure!(
        path.is_absolute(),
        "{} is not an absolute path",
        path.display()
    );
    Ok(())
}

/// Checks a list of interfaces.
pub(super) fn interface_names(names: &[String]) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        ensure!(
            (1..16).contains(&name.len())
                && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()),
            "{name:?} cannot be the name of an interface"
        );
        ensure!(seen.insert(name), "{name:?} is there twice");
    }
    Ok(())
}

fn check_services(services: &[Service]) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for service in services {
        check_service(service).with_context(|| format!("service {:?}", service.name))?;
        ensure!(
            seen.insert(&service.name),
            "service {:?} is there twice",
            service.name
        );
    }
    Ok(())
}

fn check_service(service: &Service) -> anyhow::Result<()> {
    check_name(&service.name)?;
    ensure!(service.name != "other", "the name \"other\" is reserved");
    ensure!(
        !service.name.bytes().all(|byte| byte.is_ascii_digit()),
        "a name of digits only would be taken for a port"
    );
    check_owners(service)?;
    ensure!(
        !service.ports.contains(&0),
        "port 0 cannot be the port of a service"
    );
    ensure!(
        !service.ports.is_empty()
            || service.netns.is_some()
            || !service.addresses.is_empty()
            || service.owners().next().is_some(),
        "it would match every connection: give \"ports\", \"netns\", \"addresses\", \"cgroup\" or \"unit\""
    );
    ensure!(
        service.netns.as_deref() != Some(""),
        "\"netns\" is empty: leave it out, or give a name or path"
    );
    service.addresses.iter().try_for_each(check_network)
}

fn check_owners(service: &Service) -> anyhow::Result<()> {
    if let Some(path) = &service.cgroup {
        ensure!(
            path.starts_with('/') && !path.contains("//") && !path.split('/').any(|p| p == ".."),
            "\"cgroup\": {path:?} is not a path below the mount of cgroup v2, such as \"/system.slice/nginx.service\""
        );
    }
    if let Some(unit) = &service.unit {
        ensure!(
            unit.contains('.') && !unit.contains('/'),
            "\"unit\": {unit:?} is not the full name of a unit, such as \"nginx.service\""
        );
    }
    ensure!(
        service.cgroup.is_none() || service.unit.is_none(),
        "\"cgroup\" and \"unit\" both: give one of them"
    );
    let long = service.owners().find(|one| one.text().len() >= NAME_LEN);
    ensure!(
        long.is_none(),
        "\"cgroup\" or \"unit\": more than {} bytes",
        NAME_LEN - 1
    );
    Ok(())
}

fn check_peers(peers: &[Peer]) -> anyhow::Result<()> {
    let mut names = HashSet::new();
    let mut networks = HashSet::new();
    for peer in peers {
        let name = &peer.name;
        let check = || {
            check_name(name)?;
            if PEER_NAMES.contains(&name.as_str()) {
                bail!("the name is reserved");
            }
            ensure!(!peer.cidrs.is_empty(), "\"cidrs\" is empty");
            peer.cidrs.iter().try_for_each(check_network)
        };
        check().with_context(|| format!("peer {name:?}"))?;
        ensure!(names.insert(name), "peer {name:?} is there twice");
        for network in &peer.cidrs {
            ensure!(
                networks.insert(network),
                "peer {name:?}: {network} is there twice"
            );
        }
    }
    Ok(())
}

fn check_name(name: &str) -> anyhow::Result<()> {
    ensure!(
        (1..=MAX_NAME).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
        "a name has 1 to {MAX_NAME} letters, digits, '.', '_' or '-'"
    );
    Ok(())
}

fn check_network(network: &IpNet) -> anyhow::Result<()> {
    ensure!(
        *network == network.trunc(),
        "{network} has bits set beyond its prefix: write {}",
        network.trunc()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        let config = Config::from_toml(text).unwrap();
        config.validate().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(check(""), Ok(()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            (
                "[daemon]\nsnapshot_interval=\"10ms\"",
                "between 100ms and 60s",
            ),
            (
                "[daemon]\nsnapshot_interval=\"2m\"",
                "between 100ms and 60s",
            ),
            ("[daemon]\nsocket=\"x.sock\"", "not an absolute path"),
            ("[metrics]\nmax_series=0", "between 100 and 1000000"),
            ("[packets]\nflows=0", "between 1 and"),
            ("[packets]\nflow_idle=\"2h\"", "between 1s and 1h"),
            ("[packets]\ninterfaces=[\"a b\"]", "\"a b\" cannot be"),
            (
                "[packets]\ninterfaces=[\"a\",\"a\"]",
                "\"a\" is there twice",
            ),
            (
                "[packets]\ninterfaces=[\"abcdefghijklmnop\"]",
                "name of an interface",
            ),
            (
                "[[service]]\nname=\"a b\"\nports=[1]",
                "service \"a b\": a name has",
            ),
            ("[[service]]\nname=\"\"\nports=[1]", "a name has"),
            ("[[service]]\nname=\"other\"\nports=[1]", "reserved"),
            (
                "[[service]]\nname=\"80\"\nports=[1]",
                "would be taken for a port",
            ),
            ("[[service]]\nname=\"a\"\nports=[0]", "port 0"),
            ("[[service]]\nname=\"a\"", "match every connection"),
            (
                "[[service]]\nname=\"a\"\ncgroup=\"nginx.service\"",
                "is not a path below the mount",
            ),
            (
                "[[service]]\nname=\"a\"\nunit=\"nginx\"",
                "is not the full name of a unit",
            ),
            (
                "[[service]]\nname=\"a\"\nunit=\"/nginx.service\"",
                "is not the full name of a unit",
            ),
            (
                "[[service]]\nname=\"a\"\nunit=\"a.service\"\ncgroup=\"/a\"",
                "give one of them",
            ),
            (
                "[[service]]\nname=\"a\"\naddresses=[\"10.1.0.0/8\"]",
                "write 10.0.0.0/8",
            ),
            (
                "[[service]]\nname=\"a\"\nports=[1]\n[[service]]\nname=\"a\"\nports=[2]",
                "service \"a\" is there twice",
            ),
            (
                "[[peer]]\nname=\"public\"\ncidrs=[\"1.0.0.0/8\"]",
                "peer \"public\": the name is reserved",
            ),
            ("[[peer]]\nname=\"a\"\ncidrs=[]", "\"cidrs\" is empty"),
            (
                "[[peer]]\nname=\"a\"\ncidrs=[\"1.0.0.0/8\"]\n[[peer]]\nname=\"b\"\ncidrs=[\"1.0.0.0/8\"]",
                "peer \"b\": 1.0.0.0/8 is there twice",
            ),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
