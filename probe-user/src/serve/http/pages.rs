//! The pages that are not metrics.

use std::sync::Arc;

use serde::Serialize;

use crate::export::families::REVISION;
use crate::model::{LastDrop, Lost, MapUse, NetworkNamespaces, Program, Shield, Snapshot};

/// What `/status` shows.
#[derive(Serialize)]
struct StatusPage<'a> {
    version: &'a str,
    revision: &'a str,
    /// Whether there is a fresh snapshot; if not, `reason` says why.
    up: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(flatten)]
    daemon: Option<DaemonStatus<'a>>,
}

/// What the daemon says about itself.
#[derive(Serialize)]
struct DaemonStatus<'a> {
    kernel: &'a str,
    daemon_version: &'a str,
    start_seconds: f64,
    timestamp_seconds: f64,
    programs: &'a [Program],
    devices: Vec<DeviceStatus<'a>>,
    network_namespaces: &'a NetworkNamespaces,
    shield: &'a Shield,
    capabilities: &'a [String],
    log_lines_lost: u64,
    maps: &'a [MapUse],
    /// Only what is not zero.
    lost: Vec<&'a Lost>,
    last_drops: &'a [LastDrop],
}

#[derive(Serialize)]
struct DeviceStatus<'a> {
    device: &'a str,
    xdp_mode: &'a str,
}

/// `/status`.
pub fn status(latest: Result<Arc<Snapshot>, String>) -> serde_json::Result<Vec<u8>> {
    let (snapshot, reason) = match latest {
        Ok(snapshot) => (Some(snapshot), None),
        Err(reason) => (None, Some(reason)),
    };
    let status = StatusPage {
        version: env!("CARGO_PKG_VERSION"),
        revision: REVISION,
        up: snapshot.is_some(),
        reason,
        daemon: snapshot.as_deref().map(|snapshot| DaemonStatus {
            kernel: &snapshot.kernel,
            daemon_version: &snapshot.version,
            start_seconds: snapshot.start_seconds,
            timestamp_seconds: snapshot.timestamp_seconds,
            programs: &snapshot.programs,
            devices: snapshot
                .devices
                .iter()
                .map(|device| DeviceStatus {
                    device: &device.device,
                    xdp_mode: &device.xdp_mode,
                })
                .collect(),
            network_namespaces: &snapshot.network_namespaces,
            shield: &snapshot.shield,
            capabilities: &snapshot.process.capabilities,
            log_lines_lost: snapshot.process.log_lines_lost,
            maps: &snapshot.maps,
            lost: snapshot.lost.iter().filter(|lost| lost.count > 0).collect(),
            last_drops: &snapshot.last_drops,
        }),
    };
    let mut body = serde_json::to_vec_pretty(&status)?;
    body.push(b'\n');
    Ok(body)
}

/// `/`.
pub fn index() -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>edgeprobe</title></head>\n\
         <body>\n<h1>edgeprobe {}</h1>\n<p>revision {REVISION}</p>\n<ul>\n\
         <li><a href=\"/metrics\">/metrics</a>: for Prometheus</li>\n\
         <li><a href=\"/status\">/status</a>: the kernel programs, attached or not, and why</li>\n\
         <li><a href=\"/healthz\">/healthz</a>: whether this process does its work</li>\n\
         <li><a href=\"/readyz\">/readyz</a>: whether there is a fresh snapshot</li>\n\
         </ul>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION"),
    )
}
