//! Arrays of the kernel mapped into this process: reading them takes no system
//! call.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::Context as _;
use aya::{
    Pod,
    maps::{Array, Map, MapData},
};

use crate::loader::Loaded;

/// The first elements of an array that can be mapped. All of it counts as
/// resident memory of this process as long as it is mapped.
#[derive(Debug)]
pub struct MmapArray<T> {
    start: *mut T,
    len: usize,
    value: PhantomData<T>,
}

// SAFETY: the mapping belongs to the value.
unsafe impl<T: Pod> Send for MmapArray<T> {}

impl<T: Pod> MmapArray<T> {
    /// Maps `len` elements of the map `name`, whose values are `T`, to be read.
    ///
    /// # Errors
    ///
    /// There is no such array, or the kernel does not map it.
    pub fn new(loaded: &Loaded, name: &str, len: usize) -> anyhow::Result<Self> {
        Self::map(loaded, name, len, libc::PROT_READ)
    }

    /// The same, to be written too.
    ///
    /// # Errors
    ///
    /// Likewise.
    pub fn writable(loaded: &Loaded, name: &str, len: usize) -> anyhow::Result<Self> {
        Self::map(loaded, name, len, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn map(loaded: &Loaded, name: &str, len: usize, access: i32) -> anyhow::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8), "the kernel pads to words") };
        // The size of its values is right, or this fails.
        let _: Array<&MapData, T> = loaded.map(name)?;
        let Some(Map::Array(data)) = loaded.ebpf.map(name) else {
            anyhow::bail!("{name} is not an array");
        };
        // SAFETY: a new mapping of a descriptor that is open.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len * size_of::<T>(),
                access,
                libc::MAP_SHARED,
                data.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).with_context(|| format!("cannot map {name}"));
        }
        Ok(Self {
            start: start.cast(),
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
        self.start.wrapping_add(index)
    }
}

impl<T> Drop for MmapArray<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        // SAFETY: the mapping was made in `map` and nothing points into it now.
        unsafe { libc::munmap(self.start.cast(), bytes) };
    }
}
