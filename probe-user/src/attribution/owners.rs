//! Owners of sockets: the control group that the kernel keeps for each socket,
//! its name, and the process that holds the socket.
//!
//! Where owners are part of the rows' key, the programs have them from the maps
//! `OWNER_OF` and `OWNER_BY`, see [`probe_common::abi::owner`]. A name is looked up
//! once: a control group that is gone keeps it.

use std::collections::HashMap;

use anyhow::{Context as _, ensure};
use aya::maps::{HashMap as BpfHash, MapData};
use probe_common::abi::{
    iter::Endpoint,
    owner::{BY_NAME, BY_SERVICE, CGROUP, NAME_LEN, NONE, Name, PATTERNS},
};

use super::{
    UNKNOWN, cgroup_names,
    socket_pids::{self, SocketPids},
};
use crate::{
    config::{CgroupPattern, Config},
    kernel::cgroup::Hierarchy,
    loader::Loaded,
};

/// Paths that are kept for looks at single sockets.
const MAX_PATHS: usize = 4096;

/// The owners.
#[derive(Debug)]
pub struct Owners {
    mode: u32,
    patterns: Vec<CgroupPattern>,
    hierarchy: Option<Hierarchy>,
    paths: HashMap<u64, KnownCgroup>,
    /// A path for each number that owners got, from 1 on.
    numbered: Vec<Option<String>>,
    /// Those numbers by owner and by the services that it may be.
    numbers: HashMap<(Option<String>, u64), u64>,
    /// Which processes hold the sockets.
    pub socket_pids: SocketPids,
}

#[derive(Debug)]
struct KnownCgroup {
    /// `None` if it was gone before it was looked up.
    path: Option<String>,
    /// Series have its name.
    counts: bool,
    /// Looked at since the last sweep.
    used: bool,
}

/// Who a socket belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its name; absent where neither control group nor process is known.
    pub name: Option<String>,
    /// Number of the process, if it is alive.
    pub pid: Option<u32>,
    /// Name of the process.
    pub process: Option<String>,
    /// Path of the control group.
    pub cgroup: Option<String>,
}

/// Names of processes, each asked for once.
pub type Processes = HashMap<u32, Option<String>>;

impl Owners {
    /// The owners that a configuration asks for.
    ///
    /// # Errors
    ///
    /// The services have more control groups than the programs can number.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let mut patterns = Vec::new();
        for service in &config.services {
            for pattern in service.owners() {
                if !patterns.contains(&pattern) {
                    patterns.push(pattern);
                }
            }
        }
        ensure!(
            patterns.len() <= PATTERNS,
            "the services have {} control groups and units, {PATTERNS} is the most",
            patterns.len()
        );
        let mode = match (config.metrics.owner_label, patterns.is_empty()) {
            (true, _) => BY_NAME,
            (false, false) => BY_SERVICE,
            (false, true) => NONE,
        };
        let hierarchy = Hierarchy::find();
        if hierarchy.is_none() && mode != NONE {
            tracing::warn!(
                "cgroup v2 is not mounted: owners have no names, and no service is found by \
                 \"cgroup\" or \"unit\""
            );
        }
        Ok(Self {
            mode,
            patterns,
            hierarchy,
            paths: HashMap::new(),
            numbered: Vec::new(),
            numbers: HashMap::new(),
            socket_pids: SocketPids::default(),
        })
    }

    /// How owners are part of the rows' key.
    pub fn mode(&self) -> u32 {
        self.mode
    }

    /// The bit of a pattern.
    pub fn bit(&self, pattern: &CgroupPattern) -> u64 {
        let position = self.patterns.iter().position(|one| one == pattern);
        position.map_or(0, |n| 1 << n)
    }

    /// The bits of the patterns that a path matches.
    pub fn bits(&self, path: &str) -> u64 {
        let matching = (self.patterns.iter().enumerate()).filter(|(_, one)| one.matches(path));
        matching.fold(0, |bits, (n, _)| bits | 1 << n)
    }

    /// Tells the programs which services' control groups are there, and which
    /// may come. Called before they are attached and again after that, for what
    /// came in between.
    ///
    /// # Errors
    ///
    /// The kernel refuses to write a map.
    pub fn tell(&self, loaded: &mut Loaded) -> anyhow::Result<()> {
        let (BY_SERVICE, Some(hierarchy)) = (self.mode, &self.hierarchy) else {
            return Ok(());
        };
        let mut by_text: HashMap<Name, u64> = HashMap::new();
        for pattern in &self.patterns {
            if let Some(text) = text(pattern.text().trim_end_matches('/')) {
                *by_text.entry(text).or_default() |= self.bit(pattern);
            }
        }
        let mut map: BpfHash<&mut MapData, Name, u64> = loaded.map_mut("OWNER_BY")?;
        for (text, bits) in by_text {
            map.insert(text, bits, 0).context("OWNER_BY")?;
        }
        let mut there = Vec::new();
        hierarchy.walk(|id, path| {
            there.push((id, self.bits(path)));
            true
        });
        let mut map: BpfHash<&mut MapData, u64, u64> = loaded.map_mut("OWNER_OF")?;
        for (id, bits) in there.into_iter().filter(|&(_, bits)| bits != 0) {
            map.insert(id, bits, 0)
                .context("more control groups belong to services than OWNER_OF holds")?;
        }
        Ok(())
    }

    /// Gives new owners their names and numbers, so that they share rows with
    /// others of the same name.
    ///
    /// # Errors
    ///
    /// There is no such map.
    pub fn learn(
        &mut self,
        loaded: &mut Loaded,
        keys: impl Iterator<Item = u64>,
    ) -> anyhow::Result<()> {
        if self.mode != BY_NAME {
            return Ok(());
        }
        let ids = keys
            .filter(|key| key & CGROUP != 0)
            .map(|key| key & !CGROUP);
        for id in ids {
            if self.paths.get(&id).is_some_and(|known| known.counts) {
                continue;
            }
            let path = match self.path(id) {
                Some(path) => Some(path.to_owned()),
                None => path_of(loaded, id)?,
            };
            if let Some(known) = self.paths.get_mut(&id) {
                known.counts = true;
                known.path.clone_from(&path);
            }
            let Some(path) = path else {
                continue;
            };
            let class = (cgroup_names::owner(&path), self.bits(&path));
            let next = self.numbers.len() as u64 + 1;
            let number = *self.numbers.entry(class).or_insert(next);
            if number == next {
                self.numbered.push(Some(path.clone()));
            }
            // Where they are full it has rows of its own.
            let mut map: BpfHash<&mut MapData, u64, u64> = loaded.map_mut("OWNER_OF")?;
            let _ = map.insert(id, number, 0);
            if self
                .hierarchy
                .as_ref()
                .is_some_and(|all| all.path(id).is_none())
            {
                // The program that would have removed it may have come before.
                let _ = map.remove(&id);
            }
            if let Some(text) = text(&path) {
                let mut map: BpfHash<&mut MapData, Name, u64> = loaded.map_mut("OWNER_BY")?;
                let _ = map.insert(text, number, 0);
            }
        }
        Ok(())
    }

    /// What a row's key says: the bits of the services, and the owner's name.
    pub fn of_key(&self, key: u64) -> (u64, Option<String>) {
        if self.mode != BY_NAME {
            return (key, None);
        }
        let path = if key & CGROUP != 0 {
            self.paths
                .get(&(key & !CGROUP))
                .and_then(|known| known.path.as_deref())
        } else {
            let number = usize::try_from(key).ok().and_then(|n| n.checked_sub(1));
            number.and_then(|n| self.numbered.get(n)?.as_deref())
        };
        match path {
            // What is in no group of its own has none but the path.
            Some(path) => {
                let name = cgroup_names::owner(path).unwrap_or_else(|| path.to_owned());
                (self.bits(path), Some(name))
            }
            None => (0, None),
        }
    }

    /// The path of a control group, looked up once.
    fn path(&mut self, id: u64) -> Option<&str> {
        if self.paths.len() > MAX_PATHS {
            self.paths
                .retain(|_, known| known.counts || std::mem::take(&mut known.used));
        }
        let hierarchy = self.hierarchy.as_ref().filter(|_| id != 0)?;
        let known = self.paths.entry(id).or_insert_with(|| KnownCgroup {
            path: hierarchy.path(id),
            counts: false,
            used: true,
        });
        known.used = true;
        known.path.as_deref()
    }

    /// The bits of a socket's control group.
    pub fn bits_of(&mut self, socket: &Endpoint) -> u64 {
        if self.patterns.is_empty() {
            return 0;
        }
        let path = self.path(socket.cgroup).map(ToOwned::to_owned);
        path.map_or(0, |path| self.bits(&path))
    }

    /// Who a socket belongs to; `pids` are the processes that may hold it, the
    /// likeliest first.
    pub fn of_socket(
        &mut self,
        socket: &Endpoint,
        pids: impl IntoIterator<Item = u32>,
        processes: &mut Processes,
    ) -> Owner {
        let process = pids.into_iter().filter(|&pid| pid != 0).find_map(|pid| {
            let name = processes
                .entry(pid)
                .or_insert_with(|| socket_pids::name(pid));
            Some((pid, name.clone()?))
        });
        let is_told = socket.cgroup != 0 && self.hierarchy.is_some();
        let cgroup = self.path(socket.cgroup).map(ToOwned::to_owned);
        let (pid, process) = process.unzip();
        let name = match &cgroup {
            Some(path) => cgroup_names::owner(path).or_else(|| process.clone()),
            None if is_told => Some(UNKNOWN.to_owned()),
            None => process.clone(),
        };
        Owner {
            name,
            pid,
            process,
            cgroup,
        }
    }
}

/// The path of a group that has come since the start and gone already.
fn path_of(loaded: &Loaded, id: u64) -> anyhow::Result<Option<String>> {
    let map: BpfHash<&MapData, u64, Name> = loaded.map("PATH_OF")?;
    let Ok(name) = map.get(&id, 0) else {
        return Ok(None);
    };
    let text = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(Some(String::from_utf8_lossy(text).into_owned()))
}

/// A text as the programs hold it; `None` where it is empty or too long.
fn text(text: &str) -> Option<Name> {
    let mut name = [0; NAME_LEN];
    let bytes = text.as_bytes();
    (1..NAME_LEN).contains(&bytes.len()).then(|| {
        name[..bytes.len()].copy_from_slice(bytes);
        name
    })
}
