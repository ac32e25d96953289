//! Environment variables: `EDGEPROBE_<SECTION>_<KEY>` for each scalar key.

use std::ffi::OsString;

use anyhow::{Context, anyhow, bail};

use super::{Config, XdpMode, parse_duration, parse_listen};

/// Variables that start like this must be keys; others are none of ours.
const SECTIONS: [&str; 3] = [
    "EDGEPROBE_DAEMON_",
    "EDGEPROBE_METRICS_",
    "EDGEPROBE_PACKETS_",
];

impl Config {
    /// Lays environment variables over the configuration.
    pub(super) fn apply_environment(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> anyhow::Result<()> {
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            if !SECTIONS.iter().any(|section| name.starts_with(section)) {
                continue;
            }
            let value = value
                .to_str()
                .ok_or_else(|| anyhow!("environment variable {name} is not UTF-8"))?;
            self.set_variable(name, value)
                .with_context(|| format!("environment variable {name}"))?;
        }
        Ok(())
    }

    fn set_variable(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        match name {
            "EDGEPROBE_DAEMON_SOCKET" => self.daemon.socket = value.into(),
            "EDGEPROBE_DAEMON_SOCKET_GROUP" => self.daemon.socket_group = Some(value.into()),
            "EDGEPROBE_DAEMON_SNAPSHOT_INTERVAL" => {
                self.daemon.snapshot_interval = parse_duration(value).map_err(|e| anyhow!(e))?;
            }
            "EDGEPROBE_METRICS_LISTEN" => {
                self.metrics.listen = Some(parse_listen(value).map_err(|e| anyhow!(e))?);
            }
            "EDGEPROBE_METRICS_MAX_SERIES" => self.metrics.max_series = number(value)?,
            "EDGEPROBE_METRICS_ACCEPT_QUEUE_EXACT" => {
                self.metrics.accept_queue_exact = flag(value)?;
            }
            "EDGEPROBE_METRICS_OWNER_LABEL" => self.metrics.owner_label = flag(value)?,
            "EDGEPROBE_METRICS_NETNS_LABEL" => self.metrics.netns_label = flag(value)?,
            "EDGEPROBE_PACKETS_XDP_MODE" => {
                self.packets.xdp_mode = XdpMode::ALL
                    .into_iter()
                    .find(|mode| mode.name() == value)
                    .ok_or_else(|| anyhow!("{value:?} is not one of native, generic, auto"))?;
            }
            "EDGEPROBE_PACKETS_FLOWS" => self.packets.flows = number(value)?,
            "EDGEPROBE_PACKETS_FLOW_IDLE" => {
                self.packets.flow_idle = parse_duration(value).map_err(|e| anyhow!(e))?;
            }
            _ => bail!("there is no such setting"),
        }
        Ok(())
    }
}

fn flag(value: &str) -> anyhow::Result<bool> {
    value
        .parse()
        .with_context(|| format!("{value:?} is neither true nor false"))
}

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(value: &str) -> anyhow::Result<T> {
    value
        .parse()
        .with_context(|| format!("{value:?} is not a number that fits"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn apply(name: &str, value: &str) -> Result<Config, String> {
        let mut config = Config::default();
        config
            .apply_environment([(name.into(), value.into())])
            .map(|()| config)
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn each_variable_sets_its_key() {
        let set = |name, value| apply(name, value).unwrap();
        assert_eq!(
            set("EDGEPROBE_DAEMON_SOCKET", "/a").daemon.socket,
            std::path::PathBuf::from("/a")
        );
        assert_eq!(
            set("EDGEPROBE_DAEMON_SOCKET_GROUP", "adm")
                .daemon
                .socket_group
                .as_deref(),
            Some("adm")
        );
        assert_eq!(
            set("EDGEPROBE_DAEMON_SNAPSHOT_INTERVAL", "250ms")
                .daemon
                .snapshot_interval,
            Duration::from_millis(250)
        );
        assert_eq!(
            set("EDGEPROBE_METRICS_LISTEN", ":1").metrics.listen,
            Some("[::]:1".parse().unwrap())
        );
        assert_eq!(
            set("EDGEPROBE_METRICS_MAX_SERIES", "5").metrics.max_series,
            5
        );
        let exact = set("EDGEPROBE_METRICS_ACCEPT_QUEUE_EXACT", "true");
        assert!(exact.metrics.accept_queue_exact);
        assert!(
            set("EDGEPROBE_METRICS_OWNER_LABEL", "true")
                .metrics
                .owner_label
        );
        assert!(
            set("EDGEPROBE_METRICS_NETNS_LABEL", "true")
                .metrics
                .netns_label
        );
        assert_eq!(
            set("EDGEPROBE_PACKETS_XDP_MODE", "native").packets.xdp_mode,
            XdpMode::Native
        );
        assert_eq!(set("EDGEPROBE_PACKETS_FLOWS", "9").packets.flows, 9);
    }

    #[test]
    fn a_misspelt_variable_is_named() {
        assert_eq!(
            apply("EDGEPROBE_METRICS_MAXSERIES", "5").unwrap_err(),
            "environment variable EDGEPROBE_METRICS_MAXSERIES: there is no such setting"
        );
        assert!(apply("EDGEPROBE_REVISION", "abc").is_ok());
    }

    #[test]
    fn a_bad_value_is_shown() {
        let error = apply("EDGEPROBE_METRICS_MAX_SERIES", "many").unwrap_err();
        assert!(error.contains("\"many\" is not a number"), "{error}");
        let error = apply("EDGEPROBE_PACKETS_XDP_MODE", "fast").unwrap_err();
        assert!(error.contains("native, generic, auto"), "{error}");
        let error = apply("EDGEPROBE_METRICS_ACCEPT_QUEUE_EXACT", "yes").unwrap_err();
        assert!(error.contains("neither true nor false"), "{error}");
    }
}
