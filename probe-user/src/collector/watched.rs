//! The numbers of the network namespaces that are watched by name, kept in the map that
//! the programs ask: one that is made again under its name has another number.

use std::{
    collections::BTreeSet,
    fs::File,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use aya::maps::{HashMap as BpfHash, Map, MapData};
use nix::poll::{PollFd, PollFlags, poll};

use crate::{
    kernel::netns::NetNs,
    loader::{Loaded, maps},
};

/// The kernel tells through this file that something was mounted, as a name of
/// `ip netns` is.
const MOUNTS: &str = "/proc/self/mountinfo";
/// How often the names are looked at when nothing was mounted: a path may be one of a
/// process. In milliseconds.
const INTERVAL: u16 = 1000;

/// A thread that keeps the numbers until this is dropped.
#[derive(Debug)]
pub struct WatchedNumbers {
    stop: Arc<AtomicBool>,
}

/// The map and what is in it.
#[derive(Debug)]
struct Numbers {
    map: BpfHash<MapData, u32, u8>,
    known: BTreeSet<u32>,
}

impl WatchedNumbers {
    /// Fills the map, before any program runs, and keeps it.
    ///
    /// # Errors
    ///
    /// The kernel refuses to write to it, or the thread does not start.
    pub fn start(loaded: &Loaded, names: Vec<String>) -> anyhow::Result<Self> {
        // A second descriptor of the map, which stays with the others.
        let data = maps::shared(loaded, "WATCHED")?;
        let mut numbers = Numbers {
            map: Map::HashMap(data).try_into()?,
            known: BTreeSet::new(),
        };
        numbers.update(&names)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mounts = File::open(MOUNTS).with_context(|| format!("cannot open {MOUNTS}"))?;
        std::thread::Builder::new()
            .name("netns-names".into())
            .spawn(move || {
                while !stopped.load(Ordering::Acquire) {
                    // It reports each change once, whatever else it returns.
                    let mut changes = [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)];
                    let _ = poll(&mut changes, INTERVAL);
                    if let Err(error) = numbers.update(&names) {
                        tracing::debug!("cannot follow the network namespaces: {error:#}");
                    }
                }
            })?;
        Ok(Self { stop })
    }
}

impl Drop for WatchedNumbers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl Numbers {
    fn update(&mut self, names: &[String]) -> anyhow::Result<()> {
        let found = names.iter().filter_map(|name| NetNs::named(name).ok());
        let found: BTreeSet<u32> = found.map(|netns| netns.inum).collect();
        for inum in found.difference(&self.known) {
            self.map.insert(inum, 1, 0)?;
        }
        for inum in self.known.difference(&found) {
            self.map.remove(inum)?;
        }
        self.known = found;
        Ok(())
    }
}
