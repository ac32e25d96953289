//! Small helpers over maps.

use std::collections::HashSet;

use aya::{
    Pod,
    maps::{Array, Map, MapData},
};

use super::{Loaded, memory_bytes};
use crate::model::MapUse;

/// The counter in a map of one entry.
pub fn counter(loaded: &Loaded, name: &str) -> anyhow::Result<u64> {
    let map: Array<&MapData, u64> = loaded.map(name)?;
    Ok(map.get(&0, 0)?)
}

/// The record at the beginning of what an iterator wrote; `None` where it is shorter.
pub fn record<T: Pod>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: as many bytes as the record has, of which any are one, since it is
    // `Pod`; the read does not ask for alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// Fill and memory of a map.
pub fn usage(loaded: &Loaded, name: &str, entries: u64) -> MapUse {
    let data = loaded.ebpf.map(name).and_then(data);
    let info = data.and_then(|data| data.info().ok());
    MapUse {
        map: name.to_owned(),
        entries,
        capacity: info.map_or(0, |info| u64::from(info.max_entries())),
        memory_bytes: data.map_or(0, memory_bytes),
    }
}

/// Memory of all maps that are not listed one by one.
pub fn memory_of_others(loaded: &Loaded, known: &HashSet<&str>) -> u64 {
    let others = loaded.ebpf.maps().filter(|(name, _)| !known.contains(name));
    others
        .filter_map(|(_, map)| data(map))
        .map(memory_bytes)
        .sum()
}
