//! Configuration: defaults, then the file, then the environment, then flags.

mod env;
mod file;
mod validate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use serde::Deserialize;

use crate::attribution::cgroup_names::Pattern;
use crate::cli::{CollectArgs, DEFAULT_SOCKET, DaemonArgs};

/// File that is read where none is named.
pub const DEFAULT_FILE: &str = "/etc/edgeprobe/config.toml";
/// Group of the socket where none is named and this one exists.
pub const DEFAULT_GROUP: &str = "edgeprobe";

/// What to do, merged from all sources and checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The daemon itself.
    pub daemon: Daemon,
    /// The metrics it serves.
    pub metrics: Metrics,
    /// Services, first match wins.
    pub services: Vec<Service>,
    /// Groups of peers, longest prefix wins.
    pub peers: Vec<Peer>,
    /// Packets seen at an interface.
    pub packets: Packets,
    /// Watch only these network namespaces, by name or path; empty: all.
    pub netns: Vec<String>,
    /// Measure the run time of the kernel programs.
    pub bpf_stats: bool,
    /// Attach empty programs, to measure what the hooks themselves cost.
    pub noop_programs: bool,
    /// Connections that are remembered; [`CONNECTIONS`](crate::collector::CONNECTIONS)
    /// if absent.
    pub connections: Option<u32>,
    /// Combinations of side, service and peer that are told apart, the overflow
    /// counted; [`ROWS`](crate::collector::ROWS) if absent.
    pub rows: Option<u32>,
}

/// The daemon itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Daemon {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Group that may use it; [`DEFAULT_GROUP`] where that exists if absent.
    pub socket_group: Option<String>,
    /// Time between two snapshots.
    pub snapshot_interval: Duration,
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            socket_group: None,
            snapshot_interval: Duration::from_secs(1),
        }
    }
}

/// The metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Where the daemon serves HTTP, if at all.
    pub listen: Option<SocketAddr>,
    /// Largest number of series; what does not fit is folded into `other`.
    pub max_series: usize,
    /// Whether the time in the accept queue ends when `accept()` returns, at the
    /// price of a program on every system call.
    pub accept_queue_exact: bool,
    /// Whether the series have a label for the owner.
    pub owner_label: bool,
    /// Whether the series have a label for the network namespace.
    pub netns_label: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            listen: None,
            max_series: 10_000,
            accept_queue_exact: false,
            owner_label: false,
            netns_label: false,
        }
    }
}

/// A service with a name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Value of the label `svc`.
    pub name: String,
    /// Which end of the connection is looked at.
    #[serde(default)]
    pub side: ServiceSide,
    /// Ports; empty: any.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Only in this network namespace, by name or path.
    pub netns: Option<String>,
    /// Only sockets of this control group or one below it, by path.
    pub cgroup: Option<String>,
    /// Only sockets of this unit's control group or one below it.
    pub unit: Option<String>,
    /// Only with the service at one of these addresses; empty: any.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

impl Service {
    /// The control groups that narrow it; any of them will do.
    pub fn owners(&self) -> impl Iterator<Item = Pattern> {
        let path = self.cgroup.clone().map(Pattern::Path);
        let unit = self.unit.clone().map(Pattern::Unit);
        path.into_iter().chain(unit)
    }
}

/// The end of a connection at which a service is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceSide {
    /// It listens here.
    Server,
    /// It is called from here.
    Client,
    /// Either.
    #[default]
    Any,
}

/// A group of peers with a name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Value of the label `peer`.
    pub name: String,
    /// Their addresses.
    pub cidrs: Vec<IpNet>,
}

/// Packets seen at an interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Packets {
    /// Interfaces that get an XDP program.
    pub interfaces: Vec<String>,
    /// How it is attached.
    pub xdp_mode: XdpMode,
    /// Entries of the flow table.
    pub flows: u32,
    /// How long a flow without packets keeps its entry once the table is half full.
    pub flow_idle: Duration,
}

impl Default for Packets {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            xdp_mode: XdpMode::Auto,
            flows: 65_536,
            flow_idle: Duration::from_secs(30),
        }
    }
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver, or not at all.
    Native,
    /// In the network stack, where every driver can.
    Generic,
    /// In the driver where it can, else in the network stack.
    #[default]
    Auto,
}

impl Config {
    /// The configuration of the daemon.
    pub fn for_daemon(args: &DaemonArgs) -> anyhow::Result<Self> {
        let mut config = Self::sources(&args.collect)?;
        if let Some(listen) = args.listen {
            config.metrics.listen = Some(listen);
        }
        if let Some(group) = &args.socket_group {
            config.daemon.socket_group = Some(group.clone());
        }
        config.validate()?;
        Ok(config)
    }

    /// The configuration of a collector in a program other than the daemon.
    pub fn for_collector(args: &CollectArgs) -> anyhow::Result<Self> {
        let config = Self::sources(args)?;
        config.validate()?;
        Ok(config)
    }

    fn sources(args: &CollectArgs) -> anyhow::Result<Self> {
        let mut config = Self::default();
        let (path, required) = match &args.config {
            Some(path) => (path.as_path(), true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => config
                .apply_file(&text)
                .with_context(|| path.display().to_string())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        }
        config.apply_environment(std::env::vars_os())?;
        config.apply_flags(args);
        Ok(config)
    }

    fn apply_flags(&mut self, args: &CollectArgs) {
        if let Some(socket) = &args.socket {
            self.daemon.socket.clone_from(socket);
        }
        if !args.interface.is_empty() {
            self.packets.interfaces.clone_from(&args.interface);
        }
        if let Some(mode) = args.xdp_mode {
            self.packets.xdp_mode = mode;
        }
        self.netns.clone_from(&args.netns);
        self.bpf_stats = args.bpf_stats;
        self.noop_programs = args.noop_programs;
        self.connections = args.connections;
        self.rows = args.rows;
    }
}

/// Reads a duration such as `500ms` or `1s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is not a duration such as \"500ms\" or \"1s\": {error}"))
}

/// Reads an address to listen on: `IP:PORT`, or `:PORT` for all addresses.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let full = match text.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => text.to_owned(),
    };
    full.parse().map_err(|_| {
        format!("{text:?} is not an address such as 127.0.0.1:9977, [::1]:9977 or :9977")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let mut config = Config::default();
        config
            .apply_file(
                "[daemon]\nsocket = \"/a\"\nsnapshot_interval = \"2s\"\n\
                 [metrics]\nmax_series = 500\n[packets]\nxdp_mode = \"native\"\nflows = 7",
            )
            .unwrap();
        config
            .apply_environment([
                ("EDGEPROBE_DAEMON_SOCKET".into(), "/b".into()),
                ("EDGEPROBE_METRICS_MAX_SERIES".into(), "600".into()),
            ])
            .unwrap();
        config.apply_flags(&CollectArgs {
            socket: Some("/c".into()),
            interface: vec!["eth1".into()],
            ..CollectArgs::default()
        });
        assert_eq!(config.daemon.socket, PathBuf::from("/c"));
        assert_eq!(config.metrics.max_series, 600);
        assert_eq!(config.daemon.snapshot_interval, Duration::from_secs(2));
        assert_eq!(config.packets.xdp_mode, XdpMode::Native);
        assert_eq!(config.packets.flows, 7);
        assert_eq!(config.packets.interfaces, ["eth1"]);
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.toml");
        let error = Config::for_collector(&CollectArgs {
            config: Some(path.clone()),
            ..CollectArgs::default()
        })
        .unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            format!(
                "cannot read {}: No such file or directory (os error 2)",
                path.display()
            )
        );
    }

    #[test]
    fn listen_addresses() {
        assert_eq!(parse_listen(":80"), Ok("[::]:80".parse().unwrap()));
        assert_eq!(parse_listen("[::1]:80"), Ok("[::1]:80".parse().unwrap()));
        for bad in ["", "80", "localhost:80", "1.2.3.4", "1.2.3.4:70000"] {
            assert!(parse_listen(bad).is_err(), "{bad:?}");
        }
    }
}
