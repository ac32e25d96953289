//! Environment variables: `EDGEPROBE_<SECTION>_<KEY>` for each key that is no list.

use std::ffi::OsString;

use anyhow::{Context, anyhow};

use super::{Config, keys::KEYS, setting::NO_SUCH};

/// What each variable of the configuration begins with.
const PREFIX: &str = "EDGEPROBE_";

impl Config {
    /// Lays environment variables over the configuration. Those that begin with
    /// `EDGEPROBE_` must be keys, but for [those of others](is_of_others).
    pub(super) fn apply_environment(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> anyhow::Result<()> {
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            if !name.starts_with(PREFIX) || is_of_others(name) {
                continue;
            }
            let value = value
                .to_str()
                .ok_or_else(|| anyhow!("environment variable {name} is not UTF-8"))?;
            KEYS.iter()
                .find(|key| key.variable_name() == name)
                .map_or_else(|| Err(NO_SUCH.to_owned()), |key| (key.set)(self, value))
                .map_err(|error| anyhow!(error))
                .with_context(|| format!("environment variable {name}"))?;
        }
        Ok(())
    }
}

/// Whether a variable is none of the configuration: of the build and the tests of
/// this project, or what Kubernetes and Docker set for a service named `edgeprobe`.
fn is_of_others(name: &str) -> bool {
    const NAMES: [&str; 3] = ["EDGEPROBE_BIN", "EDGEPROBE_REVISION", "EDGEPROBE_PORT"];
    const PREFIXES: [&str; 3] = ["EDGEPROBE_TEST_", "EDGEPROBE_SERVICE_", "EDGEPROBE_PORT_"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::XdpMode;

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
        assert_eq!(
            set("EDGEPROBE_PACKETS_FLOW_IDLE", "2m").packets.flow_idle,
            Duration::from_mins(2)
        );
    }

    #[test]
    fn a_misspelt_variable_is_named() {
        assert_eq!(
            apply("EDGEPROBE_METRICS_MAXSERIES", "5").unwrap_err(),
            "environment variable EDGEPROBE_METRICS_MAXSERIES: there is no such setting"
        );
        assert_eq!(
            apply("EDGEPROBE_PACKETS_INTERFACES", "eth0").unwrap_err(),
            "environment variable EDGEPROBE_PACKETS_INTERFACES: there is no such setting"
        );
        for name in ["EDGEPROBE_LISTEN", "EDGEPROBE_METRIC_LISTEN", "EDGEPROBE_"] {
            assert_eq!(
                apply(name, ":1").unwrap_err(),
                format!("environment variable {name}: there is no such setting")
            );
        }
    }

    #[test]
    fn what_others_set_is_left_alone() {
        for name in [
            "EDGEPROBE_REVISION",
            "EDGEPROBE_BIN",
            "EDGEPROBE_TEST_ALONE",
            "EDGEPROBE_SERVICE_HOST",
            "EDGEPROBE_SERVICE_PORT_METRICS",
            "EDGEPROBE_PORT",
            "EDGEPROBE_PORT_9977_TCP_ADDR",
            "EDGEPROBER",
        ] {
            assert_eq!(apply(name, "abc"), Ok(Config::default()), "{name}");
        }
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
