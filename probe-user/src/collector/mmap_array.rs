//! Arrays of the kernel mapped into this process: reading them takes no system
//! call.

use std::{marker::PhantomData, os::fd::AsFd as _};

use anyhow::Context as _;
use aya::{
    Pod,
    maps::{Array, Map, MapData},
};
use memmap2::{MmapOptions, MmapRaw};

use crate::loader::Loaded;

/// The first elements of an array that can be mapped. All of it counts as
/// resident memory of this process as long as it is mapped.
#[derive(Debug)]
pub struct MmapArray<T> {
    memory: MmapRaw,
    len: usize,
    value: PhantomData<T>,
}

impl<T: Pod> MmapArray<T> {
    /// Maps `len` elements of the map `name`, whose values are `T`, to be read.
    ///
    /// # Errors
    ///
    /// There is no such array, or the kernel does not map it.
    pub fn new(loaded: &Loaded, name: &str, len: usize) -> anyhow::Result<Self> {
        Self::map(loaded, name, len, |options, data| {
            options.map_raw_read_only(&data.fd().as_fd())
        })
    }

    /// The same, to be written too.
    ///
    /// # Errors
    ///
    /// Likewise.
    pub fn writable(loaded: &Loaded, name: &str, len: usize) -> anyhow::Result<Self> {
        Self::map(loaded, name, len, |options, data| {
            options.map_raw(&data.fd().as_fd())
        })
    }

    fn map(
        loaded: &Loaded,
        name: &str,
        len: usize,
        map: impl FnOnce(&MmapOptions, &MapData) -> std::io::Result<MmapRaw>,
    ) -> anyhow::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8), "the kernel pads to words") };
        // The size of its values is right, or this fails.
        let _: Array<&MapData, T> = loaded.map(name)?;
        let Some(Map::Array(data)) = loaded.ebpf.map(name) else {
            anyhow::bail!("{name} is not an array");
        };
        // The length is given, since the descriptor of a map has none to ask for.
        let mut options = MmapOptions::new();
        options.len(len * size_of::<T>());
        Ok(Self {
            memory: map(&options, data).with_context(|| format!("cannot map {name}"))?,
            len,
            value: PhantomData,
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// An element, which the programs may be writing to.
    ///
    /// # Panics
    ///
    /// Where it is not mapped.
    pub fn element(&self, index: usize) -> *mut T {
        assert!(index < self.len, "element {index} is not mapped");
        self.memory.as_mut_ptr().cast::<T>().wrapping_add(index)
    }
}
