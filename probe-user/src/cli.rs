//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, Parser, Subcommand, ValueEnum};

use probe_common::hooks::PROGRAMS;

use crate::config::{DEFAULT_SOCKET, XdpMode, parse_duration, parse_listen};
use crate::logging::LogLevel;
use crate::sampler::{LISTED_CONNECTIONS, MAX_LISTED_CONNECTIONS};

/// See what the network of this host does, in numbers that the kernel confirms.
#[derive(Debug, Parser)]
#[command(name = "edgeprobe", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load the kernel programs, count, and serve snapshots on a Unix socket.
    Daemon(DaemonArgs),
    /// Serve the daemon's metrics over HTTP, without any privilege.
    Exporter(ExporterArgs),
    /// Show services, flows, drops and the tool's own cost.
    Top(TopArgs),
    /// Say what will and will not work on this host, why, and what to do.
    Doctor(DoctorArgs),
}

/// What to collect, and from where: shared by `daemon` and `top`.
#[derive(Args, Clone, Debug, Default)]
pub struct CollectArgs {
    /// Configuration file [default: /etc/edgeprobe/config.toml, where it exists].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The daemon's Unix socket [default: /run/edgeprobe/edgeprobe.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Watch only this network namespace, by name or path (repeatable) [default: all].
    #[arg(long, value_name = "NAME")]
    pub netns: Vec<String>,

    /// Attach XDP to this interface (repeatable) [default: none].
    #[arg(long, value_name = "NAME")]
    pub interface: Vec<String>,

    /// How to attach XDP [default: auto].
    #[arg(long, value_name = "MODE")]
    pub xdp_mode: Option<XdpMode>,

    /// Measure the run time of each kernel program; costs some 70 ns an event.
    #[arg(long)]
    pub bpf_stats: bool,

    /// Attach empty programs, to measure what the hooks themselves cost.
    #[arg(long, hide = true)]
    pub noop_programs: bool,

    /// Leave out this kernel program (repeatable), for a test of what its events hide.
    #[arg(long, value_name = "PROGRAM", hide = true, value_parser = known_program)]
    pub leave_out: Vec<String>,

    /// Connections that are remembered, for a test of more than that.
    #[arg(long, value_name = "NUMBER", hide = true)]
    pub connections: Option<u32>,

    /// Combinations of side, service and peer that are tracked separately, likewise.
    #[arg(long, value_name = "NUMBER", hide = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub rows: Option<u32>,

    /// Least severity of the messages on stderr.
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    pub log_level: LogLevel,
}

/// The name of a kernel program.
fn known_program(name: &str) -> Result<String, String> {
    match PROGRAMS.iter().any(|program| program.name == name) {
        true => Ok(name.to_owned()),
        false => Err("no program has this name".to_owned()),
    }
}

/// Flags of `edgeprobe daemon`.
#[derive(Args, Clone, Debug, Default)]
pub struct DaemonArgs {
    /// What to collect.
    #[command(flatten)]
    pub collect: CollectArgs,

    /// Also serve HTTP here, IP:PORT or :PORT [default: no HTTP].
    #[arg(long, value_name = "ADDR", value_parser = parse_listen)]
    pub listen: Option<SocketAddr>,

    /// Group that may use the socket [default: edgeprobe where that group exists, else root only].
    #[arg(long, value_name = "NAME")]
    pub socket_group: Option<String>,

    /// Check the configuration and exit.
    #[arg(long)]
    pub check_config: bool,
}

/// Flags of `edgeprobe exporter`.
#[derive(Args, Clone, Debug)]
pub struct ExporterArgs {
    /// The daemon's Unix socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// Serve HTTP here, IP:PORT or :PORT.
    #[arg(long, alias = "web.listen-address", value_name = "ADDR", value_parser = parse_listen, default_value = "127.0.0.1:9977")]
    pub listen: SocketAddr,

    /// Least severity of the messages on stderr.
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    pub log_level: LogLevel,
}

/// Flags of `edgeprobe top`.
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// What to collect where no daemon runs.
    #[command(flatten)]
    pub collect: CollectArgs,

    /// Print one table and exit.
    #[arg(long)]
    pub once: bool,

    /// Load programs of its own even where a daemon runs.
    #[arg(long, hide = true, conflicts_with = "socket")]
    pub alone: bool,

    /// Print JSON (with --once).
    #[arg(long, requires = "once")]
    pub json: bool,

    /// Time between two updates, such as 500ms or 2s.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    pub interval: Duration,

    /// Open connections that the live view and --json list, those with most bytes first.
    #[arg(long, value_name = "N", default_value_t = LISTED_CONNECTIONS as u32, value_parser = clap::value_parser!(u32).range(1..=MAX_LISTED_CONNECTIONS as i64))]
    pub limit: u32,
}

/// Flags of `edgeprobe doctor`.
#[derive(Args, Clone, Debug, Default)]
pub struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,

    /// Look at this interface only (repeatable) [default: all].
    #[arg(long, value_name = "NAME")]
    pub interface: Vec<String>,

    /// Configuration file [default: /etc/edgeprobe/config.toml, where it exists].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The daemon's Unix socket [default: that of the configuration].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl ValueEnum for XdpMode {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Native => "In the driver, or not at all",
            Self::Generic => "In the network stack, where every driver can",
            Self::Auto => "In the driver where it can, else in the network stack",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::{Config, KEYS};

    #[test]
    fn the_help_of_a_flag_has_the_default_of_its_key() {
        let cli = Cli::command();
        let daemon = cli.find_subcommand("daemon").unwrap();
        for key in KEYS {
            let Some(flag) = key.flag else { continue };
            let name = flag.strip_prefix("--");
            let flag = daemon.get_arguments().find(|one| one.get_long() == name);
            let help = flag.unwrap().get_help().unwrap().to_string();
            // One that repeats begins with none.
            let default = key.variable().map(|_| key.default_text());
            let default = default.unwrap_or_else(|| "none".to_owned());
            assert!(
                help.ends_with(&format!("[default: {default}]")),
                "{}: {help}",
                key.path()
            );
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exporter_takes_the_address_under_the_name_that_other_exporters_use() {
        let cli = Cli::try_parse_from(["edgeprobe", "exporter", "--web.listen-address", ":9100"]);
        let Command::Exporter(args) = cli.unwrap().command else {
            panic!("not the exporter");
        };
        assert_eq!(args.listen, "[::]:9100".parse().unwrap());
        assert_eq!(args.socket, PathBuf::from(DEFAULT_SOCKET));
    }

    #[test]
    fn flags_of_the_daemon_repeat_where_they_should() {
        let cli = Cli::try_parse_from([
            "edgeprobe",
            "daemon",
            "--netns=web1",
            "--netns=/run/netns/b",
            "--interface=eth1",
            "--xdp-mode=generic",
            "--bpf-stats",
            "--log-level=debug",
        ]);
        let Command::Daemon(args) = cli.unwrap().command else {
            panic!("not the daemon");
        };
        assert_eq!(args.collect.netns, ["web1", "/run/netns/b"]);
        assert_eq!(args.collect.interface, ["eth1"]);
        assert_eq!(args.collect.xdp_mode, Some(XdpMode::Generic));
        assert!(args.collect.bpf_stats);
        assert_eq!(args.collect.log_level, LogLevel::Debug);
    }

    #[test]
    fn the_sample_in_the_readme_leaves_the_exporter_its_address() {
        const README: &str = include_str!("../../README.md");
        let sample = README.split("```toml\n").nth(1).unwrap();
        let (sample, _) = sample.split_once("```").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, sample).unwrap();
        let config = Config::load(Some(&file)).unwrap();
        let exporter = Cli::try_parse_from(["edgeprobe", "exporter"]);
        let Command::Exporter(exporter) = exporter.unwrap().command else {
            panic!("not the exporter");
        };
        assert!(config.metrics.listen.is_some());
        assert_ne!(config.metrics.listen, Some(exporter.listen));
    }

    #[test]
    fn json_without_once_is_refused() {
        assert!(Cli::try_parse_from(["edgeprobe", "top", "--json"]).is_err());
        assert!(Cli::try_parse_from(["edgeprobe", "top", "--json", "--once"]).is_ok());
    }
}
