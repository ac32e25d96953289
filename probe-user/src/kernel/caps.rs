//! Names of capabilities.

/// The capabilities in a mask as `/proc/PID/status` has it, in the order of their
/// bits: `CAP_BPF`, or `CAP_41` where this tool knows no name.
pub fn names(mask: u64) -> Vec<String> {
    let known = caps::all();
    (0..64)
        .filter(|bit| mask >> bit & 1 != 0)
        .map(|bit| {
            known
                .iter()
                .find(|capability| capability.index() == bit)
                .map_or_else(|| format!("CAP_{bit}"), ToString::to_string)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn bits_have_the_names_of_the_kernel_headers_or_their_number() {
        assert_eq!(
            names(0x0000_00c0_0000_1000),
            ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]
        );
        assert_eq!(
            names(1 << 63 | 1 << 41 | 1 << 40 | 1),
            ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE", "CAP_41", "CAP_63"]
        );
        assert!(names(0).is_empty());
        assert_eq!(names(u64::MAX).len(), 64);
    }
}
