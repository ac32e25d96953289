//! Flags, laid over the configuration.

use crate::cli::{CollectArgs, DaemonArgs};
use crate::config::Config;

/// The configuration of the daemon, checked.
pub fn for_daemon(args: &DaemonArgs) -> anyhow::Result<Config> {
    let mut config = Config::load(args.collect.config.as_deref())?;
    lay_over(&mut config, &args.collect);
    if let Some(listen) = args.listen {
        config.metrics.listen = Some(listen);
    }
    if let Some(group) = &args.socket_group {
        config.daemon.socket_group = Some(group.clone());
    }
    config.validate()?;
    Ok(config)
}

/// The configuration of a collector in a program other than the daemon, checked.
pub fn for_collector(args: &CollectArgs) -> anyhow::Result<Config> {
    let mut config = Config::load(args.config.as_deref())?;
    lay_over(&mut config, args);
    config.validate()?;
    Ok(config)
}

fn lay_over(config: &mut Config, args: &CollectArgs) {
    if let Some(socket) = &args.socket {
        config.daemon.socket.clone_from(socket);
    }
    if !args.interface.is_empty() {
        config.packets.interfaces.clone_from(&args.interface);
    }
    if let Some(mode) = args.xdp_mode {
        config.packets.xdp_mode = mode;
    }
    if let Some(connections) = args.connections {
        config.connections = connections;
    }
    if let Some(rows) = args.rows {
        config.rows = rows;
    }
    config.netns.clone_from(&args.netns);
    config.bpf_stats = args.bpf_stats;
    config.noop_programs = args.noop_programs;
    config.left_out.clone_from(&args.leave_out);
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::Parser as _;

    use super::*;
    use crate::{
        cli::{Cli, Command},
        config::{KEYS, XdpMode},
    };

    #[test]
    fn each_flag_of_a_key_sets_it_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, "").unwrap();
        for key in KEYS {
            let Some(flag) = key.flag else { continue };
            let value = match key.type_name {
                "path" => "/run/x.sock",
                "name" => "adm",
                "address" => "127.0.0.1:9",
                "list of names" => "eth7",
                "word" => "generic",
                other => panic!("{}: give a value for a {other}", key.path()),
            };
            let file = file.to_str().unwrap();
            let cli = Cli::parse_from(["edgeprobe", "daemon", "--config", file, flag, value]);
            let Command::Daemon(args) = cli.command else {
                panic!("not the daemon");
            };
            let config = for_daemon(&args).unwrap();
            for one in KEYS {
                let default = one.value(&Config::default());
                let expected = if one.path() == key.path() {
                    value
                } else {
                    &default
                };
                assert_eq!(one.value(&config), expected, "{flag}: {}", one.path());
            }
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        let text = "[daemon]\nsocket = \"/a\"\n\
                    [packets]\nxdp_mode = \"native\"\ninterfaces = [\"eth0\"]";
        std::fs::write(&file, text).unwrap();
        let config = for_collector(&CollectArgs {
            config: Some(file),
            socket: Some("/c".into()),
            interface: vec!["eth1".into()],
            ..CollectArgs::default()
        })
        .unwrap();
        assert_eq!(config.daemon.socket, PathBuf::from("/c"));
        assert_eq!(config.packets.interfaces, ["eth1"]);
        assert_eq!(config.packets.xdp_mode, XdpMode::Native);
    }
}
