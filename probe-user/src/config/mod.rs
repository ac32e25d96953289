//! Configuration: defaults, then the file, then the environment. Flags are laid
//! over it by the commands that have them.

mod env;
mod file;
mod service;
mod validate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

pub use service::{CgroupPattern, Peer, Service, ServiceSide};

/// File that is read where none is named.
pub const DEFAULT_FILE: &str = "/etc/edgeprobe/config.toml";
/// Socket of the daemon where none is named.
pub const DEFAULT_SOCKET: &str = "/run/edgeprobe/edgeprobe.sock";
/// Connections that are remembered where nothing else is said.
pub const DEFAULT_CONNECTIONS: u32 = 131_072;
/// Combinations of side, service and peer that have counters of their own where
/// nothing else is said.
pub const DEFAULT_ROWS: u32 = 512;
/// Group of the socket where none is named and this one exists.
pub const DEFAULT_GROUP: &str = "edgeprobe";

/// What to do, merged from all sources and checked.
#[derive(Clone, Debug, PartialEq)]
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
    /// Connections that are remembered.
    pub connections: u32,
    /// Combinations of side, service and peer that have counters of their own, the
    /// one for all others included.
    pub rows: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            daemon: Daemon::default(),
            metrics: Metrics::default(),
            services: Vec::new(),
            peers: Vec::new(),
            packets: Packets::default(),
            netns: Vec::new(),
            bpf_stats: false,
            noop_programs: false,
            connections: DEFAULT_CONNECTIONS,
            rows: DEFAULT_ROWS,
        }
    }
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
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

impl XdpMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Native, Self::Generic, Self::Auto];

    /// Its name in the file, in the environment and as the value of a flag.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Auto => "auto",
        }
    }
}

impl Config {
    /// The defaults with the file and the environment laid over them: `file`, or
    /// [`DEFAULT_FILE`] where that exists. Not checked yet, since flags may follow:
    /// see [`Config::validate`].
    ///
    /// # Errors
    ///
    /// The file cannot be read, or it or the environment is not understood.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let mut config = Self::default();
        let (path, required) = match file {
            Some(path) => (path, true),
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
        Ok(config)
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
    fn the_environment_wins_over_the_file() {
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
        assert_eq!(config.daemon.socket, PathBuf::from("/b"));
        assert_eq!(config.metrics.max_series, 600);
        assert_eq!(config.daemon.snapshot_interval, Duration::from_secs(2));
        assert_eq!(config.packets.xdp_mode, XdpMode::Native);
        assert_eq!(config.packets.flows, 7);
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.toml");
        let error = Config::load(Some(&path)).unwrap_err();
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
