//! The memory of each map is what the kernel accounts.

use std::{collections::BTreeMap, path::Path};

use probe_tests::{daemon::Daemon, http, map_memory, netns::Netns, poll, skip};

/// Of so many characters the kernel keeps a map's name.
const NAME: usize = 15;

/// Bytes by the label of `edgeprobe_map_memory_bytes` in a page of metrics.
fn metrics(page: &str) -> BTreeMap<String, u64> {
    let lines = page.lines();
    let samples = lines.filter_map(|line| line.strip_prefix("edgeprobe_map_memory_bytes{map=\""));
    let sample = |line: &str| {
        let (name, value) = line.split_once("\"} ").expect("a label and a value");
        (name.to_owned(), value.parse().expect("a number of bytes"))
    };
    samples.map(sample).collect()
}

#[test]
fn the_memory_of_each_map_is_what_the_kernel_accounts() {
    let Some(_turn) = skip::turn("the_memory_of_each_map_is_what_the_kernel_accounts") else {
        return;
    };
    let netns = Netns::new();
    let address = http::free_address();
    let daemon = Daemon::start(&[&netns], &["--listen", &address.to_string()]);
    let page = || {
        let page = http::get(address, "/metrics", "text/plain").expect("a page");
        metrics(&page.body)
    };
    // What the daemon shows may be a minute old, and what is asked for in between is
    // compared with the next look.
    let (ours, maps) = poll::until("the memory of the maps is that of its open files", || {
        let (before, ours) = (map_memory::of_process(daemon.process().pid()), page());
        let sum = before.values().map(|map| map.bytes).sum::<u64>();
        (ours.values().sum::<u64>() == sum).then_some((ours, before))
    });
    assert!(ours.len() > 20, "each map is listed: {ours:?}");
    let listed = daemon.snapshot().maps.into_iter();
    let listed: BTreeMap<_, _> = listed.map(|map| (map.map, map.memory_bytes)).collect();
    assert_eq!(listed, ours, "JSON and metrics agree");

    // `bpftool` also tells which is which.
    let bpftool = ["/usr/sbin/bpftool", "/sbin/bpftool", "/usr/bin/bpftool"].map(Path::new);
    match bpftool.into_iter().find(|path| path.is_file()) {
        Some(bpftool) => {
            let mut cut = BTreeMap::new();
            for (name, bytes) in &ours {
                let name = name.chars().take(NAME).collect::<String>();
                *cut.entry(name).or_default() += bytes;
            }
            assert_eq!(cut, map_memory::by_bpftool(bpftool, &maps));
        }
        None => println!("not compared by name: bpftool is not installed"),
    }
    daemon.stop();
}
