//! Small helpers over maps.

use std::os::fd::AsFd as _;

use anyhow::Context as _;
use aya::{
    Pod,
    maps::{Array, Map, MapData},
};

use super::{Loaded, load::memory_bytes};
use crate::model::MapUse;

/// The table of an interface's flows.
pub const FLOWS: &str = "FLOWS";

/// The name under which a map of an interface is listed.
pub fn of_device(map: &str, device: &str) -> String {
    format!("{map}/{device}")
}

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

/// A map through a descriptor of its own, for another thread.
///
/// # Errors
///
/// There is none of that name, or no descriptor is free.
pub fn shared(loaded: &Loaded, name: &str) -> anyhow::Result<MapData> {
    let map = loaded.ebpf.map(name).and_then(data);
    let map = map.with_context(|| format!("the object has no map {name}"))?;
    let fd = map.fd().as_fd().try_clone_to_owned();
    let fd = fd.with_context(|| format!("a second descriptor of map {name}"))?;
    MapData::from_fd(fd).with_context(|| format!("map {name}"))
}

/// Fill of a map. Its memory is looked at less often: see [`memory`].
pub fn usage(loaded: &Loaded, name: &str, entries: u64) -> MapUse {
    let info = loaded.ebpf.map(name).and_then(data);
    let info = info.and_then(|data| data.info().ok());
    MapUse {
        map: name.to_owned(),
        entries,
        capacity: info.map_or(0, |info| u64::from(info.max_entries())),
        memory_bytes: 0,
    }
}

/// Memory of each map of an object in bytes, as the kernel accounts it: `memlock` in
/// `fdinfo`. From 6.4 on that is what a map takes, before it is what its keys and values
/// would take if it was full. A map of which it does not tell is left out.
pub fn memory(loaded: &Loaded) -> impl Iterator<Item = (&str, u64)> {
    let maps = loaded.ebpf.maps();
    maps.filter_map(|(name, map)| Some((name, memory_bytes(data(map)?)?)))
}
