//! Memory of a process's BPF maps, as its open files and `bpftool` tell it.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// A map that a process holds open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMap {
    /// Kernel memory in bytes (`memlock`).
    pub bytes: u64,
    /// Whether an entry takes memory only once it is there.
    pub grows: bool,
}

/// The maps that a process holds open, by their number.
///
/// # Panics
///
/// Where the process is gone, or the kernel does not tell.
pub fn of_process(pid: u32) -> BTreeMap<u32, OpenMap> {
    const NO_PREALLOC: u64 = 1;
    let folder = format!("/proc/{pid}/fdinfo");
    let mut maps = BTreeMap::new();
    for file in fs::read_dir(&folder).expect("its open files") {
        // One that is closed meanwhile.
        let Ok(text) = fs::read_to_string(file.expect("an open file").path()) else {
            continue;
        };
        let field = |name: &str| {
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            let value = value.trim();
            let number = match value.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16),
                None => value.parse(),
            };
            Some(number.unwrap_or_else(|error| panic!("{name}: {value}: {error}")))
        };
        // Programs and links have no type of a map, and links to a program have its.
        if field("map_type").is_none() || field("prog_type").is_some() {
            continue;
        }
        let (Some(id), Some(bytes)) = (field("map_id"), field("memlock")) else {
            panic!("a map without a number or memory: {text}");
        };
        let grows = field("map_flags").expect("its flags") & NO_PREALLOC != 0;
        let id = u32::try_from(id).expect("a number of a map");
        maps.insert(id, OpenMap { bytes, grows });
    }
    assert!(!maps.is_empty(), "{folder} has no map");
    maps
}

/// Bytes of those maps by name, of which the kernel keeps 15 characters, as
/// `bpftool` tells.
///
/// # Panics
///
/// Where it fails, or does not know one of them.
pub fn by_bpftool(bpftool: &Path, maps: &BTreeMap<u32, OpenMap>) -> BTreeMap<String, u64> {
    let output = Command::new(bpftool)
        .args(["-j", "map", "show"])
        .output()
        .expect("bpftool runs");
    assert!(output.status.success(), "{output:?}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut by_name = BTreeMap::new();
    let mut found = 0;
    for map in told.as_array().expect("a list of maps") {
        let number = |field: &str| map[field].as_u64().expect("a number");
        if maps.contains_key(&u32::try_from(number("id")).expect("a number of a map")) {
            found += 1;
            let name = map["name"].as_str().expect("a name").to_owned();
            *by_name.entry(name).or_default() += number("bytes_memlock");
        }
    }
    assert_eq!(found, maps.len(), "bpftool knows all of them");
    by_name
}
