//! Configuration: defaults, then the file, then the environment. Flags are laid
//! over it by the commands that have them.

mod env;
mod file;
mod keys;
mod service;
mod setting;
mod validate;

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

pub use keys::{Daemon, KEYS, Key, Metrics, Packets};
pub use service::{CgroupPattern, Peer, Service, ServiceSide};
pub use setting::{parse_duration, parse_listen};
pub use validate::ConfigErrors;

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
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The daemon itself.
    pub daemon: Daemon,
    /// The metrics it serves.
    pub metrics: Metrics,
    /// Services, first match wins.
    #[serde(rename = "service")]
    pub services: Vec<Service>,
    /// Groups of peers, longest prefix wins.
    #[serde(rename = "peer")]
    pub peers: Vec<Peer>,
    /// Packets seen at an interface.
    pub packets: Packets,
    /// Watch only these network namespaces, by name or path; empty: all.
    #[serde(skip)]
    pub netns: Vec<String>,
    /// Measure the run time of the kernel programs.
    #[serde(skip)]
    pub bpf_stats: bool,
    /// Attach empty programs, to measure what the hooks themselves cost.
    #[serde(skip)]
    pub noop_programs: bool,
    /// Kernel programs that are not attached.
    #[serde(skip)]
    pub left_out: Vec<String>,
    /// Connections that are remembered.
    #[serde(skip)]
    pub connections: u32,
    /// Combinations of side, service and peer that have counters of their own, the
    /// one for all others included.
    #[serde(skip)]
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
            left_out: Vec::new(),
            connections: DEFAULT_CONNECTIONS,
            rows: DEFAULT_ROWS,
        }
    }
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, or not at all.
    Native,
    /// In the network stack, where every driver can.
    Generic,
    /// In the driver where it can, else in the network stack.
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
        let (path, required) = match file {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        let mut config = match std::fs::read_to_string(path) {
            Ok(text) => Self::from_toml(&text).with_context(|| path.display().to_string())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {
                Self::default()
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        config.apply_environment(std::env::vars_os())?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::*;

    #[test]
    fn the_environment_wins_over_the_file() {
        let mut config = Config::from_toml(
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
}
