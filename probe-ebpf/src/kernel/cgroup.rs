//! `struct cgroup`.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use probe_common::abi::owner::{NAME_LEN, Name};

use super::load;

/// A `struct cgroup *`.
#[derive(Clone, Copy)]
pub struct Cgroup(NonNull<c_void>);

impl Cgroup {
    /// `None` for null.
    #[inline(always)]
    pub fn new(pointer: *const c_void) -> Option<Self> {
        NonNull::new(pointer.cast_mut()).map(Self)
    }

    #[inline(always)]
    fn folder(self) -> Option<NonNull<c_void>> {
        // SAFETY: a BTF-typed pointer; see [`load!`].
        NonNull::new(unsafe { load!(self.0, cgroup_kn) })
    }

    /// Its number: the inode of its folder.
    #[inline(always)]
    pub fn id(self) -> u64 {
        match self.folder() {
            // SAFETY: a BTF-typed pointer; see [`load!`].
            Some(folder) => unsafe { load!(folder, kn_id) },
            None => 0,
        }
    }

    /// Whether it is one of cgroup v2: the older hierarchies have numbers of
    /// their own.
    #[inline(always)]
    pub fn is_v2(self) -> bool {
        // SAFETY: BTF-typed pointers; see [`load!`].
        unsafe {
            let Some(root) = NonNull::new(load!(self.0, cgroup_root)) else {
                return false;
            };
            let hierarchy: u32 = load!(root, root_hierarchy);
            hierarchy == 0
        }
    }

    /// The group above.
    #[inline(always)]
    pub fn parent(self) -> Option<Self> {
        // SAFETY: BTF-typed pointers; see [`load!`].
        unsafe {
            let state = NonNull::new(load!(self.0, cgroup_parent))?;
            NonNull::new(load!(state, css_cgroup)).map(Self)
        }
    }

    /// The name of its folder.
    #[inline(always)]
    pub fn name(self, name: &mut Name) -> bool {
        match self.folder() {
            // SAFETY: a BTF-typed pointer; see [`load!`].
            Some(folder) => text(unsafe { load!(folder, kn_name) }, name),
            None => false,
        }
    }
}

/// Copies a string of the kernel; false where it is too long. `into` is zero.
#[inline(always)]
pub fn text(from: u64, into: &mut Name) -> bool {
    // SAFETY: the helper checks the address and writes so many bytes at most.
    let length = unsafe {
        bpf_probe_read_kernel_str(
            into.as_mut_ptr().cast(),
            NAME_LEN as u32,
            from as *const c_void,
        )
    };
    // A string that was cut has that length too.
    (1..NAME_LEN as i64).contains(&length)
}
