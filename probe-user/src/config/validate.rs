//! What a configuration must fulfil beyond its syntax.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, anyhow, ensure};
use ipnet::IpNet;

use probe_common::abi::{
    config::MAX_NETNS,
    owner::{NAME_LEN, PATTERNS},
    series::{GROUP_NETWORKS, NAMED_PORTS, PEER_NETWORKS},
};

use super::{Config, KEYS, Peer, Service};

const MAX_NAME: usize = 63;
/// Names that the tool itself gives to peers.
const PEER_NAMES: [&str; 4] = ["loopback", "private", "public", "other"];

/// All that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigErrors(Vec<String>);

impl ConfigErrors {
    /// A line for each error: the key, what is wrong, and what would be right.
    pub fn lines(&self) -> &[String] {
        &self.0
    }
}

impl Config {
    /// Checks the values.
    ///
    /// # Errors
    ///
    /// All that is wrong.
    pub fn validate(&self) -> Result<(), ConfigErrors> {
        let mut errors = Vec::new();
        for key in KEYS {
            for error in key.checks.iter().filter_map(|check| check(self).err()) {
                let default = key.default_text();
                errors.push(format!("{}: {error:#} (default: {default})", key.path()));
            }
        }
        let mut check = |result: anyhow::Result<()>| {
            errors.extend(result.err().map(|error| format!("{error:#}")));
        };
        check(check_netns(&self.netns));
        check_services(&self.services, &mut check);
        check_peers(&self.peers, &mut check);
        if errors.is_empty() {
            Ok(())
        } else {
            Err(ConfigErrors(errors))
        }
    }
}

/// Checks a path.
pub(super) fn absolute(path: &Path) -> anyhow::Result<()> {
    ensure!(
        path.is_absolute(),
        "{} is not an absolute path, such as /run/edgeprobe/edgeprobe.sock",
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
            "{name:?} cannot be the name of an interface, such as \"eth0\""
        );
        ensure!(seen.insert(name), "{name:?} is there twice");
    }
    Ok(())
}

fn check_netns(names: &[String]) -> anyhow::Result<()> {
    ensure!(
        names.len() <= MAX_NETNS,
        "--netns: given {} times, {MAX_NETNS} is the most",
        names.len()
    );
    Ok(())
}

/// Calls `report` with the result of each check.
fn check_services(services: &[Service], report: &mut impl FnMut(anyhow::Result<()>)) {
    let mut seen = HashSet::new();
    for service in services {
        let name = &service.name;
        let mut of = |key: &str, result: anyhow::Result<()>| {
            report(result.with_context(|| format!("service {name:?}: {key}")));
        };
        of("name", check_service_name(service));
        of("ports", check_ports(&service.ports));
        of("netns", check_service_netns(service.netns.as_deref()));
        of(
            "addresses",
            service.addresses.iter().try_for_each(check_network),
        );
        of("cgroup", check_cgroup(service));
        of("unit", check_unit(service));
        report(check_matches(service).with_context(|| format!("service {name:?}")));
        if !seen.insert(name) {
            report(Err(anyhow!(
                "service {name:?}: there twice; each name once"
            )));
        }
    }
    let ports: HashSet<_> = services.iter().flat_map(|one| &one.ports).collect();
    report(at_most("ports", ports.len(), NAMED_PORTS));
    let networks: HashSet<_> = services.iter().flat_map(|one| &one.addresses).collect();
    report(at_most("addresses", networks.len(), GROUP_NETWORKS));
    let owners: HashSet<_> = services.iter().flat_map(Service::owners).collect();
    report(at_most("cgroup and unit", owners.len(), PATTERNS));
}

/// Checks how many different values all services have of a key.
fn at_most(key: &str, count: usize, most: usize) -> anyhow::Result<()> {
    ensure!(
        count <= most,
        "[[service]]: {key}: {count} in all services together, {most} is the most"
    );
    Ok(())
}

fn check_service_name(service: &Service) -> anyhow::Result<()> {
    check_name(&service.name)?;
    ensure!(service.name != "other", "the name \"other\" is reserved");
    ensure!(
        !service.name.bytes().all(|byte| byte.is_ascii_digit()),
        "a name of digits only would be taken for a port"
    );
    Ok(())
}

fn check_ports(ports: &[u16]) -> anyhow::Result<()> {
    ensure!(
        !ports.contains(&0),
        "port 0 cannot be the port of a service: write such as [80, 443]"
    );
    Ok(())
}

fn check_service_netns(name: Option<&str>) -> anyhow::Result<()> {
    ensure!(
        name != Some(""),
        "it is empty: leave it out, or give a name or path such as \"web1\""
    );
    Ok(())
}

fn check_matches(service: &Service) -> anyhow::Result<()> {
    ensure!(
        !service.ports.is_empty()
            || service.netns.is_some()
            || !service.addresses.is_empty()
            || service.owners().next().is_some(),
        "it would match every connection: give \"ports\", \"netns\", \"addresses\", \"cgroup\" or \"unit\", such as ports = [443]"
    );
    Ok(())
}

fn check_cgroup(service: &Service) -> anyhow::Result<()> {
    let Some(path) = &service.cgroup else {
        return Ok(());
    };
    ensure!(
        path.starts_with('/') && !path.contains("//") && !path.split('/').any(|p| p == ".."),
        "{path:?} is not a path below the mount of cgroup v2, such as \"/system.slice/nginx.service\""
    );
    check_length(path)
}

fn check_unit(service: &Service) -> anyhow::Result<()> {
    let Some(unit) = &service.unit else {
        return Ok(());
    };
    ensure!(
        unit.contains('.') && !unit.contains('/'),
        "{unit:?} is not the full name of a unit, such as \"nginx.service\""
    );
    ensure!(
        service.cgroup.is_none(),
        "\"cgroup\" and \"unit\" both: give one of them"
    );
    check_length(unit)
}

fn check_length(pattern: &str) -> anyhow::Result<()> {
    ensure!(
        pattern.len() < NAME_LEN,
        "it has {} bytes, {} is the most",
        pattern.len(),
        NAME_LEN - 1
    );
    Ok(())
}

/// Calls `report` with the result of each check.
fn check_peers(peers: &[Peer], report: &mut impl FnMut(anyhow::Result<()>)) {
    let mut names = HashSet::new();
    let mut networks = HashSet::new();
    for peer in peers {
        let name = &peer.name;
        let mut of = |key: &str, result: anyhow::Result<()>| {
            report(result.with_context(|| format!("peer {name:?}: {key}")));
        };
        of("name", check_peer_name(name));
        of("cidrs", check_cidrs(&peer.cidrs));
        for network in peer.cidrs.iter().filter(|one| !networks.insert(*one)) {
            of(
                "cidrs",
                Err(anyhow!("{network} is there twice; each network once")),
            );
        }
        if !names.insert(name) {
            report(Err(anyhow!("peer {name:?}: there twice; each name once")));
        }
    }
    let count = networks.len();
    if count > PEER_NETWORKS {
        report(Err(anyhow!(
            "[[peer]]: cidrs: {count} in all groups together, {PEER_NETWORKS} is the most"
        )));
    }
}

fn check_peer_name(name: &str) -> anyhow::Result<()> {
    check_name(name)?;
    ensure!(
        !PEER_NAMES.contains(&name),
        "the name is reserved: {} are given to all others",
        PEER_NAMES.join(", ")
    );
    Ok(())
}

fn check_cidrs(cidrs: &[IpNet]) -> anyhow::Result<()> {
    ensure!(
        !cidrs.is_empty(),
        "it is empty: give networks, such as [\"192.0.2.0/24\"]"
    );
    cidrs.iter().try_for_each(check_network)
}

fn check_name(name: &str) -> anyhow::Result<()> {
    ensure!(
        (1..=MAX_NAME).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
        "a name has 1 to {MAX_NAME} letters, digits, '.', '_' or '-', such as \"web-1\""
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
        config.validate().map_err(|error| error.to_string())
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
                "service \"a b\": name: a name has",
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
                "service \"a\": there twice",
            ),
            (
                "[[peer]]\nname=\"public\"\ncidrs=[\"1.0.0.0/8\"]",
                "peer \"public\": name: the name is reserved",
            ),
            (
                "[[peer]]\nname=\"a\"\ncidrs=[]",
                "peer \"a\": cidrs: it is empty",
            ),
            (
                "[[peer]]\nname=\"a\"\ncidrs=[\"1.0.0.0/8\"]\n[[peer]]\nname=\"b\"\ncidrs=[\"1.0.0.0/8\"]",
                "peer \"b\": cidrs: 1.0.0.0/8 is there twice",
            ),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once_with_key_and_example() {
        let text = "[daemon]\nsnapshot_interval=\"10ms\"\nsocket=\"x.sock\"\n\
                    [[service]]\nname=\"web\"\nports=[0]\nunit=\"nginx\"\n\
                    [[peer]]\nname=\"public\"\ncidrs=[]";
        let config = Config::from_toml(text).unwrap();
        let error = config.validate().unwrap_err();
        let begins = [
            "daemon.socket: x.sock is not an absolute path, such as /",
            "daemon.snapshot_interval: 10ms is not between 100ms and 60s (default: 1s)",
            "service \"web\": ports: port 0 cannot",
            "service \"web\": unit: \"nginx\" is not the full name of a unit, such as",
            "peer \"public\": name: the name is reserved",
            "peer \"public\": cidrs: it is empty: give networks, such as",
        ];
        assert_eq!(error.lines().len(), begins.len(), "{error}");
        for (line, begin) in error.lines().iter().zip(begins) {
            assert!(line.starts_with(begin), "{line}");
        }
    }

    /// What the maps of the programs hold: more, and the daemon would not start.
    #[test]
    fn what_is_too_much_for_the_maps_is_refused() {
        let service = |name: usize, ports: std::ops::Range<usize>| {
            let ports: Vec<_> = ports.map(|port| (port + 1).to_string()).collect();
            format!(
                "[[service]]\nname=\"s{name}\"\nports=[{}]\n",
                ports.join(",")
            )
        };
        // A port that two services have counts once.
        let most = service(0, 0..NAMED_PORTS) + &service(1, 0..10);
        assert_eq!(check(&most), Ok(()));
        let error = check(&(most + &service(2, NAMED_PORTS..NAMED_PORTS + 1))).unwrap_err();
        assert_eq!(
            error,
            "[[service]]: ports: 4097 in all services together, 4096 is the most"
        );
        let network = |n: usize| format!("\"10.{}.{}.0/24\"", n / 256, n % 256);
        let peers = |count| {
            let all: Vec<_> = (0..count).map(network).collect();
            format!("[[peer]]\nname=\"a\"\ncidrs=[{}]", all.join(","))
        };
        assert_eq!(check(&peers(PEER_NETWORKS)), Ok(()));
        let error = check(&peers(PEER_NETWORKS + 1)).unwrap_err();
        assert_eq!(
            error,
            "[[peer]]: cidrs: 4097 in all groups together, 4096 is the most"
        );
        let addresses = |count| {
            let all: Vec<_> = (0..count).map(network).collect();
            format!("[[service]]\nname=\"a\"\naddresses=[{}]", all.join(","))
        };
        assert_eq!(check(&addresses(GROUP_NETWORKS)), Ok(()));
        assert!(check(&addresses(GROUP_NETWORKS + 1)).is_err());
        let units = |count| -> String {
            (0..count)
                .map(|n| format!("[[service]]\nname=\"u{n}\"\nunit=\"u{n}.service\"\n"))
                .collect()
        };
        assert_eq!(check(&units(PATTERNS)), Ok(()));
        assert!(check(&units(PATTERNS + 1)).is_err());
        let config = Config {
            netns: vec!["a".to_owned(); MAX_NETNS + 1],
            ..Config::default()
        };
        assert!(config.validate().is_err());
    }
}
