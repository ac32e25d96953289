//! Memory of this process that is given back to the kernel.

/// From this size on an allocation is a mapping of its own, which is gone when it is
/// freed. The allocator would raise this by itself, and keep what it has freed.
#[cfg(target_env = "gnu")]
const OWN_MAPPING: i32 = 1 << 20;
/// Free memory that the allocator keeps at the end of its heap.
#[cfg(target_env = "gnu")]
const KEPT: i32 = 4 << 20;
/// Heaps of the allocator: each keeps what was freed in it.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

/// Makes the allocator give large allocations back as soon as they are freed. To be
/// called before any thread is started.
pub fn give_back_large() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, OWN_MAPPING),
        (libc::M_TRIM_THRESHOLD, KEPT),
        (libc::M_ARENA_MAX, HEAPS),
    ] {
        // SAFETY: `mallopt` takes two numbers by value, knows each of these
        // parameters, and may be called at any time; a refusal changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives the kernel back what is free inside the heap. Takes some milliseconds for
/// each 100 MiB of heap.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes the locks of the allocator itself and touches only
    // memory that nobody has allocated.
    unsafe {
        libc::malloc_trim(0)
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::process;

    /// Other tests take memory at the same time: these are large against them.
    #[test]
    fn what_is_freed_goes_back() {
        const BLOCK: usize = 512 << 10;
        give_back_large();
        let taken: Vec<Vec<u8>> = (0..512).map(|_| vec![1; BLOCK]).collect();
        let kept = vec![1_u8; 64];
        let high = process::read().unwrap().resident_bytes;
        drop(taken);
        trim();
        let low = process::read().unwrap().resident_bytes;
        assert!(high - low > 200 << 20, "{high} and then {low}");
        drop(kept);
    }
}
