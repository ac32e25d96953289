//! The BPF objects of the kernel, as `bpftool` lists them.

use std::process::Command;

use crate::daemon::KernelObject;

/// Numbers of all objects of a kind (`prog`, `link`, `map`).
///
/// # Panics
///
/// Where `bpftool` fails.
#[track_caller]
pub fn listed(kind: &str) -> Vec<u32> {
    let output = Command::new("bpftool")
        .args(["--json", kind, "show"])
        .output();
    let output = output.expect("bpftool is installed");
    assert!(output.status.success(), "bpftool {kind} show");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON of bpftool");
    let ids = list.as_array().into_iter().flatten();
    ids.filter_map(|one| one["id"].as_u64())
        .map(|id| id as u32)
        .collect()
}

/// Whether the kernel still has an object.
///
/// # Panics
///
/// Where `bpftool` fails.
#[track_caller]
pub fn is_listed(object: KernelObject) -> bool {
    let (kind, id) = object;
    listed(kind.trim_end_matches("_id")).contains(&id)
}
