//! The TOML file.

use super::Config;

/// What is wrong with a file: one line, with its number where that is known.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub(super) struct FileError {
    line: usize,
    message: String,
}

impl Config {
    /// The configuration that a file describes, over the defaults.
    pub(super) fn from_toml(text: &str) -> Result<Self, FileError> {
        toml::from_str(text).map_err(|error| FileError {
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', " "),
        })
    }
}

/// Number of the line, from 1, that holds the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|&byte| byte == b'\n')
        .count()
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::*;
    use crate::config::{ServiceSide, XdpMode};

    fn error(text: &str) -> String {
        Config::from_toml(text).unwrap_err().to_string()
    }

    #[test]
    fn every_key() {
        let config = Config::from_toml(
            r#"
[daemon]
socket = "/run/x.sock"
socket_group = "adm"
snapshot_interval = "500ms"

[metrics]
listen = "127.0.0.1:9977"
max_series = 20000
accept_queue_exact = true
owner_label = true
netns_label = true

[[service]]
name = "nginx"
side = "server"
ports = [80, 443]
netns = "web1"
addresses = ["10.0.0.0/8"]
cgroup = "/system.slice/nginx.service"

[[service]]
name = "db"
ports = [5432]
unit = "postgresql.service"

[[peer]]
name = "pop-ams"
cidrs = ["192.0.2.0/24", "2001:db8:1::/48"]

[packets]
interfaces = ["eth1"]
xdp_mode = "generic"
flows = 1000
flow_idle = "2m"
"#,
        )
        .unwrap();
        assert_eq!(config.daemon.socket, PathBuf::from("/run/x.sock"));
        assert_eq!(config.daemon.socket_group.as_deref(), Some("adm"));
        assert_eq!(config.daemon.snapshot_interval, Duration::from_millis(500));
        assert_eq!(
            config.metrics.listen,
            Some("127.0.0.1:9977".parse().unwrap())
        );
        assert_eq!(config.metrics.max_series, 20_000);
        assert!(config.metrics.accept_queue_exact);
        assert!(config.metrics.owner_label && config.metrics.netns_label);
        assert_eq!(config.services[0].side, ServiceSide::Server);
        assert_eq!(
            config.services[0].cgroup.as_deref(),
            Some("/system.slice/nginx.service")
        );
        assert_eq!(
            config.services[1].unit.as_deref(),
            Some("postgresql.service")
        );
        assert_eq!(config.services[0].ports, [80, 443]);
        assert_eq!(config.services[0].netns.as_deref(), Some("web1"));
        assert_eq!(
            config.services[0].addresses,
            ["10.0.0.0/8".parse().unwrap()]
        );
        assert_eq!(config.services[1].side, ServiceSide::Any);
        assert_eq!(config.peers[0].cidrs.len(), 2);
        assert_eq!(config.packets.interfaces, ["eth1"]);
        assert_eq!(config.packets.xdp_mode, XdpMode::Generic);
        assert_eq!(config.packets.flows, 1000);
        assert_eq!(config.packets.flow_idle, Duration::from_mins(2));
    }

    #[test]
    fn an_empty_file_changes_nothing() {
        assert_eq!(Config::from_toml("# nothing\n"), Ok(Config::default()));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let text = "[daemon]\nsocket = \"/a\"\nsocket_grop = \"b\"\n";
        assert!(
            error(text).starts_with("line 3: unknown field `socket_grop`, expected one of"),
            "{}",
            error(text)
        );
        let text = "\n[metric]\n";
        assert!(
            error(text).starts_with("line 2: unknown field `metric`"),
            "{}",
            error(text)
        );
        let text = "[[service]]\nname = \"a\"\n\n[[service]]\nname = \"b\"\nprots = [1]\n";
        assert!(
            error(text).starts_with("line 6: unknown field `prots`"),
            "{}",
            error(text)
        );
    }

    #[test]
    fn bad_values_are_one_line_with_a_number() {
        for (text, line) in [
            ("[daemon]\nsnapshot_interval = 1", 2),
            ("[daemon]\nsnapshot_interval = \"soon\"", 2),
            ("[metrics]\n\nlisten = \"here\"", 3),
            ("[metrics]\nmax_series = -1", 2),
            ("[[service]]\nname = \"a\"\nside = \"left\"", 3),
            ("[[service]]\nname = \"a\"\nports = [70000]", 3),
            ("[[peer]]\nname = \"a\"\ncidrs = [\"1.2.3.4/40\"]", 3),
            ("[[peer]]\ncidrs = []", 1),
            ("[packets]\nxdp_mode = \"fast\"", 2),
            ("[packets]\nflows = 1\nflows = 2", 3),
            ("[daemon\n", 1),
        ] {
            let error = error(text);
            assert!(
                error.starts_with(&format!("line {line}: ")),
                "{text:?}: {error}"
            );
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
