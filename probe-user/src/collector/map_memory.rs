//! Kernel memory of the maps.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    loader::{Loaded, maps},
    model::MapUse,
};

/// How often it is looked at: most maps are as large as they will ever be.
const INTERVAL: Duration = Duration::from_secs(60);

/// Bytes of each map, as the kernel last accounted them.
#[derive(Debug, Default)]
pub struct MapMemory {
    read: Option<Instant>,
    bytes: BTreeMap<String, u64>,
}

impl MapMemory {
    /// Looks at the maps where it is time to. `objects` are those of the host and of the
    /// devices, these with their names. Maps of one name are one, but for each device's
    /// table of flows.
    pub fn refresh<'a>(&mut self, objects: impl Iterator<Item = (&'a Loaded, Option<&'a str>)>) {
        if self.read.is_some_and(|read| read.elapsed() < INTERVAL) {
            return;
        }
        self.read = Some(Instant::now());
        self.bytes.clear();
        for (loaded, device) in objects {
            for (name, bytes) in maps::memory(loaded) {
                let name = match device {
                    Some(device) if name == maps::FLOWS => maps::of_device(name, device),
                    _ => name.to_owned(),
                };
                *self.bytes.entry(name).or_default() += bytes;
            }
        }
    }

    /// Adds the memory to those of the maps that are listed, and lists the others: their
    /// entries are not counted.
    pub fn add_to(&self, maps: &mut Vec<MapUse>) {
        for (name, &memory_bytes) in &self.bytes {
            match maps.iter_mut().find(|map| map.map == *name) {
                Some(map) => map.memory_bytes = memory_bytes,
                None => maps.push(MapUse {
                    map: name.clone(),
                    memory_bytes,
                    ..MapUse::default()
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_gets_its_memory_and_the_rest_is_listed() {
        let memory = MapMemory {
            read: None,
            bytes: [("LOST", 8), ("ROWS", 4096)]
                .map(|(name, bytes)| (name.to_owned(), bytes))
                .into(),
        };
        let rows = MapUse {
            map: "ROWS".to_owned(),
            entries: 3,
            capacity: 8,
            memory_bytes: 0,
        };
        let mut maps = vec![rows.clone()];
        memory.add_to(&mut maps);
        let lost = MapUse {
            map: "LOST".to_owned(),
            memory_bytes: 8,
            ..MapUse::default()
        };
        let rows = MapUse {
            memory_bytes: 4096,
            ..rows
        };
        assert_eq!(maps, [rows, lost]);
    }
}
